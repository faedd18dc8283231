"""ALT_LAS GPU Test: a lab for the part of a platform that spreads work over GPUs.

import altlas_core as altlas
settings = altlas.load_config("config.yaml", overrides={"gpu.selection.default_strategy": "least_loaded"})
result = altlas.run(settings, altlas.Workload.from_records([{"duration_s": 2.0}]))
result.tasks
"""

from __future__ import annotations

from altlas_core.errors import AltlasError
from altlas_core.experiment import load_settings as load_config
from altlas_core.experiment import run
from altlas_core.faults import Fault
from altlas_core.live import live
from altlas_core.result import Result
from altlas_core.strategies import register_strategy
from altlas_core.workloads import Workload

__version__ = "0.1.0"
__all__ = ["AltlasError", "Fault", "Result", "Workload", "live", "load_config", "register_strategy", "run"]
