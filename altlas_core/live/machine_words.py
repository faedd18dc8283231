"""The state of a live run in words and numbers: for the dashboard's head and for its still form."""

from __future__ import annotations

from altlas_core.live.snapshot import Snapshot


def head_of(shot: Snapshot) -> dict[str, str]:
    """State, clock and machine in words."""
    pace = "as fast as possible" if shot.pace is None else f"{shot.pace:g}x real time"
    return {
        "state": shot.state,
        "clock": f"{shot.time_s:,.3f} s" if shot.state == "paused" else f"{shot.time_s:,.1f} s",  # steps are small
        "pace": pace if shot.can_pace else "real time",
        "machine": " + ".join(shot.device_texts) + f", {shot.slots} slots each, seed {shot.seed}",
        "provenance": shot.provenance,
        "error": shot.error or "",
    }


def figures_of(shot: Snapshot) -> list[list[str]]:
    """The run in numbers."""
    return [
        ["running", f"{shot.running:,}"],
        ["waiting", f"{shot.queued:,}"],
        ["completed", f"{shot.completed:,}"],
        ["failed", f"{shot.failed:,}"],
        ["cancelled", f"{shot.cancelled:,}"],
        ["throughput", "–" if shot.throughput_per_s is None else f"{shot.throughput_per_s:,.3g} /s"],
        ["wait p50", seconds(shot.wait_p50_s)],
        ["latency p50", seconds(shot.latency_p50_s)],
        ["latency p95", seconds(shot.latency_p95_s)],
        ["latency p99", seconds(shot.latency_p99_s)],
    ]


def seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f} s" if value >= 1000 else f"{value:.3g} s"
