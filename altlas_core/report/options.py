"""What a suite is asked beside its settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from altlas_core.report.gates import Gate


@dataclass(slots=True, frozen=True)
class SuiteOptions:
    """`gates`: rules of --fail-if. `resume`: folder of the run to go on with. `watch`: a live page while it runs."""

    gates: tuple[Gate, ...] = ()
    resume: Path | None = None
    watch: bool = False
    pdf: bool = False
