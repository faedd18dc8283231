"""Real devices, driver side: one supervised worker process per device, kinds "cpu" and "cuda".

The driver's thread gives orders here. One more thread, the supervisor, starts workers, reads all their answers and
posts them as facts; when a worker dies it reports what ran there and starts another. They meet in the lanes.
"""

from __future__ import annotations

import atexit
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

from altlas_core.backends.base import Mailbox
from altlas_core.backends.nvml import sample_gpu
from altlas_core.backends.torch_lane import Lane
from altlas_core.backends.torch_process import WorkerProcess, cores_of
from altlas_core.backends.torch_supervisor import Supervisor
from altlas_core.errors import DeviceError, RunError
from altlas_core.events import Fact
from altlas_core.faults import Fault
from altlas_core.model import Attempt, DeviceSample, DeviceSpec

READY_TIMEOUT_S: Final = 120.0  # importing torch on a busy, slow machine


class TorchBackend:
    """Implements backends.base.Backend, and for the driver: flush() after a batch of orders, poll(now) at each look.

    It may be opened again, for another run, after the first has ended; `set_up` says for which devices and how. Workers
    stay, and find everything as if they were new: no weight, reading or lost device of one run is there in the next.
    """

    def __init__(
        self,
        devices: Sequence[DeviceSpec],
        slots: int,
        seed: int,
        kill_grace_s: float,
        ready_timeout_s: float = READY_TIMEOUT_S,
    ) -> None:
        self._known: dict[tuple[Any, ...], Lane] = {}  # every device that was ever asked for
        self._ready_timeout_s = ready_timeout_s
        self._mailbox: Mailbox | None = None
        self._touched: set[Lane] = set()  # lanes with orders to flush; the driver's thread alone
        self._stops = 0  # about how many stops are unconfirmed: spares poll() a look at every lane
        self._supervisor: Supervisor | None = None
        self.set_up(devices, slots, seed, kill_grace_s)

    def set_up(self, devices: Sequence[DeviceSpec], slots: int, seed: int, kill_grace_s: float) -> None:
        """What the next `open` is for. A device of an earlier run keeps its worker, whatever its gpu_id is now."""
        self._devices = tuple(devices)
        self._slots = slots
        self._seed = seed
        self._kill_grace_s = kill_grace_s
        places: Counter[tuple[Any, ...]] = Counter()
        self._lanes = []
        for spec in self._devices:
            same = (spec.kind, spec.uuid, spec.index, spec.cores)
            places[same] += 1  # named twice, it is two devices
            self._lanes.append(self._known.setdefault((*same, places[same]), Lane(spec, self._post)))

    def devices(self) -> Sequence[DeviceSpec]:
        return self._devices

    @property
    def late(self) -> int:
        """Answers that came after their attempt had been given up."""
        return sum(lane.late for lane in self._lanes)

    def worker_pids(self) -> list[int | None]:
        """The process id of each device's worker; None where there is none now."""
        return _pids(self._lanes)

    # --- opening and closing --------------------------------------------------------------------------------------

    def open(self, mailbox: Mailbox) -> None:
        """Start a worker for each device, all at once, and wait until they are ready. Raises RunError."""
        if self._supervisor is None:
            self._supervisor = Supervisor(self._known.values(), self._new_worker, self._ready_timeout_s)
            atexit.register(self.close)
        try:
            self._mailbox = None
            self._touched.clear()
            for lane in set(self._known.values()).difference(self._lanes):
                lane.rest()
            for lane, spec in zip(self._lanes, self._devices, strict=True):
                if lane.renew(spec, self._slots, self._seed, self._post):
                    self._supervisor.spawn(lane)
            self._mailbox = mailbox
            self._wait_until_ready(self._supervisor)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.end()
            atexit.unregister(self.close)

    def _new_worker(self, spec: DeviceSpec) -> WorkerProcess:
        return WorkerProcess(spec, self._slots, self._seed)

    def _wait_until_ready(self, supervisor: Supervisor) -> None:
        until_s = time.monotonic() + self._ready_timeout_s + 5.0  # the supervisor gives up first
        for lane in self._lanes:
            with supervisor.changed:
                while not (lane.ready or lane.problem):
                    if not supervisor.changed.wait(until_s - time.monotonic()):
                        raise RunError(f"the worker of GPU {lane.spec.gpu_id} ({lane.spec.name}) did not become ready")
            if lane.problem:
                raise RunError(f"the worker of GPU {lane.spec.gpu_id} ({lane.spec.name}) {lane.problem}")

    def _post(self, fact: Fact) -> None:
        if self._mailbox is not None:
            self._mailbox.post(fact)

    # --- orders ---------------------------------------------------------------------------------------------------

    def start(self, now: float, attempt: Attempt) -> None:
        lane = self._lanes[attempt.gpu_id]
        if lane.start(attempt):
            self._touched.add(lane)

    def stop(self, now: float, attempt: Attempt, reason: str) -> None:
        lane = self._lanes[attempt.gpu_id]
        if lane.stop((attempt.task.index, attempt.number), time.monotonic() + self._kill_grace_s):
            self._stops += 1
            self._touched.add(lane)

    def flush(self) -> None:
        """Send the orders given since the last call, one message to each worker."""
        if self._touched:
            self._touched = {lane for lane in self._touched if not lane.send()}  # those stay for the next look

    def poll(self, now: float) -> None:
        """Send what could not be sent; kill the workers whose stops are overdue."""
        self.flush()
        if self._stops:
            self._stops = sum(lane.kill_if_overdue() for lane in self._lanes)

    # --- readings -------------------------------------------------------------------------------------------------

    def sample(self, now: float, gpu_id: int) -> DeviceSample | None:
        """On CUDA what NVML says; on a CPU device its worker's share of the device's cores, and its resident memory.

        The cores of a CPU device are nobody's own, so what other processes do on them is None.
        """
        lane = self._lanes[gpu_id]
        if lane.lost:
            return None
        if lane.spec.kind == "cuda":
            ours = [pid for pid in _pids(self._known.values()) if pid is not None]
            uuid = lane.spec.uuid
            return sample_gpu(uuid if uuid is not None else lane.spec.index, (*ours, os.getpid()))
        worker = lane.worker
        if worker is None or not worker.ready:
            return DeviceSample()
        percent, resident_bytes = worker.usage(cores_of(lane.spec))
        return DeviceSample(utilization_pct=percent, memory_used_bytes=resident_bytes)

    # --- faults ---------------------------------------------------------------------------------------------------

    def inject(self, now: float, fault: Fault) -> Fact | None:
        """Make a planned fault happen: lose_gpu, return_gpu, crash_worker. Raises DeviceError for those of sensors."""
        if fault.kind == "lose_gpu":
            self.lose_device(fault.gpu_id, "taken away by the fault plan")
        elif fault.kind == "return_gpu":
            self.return_device(fault.gpu_id)
        elif fault.kind == "crash_worker":
            self.crash_worker(fault.gpu_id)
        else:
            raise DeviceError(
                f"fault {fault.kind} at {fault.time_s:g} s: a real device cannot be made to read that; "
                "allowed on real devices: lose_gpu, return_gpu, crash_worker; or use simulated ones"
            )
        return None  # what happens is reported when it has happened

    def lose_device(self, gpu_id: int, reason: str) -> None:
        """Kill the device's worker, do not replace it, and report DeviceLost."""
        self._lanes[gpu_id].lose(reason)

    def return_device(self, gpu_id: int) -> None:
        """Start a worker for a lost device; DeviceReturned is reported when it is ready."""
        lane = self._lanes[gpu_id]
        if lane.take_back() and self._supervisor is not None:
            self._supervisor.spawn(lane)

    def crash_worker(self, gpu_id: int) -> None:
        """SIGKILL the device's worker, as if it had died by itself."""
        self._lanes[gpu_id].crash()


def _pids(lanes: Iterable[Lane]) -> list[int | None]:
    workers = [lane.worker for lane in lanes]
    return [None if worker is None else worker.pid for worker in workers]
