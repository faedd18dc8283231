"""Busy slots by GPU and time, where there are too many attempts or GPUs for bars."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from altlas_core.live.snapshot import Snapshot

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from altlas_core.result import Result

    Floats = npt.NDArray[np.float64]

MOST_ROWS: Final = 128  # of the picture: more GPUs share rows
MOST_COLUMNS: Final = 120


class BusyLately:
    """The latest looks at a live run: how many slots were busy on each GPU."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, Floats]] = deque(maxlen=MOST_COLUMNS)

    def clear(self) -> None:
        self._looks.clear()

    def add(self, shot: Snapshot) -> None:
        import numpy as np

        if self._looks and shot.time_s <= self._looks[-1][0]:
            return
        self._looks.append((shot.time_s, np.array([gpu.running for gpu in shot.gpus], dtype=np.float64)))

    def picture(self) -> dict[str, Any]:
        """x, y and z of a heatmap, after the first look."""
        import numpy as np

        times = np.array([time_s for time_s, _ in self._looks])
        return picture(times, np.array([running for _, running in self._looks]).T)


def busy_slots(result: Result) -> dict[str, Any] | None:
    """x, y and z of a heatmap of a whole run; None where nothing was read."""
    import numpy as np

    count = len(result.devices)
    times = np.array(result.sampled.queue_time_s)
    running = np.array(result.sampled.running_tasks, dtype=np.float64)[: len(times) * count]
    if not len(times):
        return None
    return picture(*_thinned(times, running.reshape(len(times), count).T))


def _thinned(times: Floats, running: Floats) -> tuple[Floats, Floats]:
    """At most MOST_COLUMNS columns: means of those that follow each other."""
    import numpy as np

    if len(times) <= MOST_COLUMNS:
        return times, running
    starts = np.linspace(0, len(times), MOST_COLUMNS, endpoint=False).astype(int)
    widths = np.diff(np.append(starts, len(times)))
    return times[starts], np.add.reduceat(running, starts, axis=1) / widths


def picture(times: Floats, running: Floats) -> dict[str, Any]:
    """`running`: a row for each GPU. Neighbours share a row, as their mean, where there are too many."""
    import numpy as np

    count = len(running)
    share = -(-count // MOST_ROWS)
    starts = np.arange(0, count, share)
    sizes = np.diff(np.append(starts, count))
    rows = np.add.reduceat(running, starts, axis=0) / sizes[:, None]
    middles = starts + (sizes - 1) / 2
    return {"x": times.round(3).tolist(), "y": middles.tolist(), "z": rows.round(2).tolist()}


def shared_rows(count: int) -> int:
    """GPUs that share a row of the picture."""
    return -(-count // MOST_ROWS)
