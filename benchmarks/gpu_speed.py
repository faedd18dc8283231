"""The slow checks of gpu_check.py: the distributor against a bare torch loop, and the scenarios."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from gpu_stand import Finding, Stand, attempts_of

from altlas_core.backends.cuda_visible import DEVICE_ORDER
from altlas_core.errors import AltlasError
from altlas_core.scenarios import SCENARIOS

LEAST_RATIO: Final = {"large_model": 0.98}  # of the bare loop's rate; the others are stated
SCENARIO_LIMIT_S: Final = 150.0


class BareLoop:
    """The product of a linear task, in a loop of plain torch in this process."""

    def __init__(self, stand: Stand, size: int) -> None:
        os.environ.update(DEVICE_ORDER)  # GPU numbers mean here what they mean to NVML
        import torch

        self._torch = torch
        self._cuda = stand.cuda
        if not self._cuda:
            torch.set_num_threads(max(1, stand.spec.cores or 1))
        torch.set_float32_matmul_precision("highest")
        device = torch.device("cuda", stand.spec.index) if self._cuda else torch.device("cpu")
        self._x = torch.empty(stand.batch, size, device=device).uniform_(-1, 1)
        self._weight = torch.empty(size, size, device=device).uniform_(-1, 1)
        self._y = torch.empty(stand.batch, size, device=device)
        self._many = 1
        while self._take(self._many) < 0.05 and self._many < 1 << 16:  # waits for the device every 50 ms or so
            self._many *= 2

    def _take(self, count: int) -> float:
        """Seconds for `count` products."""
        begin = time.perf_counter()
        for _ in range(count):
            self._torch.mm(self._x, self._weight, out=self._y)
        if self._cuda:
            self._torch.cuda.synchronize(self._y.device)
        return time.perf_counter() - begin

    def rate(self, seconds: float) -> float:
        """Iterations per second."""
        count, spent_s = 0, 0.0
        while spent_s < seconds:
            spent_s += self._take(self._many)
            count += self._many
        return count / spent_s


def our_rate(stand: Stand, size: int) -> float | None:
    """Iterations per second of one task, from its start to its end as the scheduler sees them; None if it failed.

    A task before it makes the weight, which the bare loop has as well before it is timed.
    """
    first = stand.linear(size, iterations=1)
    result = stand.play([first, stand.linear(size, duration_s=stand.seconds)], slots=1)
    timed = attempts_of(result)[-1]
    if timed.outcome != "finished" or timed.ended_s is None or len(attempts_of(result)) != 2:
        return None
    return timed.iterations / (timed.ended_s - timed.started_s)


def paired_rates(stand: Stand, size: int) -> list[tuple[float, float]]:
    """(ours, bare) iterations per second of each round, in turn, so that clocks and heat are the same for both.

    Raises AltlasError if a task did not finish.
    """
    bare = BareLoop(stand, size)
    pairs = []
    for _ in range(stand.rounds):
        theirs = bare.rate(stand.seconds)
        ours = our_rate(stand, size)
        if ours is None:
            raise AltlasError("a task did not finish")
        pairs.append((ours, theirs))
    return pairs


def throughput(model: str, stand: Stand) -> Finding:
    """The median of the ratios of all rounds."""
    size = stand.models[model]
    try:
        pairs = paired_rates(stand, size)
    except AltlasError as error:
        return Finding(False, str(error))
    ratio = statistics.median(a / b for a, b in pairs)
    tflop = 2.0 * stand.batch * size * size / 1e12
    mine, bare_rate = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    figures = {"ratio": ratio, "tflops": mine * tflop, "bare_tflops": bare_rate * tflop, "iterations_per_s": mine}
    observed = f"{ratio:.1%}: {mine * tflop:.3g} against {bare_rate * tflop:.3g} TFLOP/s"
    return Finding(ratio >= LEAST_RATIO.get(model, 0.0), observed, figures)


# --- the scenarios ----------------------------------------------------------------------------------------------------


def scenario(name: str, stand: Stand, time_scale: float = 0.1) -> Finding:
    """Through the command line, as a person would run it."""
    notebook = Path(__file__).resolve().parents[1] / "notebooks" / SCENARIOS[name].notebook
    if not notebook.is_file():
        return Finding(None, f"{notebook.name} is not there")
    command = [sys.executable, "-m", "altlas_core.cli", "run", name, "--json", "--backend", stand.spec.kind]
    command += ["--devices", stand.device, "--time-scale", str(time_scale), "--reports-dir", str(stand.reports)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=SCENARIO_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return Finding(False, f"not done after {SCENARIO_LIMIT_S:g} s")
    try:
        found = json.loads(ended.stdout)
        checks = found["scenarios"][name]["checks"]
    except (ValueError, KeyError):
        return Finding(False, f"exit status {ended.returncode}: {ended.stderr.strip()[-200:]}")
    broken = [f"{check['name']}: {check['observed']}" for check in checks if not check["passed"]]
    observed = "; ".join([f"{len(checks) - len(broken)} of {len(checks)} checks hold", *broken])
    passed = ended.returncode == 0 and bool(checks) and not broken
    figures = {"wall_s": found["scenarios"][name]["wall_s"], "report": found["report"]}
    return Finding(passed, observed, figures)
