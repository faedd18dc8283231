"""What `import altlas_core` costs, in fresh interpreters, and that it loads nothing heavy.

python -m benchmarks.import_time [--quick]
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks.timing import script, spread

HEAVY = ("torch", "pandas", "numpy", "plotly", "pynvml", "papermill", "fastapi")
CODE = f"""
import json, sys, time
begin = time.perf_counter()
import altlas_core
seconds = time.perf_counter() - begin
print(json.dumps([seconds, [name for name in {HEAVY!r} if name in sys.modules]]))
"""


def measure(quick: bool) -> dict[str, Any]:
    seconds, loaded = [], set()
    for turn in range(3 if quick else 11):
        out = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True).stdout
        taken, heavy = json.loads(out)
        loaded.update(heavy)
        if turn:  # the first one fills the disk cache
            seconds.append(taken)
    return {
        "rounds": len(seconds),
        "seconds": spread(seconds),
        "heavy_looked_for": HEAVY,
        "heavy_loaded": sorted(loaded),
    }


if __name__ == "__main__":
    script(__doc__, measure)
