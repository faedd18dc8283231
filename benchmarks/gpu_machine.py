"""Checks of gpu_check.py on what a machine is made of: parts, mixed pools, spare workers, heartbeats, readings."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from dataclasses import asdict
from typing import Final

import psutil
from gpu_kinds import kinds_and_formats, record
from gpu_stand import Finding, Stand, attempts_of, story, worker_pids

from altlas_core.backends.discover import discover
from altlas_core.backends.machine import Machine
from altlas_core.backends.sampling.history import History
from altlas_core.backends.sampling.sampler import Sampler
from altlas_core.backends.sampling.sources import device_sources
from altlas_core.config import load_config
from altlas_core.model import COMPLETED, GIB, DeviceSample

SPARE_S: Final = 1.0  # beyond kill_grace, with a spare worker that has torch imported already
LEAST_RATE_HZ: Final = 5.0  # of readings that are meant to come ten times a second
MOST_SAMPLER_SHARE: Final = 0.01  # of a core


def machine_of(stand: Stand, *entries: str) -> Machine:
    return discover(load_config(overrides={"gpu.devices": list(entries)}, environ={}))


def share_is_enforced(stand: Stand) -> Finding:
    """Two parts. A task on the first that takes three quarters of the whole must fail; one on the second must not."""
    parts = machine_of(stand, f"{stand.device}/2").devices
    share = parts[0].memory_total_bytes
    side = int((1.5 * share / 4) ** 0.5)
    greedy = {"input_size": side, "output_size": side, "batch": 1, "iterations": 1, "memory_bytes": 1 << 20}
    fair = stand.linear(stand.models["small_model"], duration_s=stand.seconds, gpu_id=1)
    result = stand.play([{**greedy, "gpu_id": 0, "retry_count": 0, "timeout_s": 120.0}, fair], devices=parts)
    asked, other = result.task_list
    told = (asked.error or "").splitlines()[0][:140] if asked.error else story(result)
    passed = asked.error_code == "out_of_memory" and other.state == COMPLETED
    return Finding(passed, f"{told}; on the other part {other.state}", {"share_bytes": share})


def parts_contend(stand: Stand) -> Finding:
    """The rate of one part alone and of both at once: their sum is no more than the device has, with some slack."""
    parts = machine_of(stand, f"{stand.device}/2").devices
    size = stand.models["large_model"]
    first = [stand.linear(size, iterations=1, gpu_id=gpu_id) for gpu_id in (0, 1)]

    def rates(*gpu_ids: int) -> list[float]:
        work = [stand.linear(size, duration_s=stand.seconds, gpu_id=gpu_id) for gpu_id in gpu_ids]
        done = attempts_of(stand.play([*first, *work], slots=1, devices=parts))[2:]
        if len(done) != len(gpu_ids) or any(attempt.outcome != "finished" for attempt in done):
            return []
        return [attempt.iterations / ((attempt.ended_s or 0.0) - attempt.started_s) for attempt in done]

    alone, both = rates(0), rates(0, 1)
    if not alone or len(both) != 2:
        return Finding(False, "a task did not finish")
    ratio = sum(both) / alone[0]
    observed = f"alone {alone[0]:.4g}, together {both[0]:.4g} + {both[1]:.4g} iterations/s: {ratio:.0%} of one alone"
    figures = {"alone_per_s": alone[0], "together_per_s": both, "ratio": ratio}
    return Finding(ratio <= 1.25 and min(both) <= 0.9 * alone[0], observed, figures)


def mixed_pool(stand: Stand) -> Finding:
    """Real and simulated GPUs in one pool: every row says which, and simulated durations stay exact."""
    devices = machine_of(stand, stand.device, "3x A100-SXM4-80GB").devices
    work = [stand.linear(stand.models["small_model"], duration_s=0.5 * stand.seconds, strategy="round_robin")] * 8
    result = stand.play(work, devices=devices)
    rows = result.tasks
    kinds = rows.groupby("provenance").size().to_dict()
    simulated = rows[rows.provenance == "simulated"]
    exact = bool((abs(simulated.finished_s - simulated.started_s - 0.5 * stand.seconds) < 1e-9).all())
    passed = bool((rows.state == COMPLETED).all()) and set(kinds) == {"measured", "simulated"} and exact
    observed = f"{kinds.get('measured', 0)} tasks measured, {kinds.get('simulated', 0)} simulated"
    return Finding(passed, observed + ("" if exact else ", durations not exact") + f"; {story(result)}")


def spare_takes_over(stand: Stand) -> Finding:
    """From a deadline that nobody answers to the next task's start, on a machine that keeps a spare worker."""
    hang = {"kind": "hang", "duration_s": 600.0, "timeout_s": 0.5, "retry_count": 0}
    took = []
    for number in range(stand.rounds):
        if number:  # the next spare has time to import torch
            stand.play([{"kind": "sleep", "duration_s": 6.0}])
        result = stand.play([hang, {"kind": "noop"}], slots=1)
        hung, following = result.task_list
        if hung.error_code != "timeout" or following.state != COMPLETED:
            return Finding(False, story(result))
        took.append((following.finished_s or 0.0) - (hung.finished_s or 0.0))
    median = statistics.median(took)
    observed = f"{median:.2f} s (to {max(took):.2f}) from deadline to free slot, grace {stand.kill_grace_s:g} s"
    return Finding(max(took) < stand.kill_grace_s + SPARE_S, observed, {"seconds": took})


