"""What stays of a live run where nobody can watch: figures of the whole run, or words and a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

from altlas_core.backends.discover import discover
from altlas_core.config import Settings
from altlas_core.errors import ConfigError
from altlas_core.experiment import load_settings, run
from altlas_core.faults import Fault
from altlas_core.figures import latency_over_time, machine, queue_depth, timeline
from altlas_core.live.arrivals import endless
from altlas_core.live.machine_words import figures_of, head_of, seconds
from altlas_core.live.snapshot import Snapshot
from altlas_core.model import GIB
from altlas_core.notebook.display import cell_text, display, show, show_table
from altlas_core.result import Result
from altlas_core.scenarios.measures import device_texts
from altlas_core.workloads import Workload

if TYPE_CHECKING:
    import pandas as pd

ENDLESS_S: Final = 120.0  # of a workload without end
MOST_ROWS: Final = 24  # GPUs in a table


@dataclass(eq=False)
class StillRun:
    """A run that was played whole, in place of a dashboard: shown, it is figures.

    `session` is None: there is nothing to steer.
    """

    result: Result
    note: str = ""
    session: None = None

    def close(self) -> None:
        """As of a dashboard; there is nothing to end."""

    def __repr__(self) -> str:
        """The run in a line."""
        result = self.result
        metrics = result.metrics
        counts = ", ".join(f"{metrics[name]:,} {name}" for name in ("completed", "failed", "cancelled"))
        waited = f"waiting p50 {seconds(metrics['wait_p50_s'])}, latency p95 {seconds(metrics['latency_p95_s'])}"
        machine_text = ", ".join(device_texts(result.devices))
        return (
            f"{machine_text}, {result.settings.gpu.selection.default_strategy}, seed {result.seed} "
            f"({result.provenance}): "
            f"{metrics['tasks']:,} tasks in {result.virtual_s:.5g} s: {counts}; {waited}{self.note}"
        )

    def _ipython_display_(self) -> None:
        display({"text/plain": repr(self)})
        show_table(machine_table(self.result), MOST_ROWS)
        for draw in (machine, timeline, queue_depth, latency_over_time):
            show(draw(self.result))


def play(settings: Any, workload: Workload | None, seed: int | None, faults: Sequence[Fault]) -> StillRun:
    """Play the workload whole, simulated devices alone in virtual time. Raises AltlasError children."""
    settings = load_settings() if settings is None else settings
    if not isinstance(settings, Settings):
        raise ConfigError(f"{type(settings).__name__} is no settings: give what load_config returns, or None")
    devices = discover(settings).devices
    if all(spec.simulated for spec in devices):
        settings = replace(settings, run=replace(settings.run, pace=0.0))
    note = ""
    if workload is None:
        mix = endless(devices, settings.gpu, settings.seed if seed is None else seed)
        workload = Workload(tuple(takewhile(lambda spec: spec.submit_s < ENDLESS_S, mix)))
        note = f"; of an endless workload, what arrived in the first {ENDLESS_S:g} s"
    return StillRun(run(settings, workload, seed, faults, devices), note)


def machine_table(result: Result) -> pd.DataFrame:
    """A row for each GPU: its state at the end, and what it did."""
    import pandas as pd

    read = result.telemetry.groupby("gpu_id")
    attempts = result.attempts["gpu_id"].value_counts()
    devices = result.pool
    ids = [device.gpu_id for device in devices]

    def column(name: str, how: str, scale: float = 1.0) -> list[Any]:
        found = read[name].agg(how)
        return [None if pd.isna(value := found.get(gpu_id)) else float(value) / scale for gpu_id in ids]

    return pd.DataFrame(
        {
            "GPU": ids,
            "kind": [device.spec.name for device in devices],
            "at the end": [device.state for device in devices],
            "attempts": [int(attempts.get(gpu_id, 0)) for gpu_id in ids],
            "utilization, mean (%)": column("utilization_pct", "mean"),
            "memory, peak (GiB)": column("memory_used_bytes", "max", GIB),
            "temperature, peak (°C)": column("temperature_c", "max"),
            "power, mean (W)": column("power_w", "mean"),
        }
    )


# --- the still form of a live dashboard -------------------------------------------------------------------------------


def still_bundle(shot: Snapshot) -> dict[str, str]:
    """The run at this moment, as text and as HTML."""
    head = head_of(shot)
    counts = ", ".join(f"{name} {value}" for name, value in figures_of(shot))
    text = f"{head['machine']} ({head['provenance']}), {shot.strategy}: {head['state']} at {head['clock']}; {counts}"
    rows = [
        (
            gpu.gpu_id,
            gpu.name,
            gpu.health,
            gpu.utilization_pct,
            None if gpu.memory_used_bytes is None else gpu.memory_used_bytes / GIB,
            gpu.temperature_c,
            gpu.power_w,
            f"{gpu.running} of {gpu.slots}",
        )
        for gpu in shot.gpus[:MOST_ROWS]
    ]
    names = "GPU", "kind", "state", "utilization (%)", "memory (GiB)", "temperature (°C)", "power (W)", "busy slots"
    more = f"<p>first {len(rows)} of {len(shot.gpus):,} GPUs</p>" if len(rows) < len(shot.gpus) else ""
    news = "".join(f"<li>{escape(line)}</li>" for line in shot.news)
    html = f"<p>{escape(text)}</p>{_table(names, rows)}{more}" + (f"<ul>{news}</ul>" if news else "")
    return {"text/html": html, "text/plain": text}


def _table(names: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell_text(cell))}</td>' for cell in row)}</tr>\n" for row in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"
