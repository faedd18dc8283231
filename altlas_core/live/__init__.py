"""A run to watch and steer while it goes on: `altlas.live` in a notebook.

`session` runs it and knows no widgets; `dashboard` draws it; `still` is what stays where nobody can watch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from altlas_core.errors import AltlasError, ConfigError, nearest

if TYPE_CHECKING:
    from altlas_core.config import Settings
    from altlas_core.faults import Fault
    from altlas_core.live.dashboard import Dashboard
    from altlas_core.live.still import StillRun
    from altlas_core.workloads import Workload

MODES: Final = ("auto", "live", "still")


def live(
    settings: Settings | None = None,
    workload: Workload | None = None,
    seed: int | None = None,
    faults: Sequence[Fault] = (),
    mode: str = "auto",
    autostart: bool = True,
) -> Dashboard | StillRun:
    """Watch a run and steer it: a dashboard as the last line of a notebook's cell. Arguments as for `run`.

    workload None: an endless mix of tasks. mode "live": the dashboard, whose run begins at once, or with its button
    where `autostart` is False; "still": the workload is run whole (of an endless one its first two minutes), and
    figures show it; "auto": live in JupyterLab and other front ends that draw widgets, still in papermill, nbval and
    plain Python. Running a cell again ends the dashboard it made before.

    Raises NotebookError, shown in one line, for what cannot be run.
    """
    from altlas_core.live import frontend
    from altlas_core.notebook.session import NotebookError

    try:
        if mode not in MODES:
            raise ConfigError(f"mode: {mode!r}; allowed: {', '.join(MODES)}.{nearest(str(mode), MODES)}")
        cell = frontend.cell_id()
        if mode == "still" or (mode == "auto" and cell is None):
            from altlas_core.live.still import play

            return play(settings, workload, seed, faults)
        from altlas_core.live.dashboard import Dashboard
        from altlas_core.live.session import LiveSession

        dashboard = Dashboard(LiveSession(settings, workload, seed, faults))
        frontend.take_over(cell, dashboard)
        if autostart:
            dashboard.session.start()
        return dashboard
    except AltlasError as problem:
        raise NotebookError(str(problem)) from None