def silent_worker(stand: Stand) -> Finding:
    """A worker that is stopped in its tracks answers no heartbeat: it is replaced and its task made again."""
    stand.play([{"kind": "noop"}])
    before = worker_pids()
    work = stand.linear(stand.models["small_model"], duration_s=2 * stand.seconds)

    def freeze() -> None:
        for pid in before:
            if is_worker_at_work(pid):
                os.kill(pid, signal.SIGSTOP)

    timer = threading.Timer(0.5 * stand.seconds, freeze)
    timer.start()
    result = stand.play([work], heartbeat_timeout=1.0)
    timer.join()
    outcomes = [attempt.outcome for attempt in attempts_of(result)]
    passed = outcomes == ["worker_crashed", "finished"] and result.task_list[0].state == COMPLETED
    return Finding(passed, f"attempts: {', '.join(map(str, outcomes))}")


def is_worker_at_work(pid: int) -> bool:
    """Whether the process has used CPU time within a moment: the spare worker has not."""
    try:
        process = psutil.Process(pid)
        before = sum(process.cpu_times()[:2])
        time.sleep(0.1)
        return sum(process.cpu_times()[:2]) > before
    except psutil.Error:
        return False


def sampler_keeps_up(stand: Stand) -> Finding:
    """How often readings really come, what they cost, and which of them this device gives."""
    history = History([stand.spec.gpu_id])
    told: list[str] = []
    sampler = Sampler(
        device_sources([stand.spec], lambda _: os.getpid(), lambda: {os.getpid()}),
        history,
        lambda _, reason: told.append(reason),
        lambda _, sample: told.append(str(sample.problem)),
    )
    sampler.start()
    time.sleep(5 * stand.seconds)
    sampler.close()
    times_s, _ = history.series("utilization_pct", float("inf"))
    rate = (len(times_s) - 1) / float(times_s[-1] - times_s[0])
    share = sampler.cpu_share
    sample = sampler.latest(stand.spec.gpu_id, 0.0) or DeviceSample()
    given = {name: value for name, value in asdict(sample).items() if value is not None}
    observed = f"{rate:.1f} readings/s, {share:.2%} of a core; given: {', '.join(given)}"
    passed = rate >= LEAST_RATE_HZ and share < MOST_SAMPLER_SHARE and not told
    return Finding(passed, "; ".join([observed, *told]), {"rate_hz": rate, "cpu_share": share, "sample": given})


def memory_within_reservation(stand: Stand) -> Finding:
    """What a task really used at its peak against what its kind says it needs, alone on its worker."""
    pairs = kinds_and_formats(stand)
    result = stand.play([record(stand, kind, dtype, iterations=1) for kind, dtype in pairs], slots=1)
    figures, over = {}, []
    for (kind, dtype), attempt in zip(pairs, attempts_of(result), strict=True):
        detail = attempt.detail or {}
        peak, reserved = detail.get("peak_memory_bytes"), detail.get("reserved_bytes")
        figures[f"{kind} {dtype}"] = {"peak_bytes": peak, "reserved_bytes": reserved}
        if peak is None or reserved is None or peak > 1.1 * reserved + 64 * 2**20:
            over.append(f"{kind} {dtype}: {peak} of {reserved}")
    shares = [(each["peak_bytes"] or 0) / each["reserved_bytes"] for each in figures.values() if each["reserved_bytes"]]
    worst = max(shares, default=0.0)
    observed = f"at most {worst:.2f} of what is reserved; {stand.spec.memory_total_bytes / GIB:.1f} GiB there"
    return Finding(not over, "; ".join([observed, *over]), figures)
