"""What reading the devices costs: CPU time of the sampler's thread as a share of one core, and rounds per second.

    python -m benchmarks.sampler [--quick]

CPU devices: two busy processes in the place of workers. Eight GPUs: the real pynvml on the tests' stand-in for the
driver's library, which is written in Python, so its time is counted and the driver's is not. GPUs of this machine: the
real thing, where there are any.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from fake_nvml import FakeNvml, gpus, installed

from altlas_core.backends.nvml.gpus import read_gpus
from altlas_core.backends.sampling.history import History
from altlas_core.backends.sampling.sampler import BUDGET, INTERVAL_S, Sampler
from altlas_core.backends.sampling.sources import device_sources
from altlas_core.model import GIB, DeviceSample, DeviceSpec
from benchmarks.timing import script


def cost(specs: Sequence[DeviceSpec], seconds: float, pid_of: Callable[[int], int | None]) -> dict[str, Any]:
    """Of a sampler that reads these devices for so long."""
    history = History([spec.gpu_id for spec in specs])
    sampler = Sampler(device_sources(specs, pid_of, lambda: {os.getpid()}), history, _lost, _problem)
    sampler.start()
    time.sleep(seconds)
    sampler.close()
    times_s, _ = history.series("utilization_pct", float("inf"))
    return {
        "devices": len(specs),
        "cpu_share": sampler.cpu_share,
        "rounds_per_s": (len(times_s) - 1) / float(times_s[-1] - times_s[0]),
    }


def _lost(gpu_id: int, reason: str) -> None:
    raise RuntimeError(f"GPU {gpu_id} was lost: {reason}")


def _problem(gpu_id: int, sample: DeviceSample) -> None:
    raise RuntimeError(f"GPU {gpu_id}: {sample.problem}")


@contextmanager
def busy_processes(count: int) -> Iterator[list[int]]:
    """Their process ids."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def cpu_devices(seconds: float) -> dict[str, Any]:
    with busy_processes(2) as pids:
        return cost([DeviceSpec(i, "cpu", "CPU", GIB, cores=1) for i in range(2)], seconds, pids.__getitem__)


def fake_gpus(seconds: float) -> dict[str, Any]:
    library = FakeNvml(gpus(8, processes=[(os.getpid(), 100)]))
    with installed(library):
        return cost(_specs([gpu.uuid.decode() for gpu in library.devices if gpu.uuid]), seconds, lambda _: None)


def real_gpus(seconds: float) -> dict[str, Any] | None:
    uuids = [gpu.uuid for gpu in read_gpus().gpus if gpu.uuid is not None]
    return cost(_specs(uuids), seconds, lambda _: None) if uuids else None


def _specs(uuids: Sequence[str]) -> list[DeviceSpec]:
    return [DeviceSpec(i, "cuda", "GPU", GIB, uuid=uuid) for i, uuid in enumerate(uuids)]


def measure(quick: bool) -> dict[str, Any]:
    seconds = 2.0 if quick else 6.0
    cases = {
        "2 CPU devices": cpu_devices(seconds),
        "8 GPUs (stand-in for the driver)": fake_gpus(seconds),
        "GPUs of this machine": real_gpus(seconds),
    }
    return {
        "seconds": seconds,
        "budget": BUDGET,
        "most_rounds_per_s": 1.0 / INTERVAL_S,
        "cases": {name: found for name, found in cases.items() if found is not None},
    }


if __name__ == "__main__":
    script(__doc__, measure)
