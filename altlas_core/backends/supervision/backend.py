"""Real devices, driver side: one supervised worker process per device, kinds "cpu" and "cuda".

The driver's thread gives orders here. One more thread, the supervisor, starts workers, reads all their answers and
posts them as facts; when a worker dies it reports what ran there and starts another. They meet in the lanes. A third,
the sampler, reads the devices.
"""

from __future__ import annotations

import atexit
import os
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from altlas_core.backends.base import Mailbox
from altlas_core.backends.sampling.history import History
from altlas_core.backends.sampling.sampler import Sampler
from altlas_core.backends.sampling.sources import device_sources
from altlas_core.backends.supervision.keeper import Keeper
from altlas_core.backends.supervision.lane import Lane
from altlas_core.backends.supervision.process import WorkerProcess, cores_of
from altlas_core.backends.supervision.supervisor import Supervisor
from altlas_core.errors import DeviceError, RunError
from altlas_core.events import DeviceSampled, Fact
from altlas_core.faults import Fault
from altlas_core.model import Attempt, DeviceSample, DeviceSpec

READY_TIMEOUT_S: Final = 120.0  # importing torch on a busy, slow machine
HEARTBEAT_TIMEOUT_S: Final = 10.0


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
        spare_workers: int = 0,
        heartbeat_timeout_s: float = HEARTBEAT_TIMEOUT_S,
        ready_timeout_s: float = READY_TIMEOUT_S,
    ) -> None:
        self._known: dict[tuple[Any, ...], Lane] = {}  # every device that was ever asked for
        self._ready_timeout_s = ready_timeout_s
        self._mailbox: Mailbox | None = None
        self._touched: set[Lane] = set()  # lanes with orders to flush; the driver's thread alone
        self._stops = 0  # about how many stops are unconfirmed: spares poll() a look at every lane
        self._news: deque[Lane] = deque()  # whose health is to be reported, by other threads
        self._supervisor: Supervisor | None = None
        self._sampler: Sampler | None = None
        self.set_up(devices, slots, seed, kill_grace_s, spare_workers, heartbeat_timeout_s)

    def set_up(
        self,
        devices: Sequence[DeviceSpec],
        slots: int,
        seed: int,
        kill_grace_s: float,
        spare_workers: int = 0,
        heartbeat_timeout_s: float = HEARTBEAT_TIMEOUT_S,
    ) -> None:
        """What the next `open` is for. A device of an earlier run keeps its worker, whatever its gpu_id is now."""
        self._stop_sampling()  # it reads the devices of the run before
        self._devices = tuple(devices)
        self._slots = slots
        self._seed = seed
        self._kill_grace_s = kill_grace_s
        self._spare_workers = spare_workers
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self.history = History([spec.gpu_id for spec in self._devices])
        places: Counter[tuple[Any, ...]] = Counter()
        self._lanes: dict[int, Lane] = {}  # by gpu_id
        for spec in self._devices:
            same = (spec.kind, spec.uuid, spec.index, spec.part, spec.parts, spec.cores, spec.cpu_ids)
            places[same] += 1  # named twice, it is two devices
            key = (*same, places[same])
            self._lanes[spec.gpu_id] = self._known.setdefault(key, Lane(spec, self._post, self._news.append))

    def devices(self) -> Sequence[DeviceSpec]:
        return self._devices

    @property
    def late(self) -> int:
        """Answers that came after their attempt had been given up, in this run."""
        return sum(lane.late for lane in self._lanes.values())

    def worker_pids(self) -> list[int | None]:
        """The process id of each device's worker; None where there is none now."""
        return [self._pid_of(spec.gpu_id) for spec in self._devices]

    def spare_pids(self) -> list[int]:
        """The process ids of the workers that have torch imported and no device yet."""
        free = [] if self._supervisor is None else self._supervisor.free()
        return [worker.pid for worker in free if worker.imported]

    # --- opening and closing --------------------------------------------------------------------------------------

    def open(self, mailbox: Mailbox) -> None:
        """Start a worker for each device and the spare ones, all at once, and wait until they are ready.

        Raises RunError; a spare worker that cannot start is none.
        """
        self._mailbox = None
        self._stop_sampling()
        try:
            supervisor = self._supervisor = self._supervisor or self._new_supervisor()
            self._touched.clear()
            for lane in set(self._known.values()).difference(self._lanes.values()):
                lane.rest()
            for spec in self._devices:
                self._lanes[spec.gpu_id].renew(spec, self._slots, self._seed, self._post)
            self._news.clear()
            self._mailbox = mailbox
            supervisor.staff(self._lanes.values(), self._spare_workers, self._heartbeat_timeout_s)
            self._wait_until_ready(supervisor)
            self._start_sampling()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._mailbox = None
        self._stop_sampling()
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.end()
            atexit.unregister(self.close)

    def _new_supervisor(self) -> Supervisor:
        try:
            keeper = Keeper()
        except OSError as error:
            raise RunError(f"no process can be started: {error}") from None
        supervisor = Supervisor(self._known.values(), self._new_worker, self._ready_timeout_s, keeper)
        supervisor.start()
        atexit.register(self.close)
        return supervisor

    def _new_worker(self, now: float) -> WorkerProcess:
        return WorkerProcess(max(cores_of(spec) for spec in self._devices), now)

    def _wait_until_ready(self, supervisor: Supervisor) -> None:
        until_s = time.monotonic() + 2 * self._ready_timeout_s + 5.0  # the supervisor gives up first
        for lane in self._lanes.values():
            with supervisor.changed:
                while not (lane.ready or lane.problem):
                    if not supervisor.changed.wait(until_s - time.monotonic()):
                        raise RunError(f"the worker of GPU {lane.spec.gpu_id} ({lane.spec.name}) did not become ready")
            if lane.problem:
                raise RunError(f"the worker of GPU {lane.spec.gpu_id} ({lane.spec.name}) {lane.problem}")
        with supervisor.changed:
            supervisor.changed.wait_for(supervisor.spares_settled, until_s - time.monotonic())

    def _post(self, fact: Fact) -> None:
        if self._mailbox is not None:
            self._mailbox.post(fact)

    # --- orders ---------------------------------------------------------------------------------------------------

    def start(self, now: float, attempt: Attempt) -> None:
        lane = self._lanes[attempt.gpu_id]
        if lane.start(attempt):
            self._touched.add(lane)
        elif not lane.lost:  # it has no worker just now, and gave the attempt back
            sample = self.sample(now, attempt.gpu_id) or DeviceSample(problem="it no longer answers")
            self._post(DeviceSampled(attempt.gpu_id, sample))  # or it would be given the next one at once

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
        """Send what could not be sent; kill the workers whose stops are overdue; report whose health has changed."""
        self.flush()
        if self._stops:
            at_s = time.monotonic()
            self._stops = sum(lane.kill_if_overdue(at_s) for lane in self._lanes.values())
        while self._news:
            lane = self._news.popleft()
            gpu_id = lane.spec.gpu_id
            sample = self.sample(now, gpu_id) if self._lanes.get(gpu_id) is lane else None
            if sample is not None:
                self._post(DeviceSampled(gpu_id, sample))

    # --- readings -------------------------------------------------------------------------------------------------

    def sample(self, now: float, gpu_id: int) -> DeviceSample | None:
        """The last reading; its `problem` says also why the device has no worker for a while."""
        return self._reading(gpu_id, None if self._sampler is None else self._sampler.latest(gpu_id, now))

    def mean_sample(self, now: float, gpu_id: int) -> DeviceSample | None:
        """As `sample`, with utilization and power as means since the call before."""
        return self._reading(gpu_id, None if self._sampler is None else self._sampler.mean(gpu_id, now))

    def _reading(self, gpu_id: int, sample: DeviceSample | None) -> DeviceSample | None:
        lane = self._lanes[gpu_id]
        if lane.lost or sample is None:
            return None
        complaint = lane.complaint
        return sample if complaint is None else replace(sample, problem=complaint)

    def _start_sampling(self) -> None:
        sources = device_sources(self._devices, self._pid_of, self._our_pids)
        self._sampler = Sampler(sources, self.history, self.lose_device, self._on_problem)
        self._sampler.start()

    def _stop_sampling(self) -> None:
        sampler, self._sampler = self._sampler, None
        if sampler is not None:
            sampler.close()

    def _on_problem(self, gpu_id: int, _sample: DeviceSample) -> None:
        self._news.append(self._lanes[gpu_id])

    def _pid_of(self, gpu_id: int) -> int | None:
        worker = self._lanes[gpu_id].worker
        return None if worker is None else worker.pid

    def _our_pids(self) -> list[int]:
        """The processes whose load is ours."""
        workers = [lane.worker for lane in list(self._known.values())]
        return [os.getpid(), *(worker.pid for worker in workers if worker is not None)]

    # --- faults ---------------------------------------------------------------------------------------------------

    def inject(self, now: float, fault: Fault) -> Fact | None:
        """Make a planned fault happen: lose_gpu, return_gpu, crash_worker, hang_task.

        Raises DeviceError for those of sensors.
        """
        if fault.kind == "lose_gpu":
            self.lose_device(fault.gpu_id, "taken away by the fault plan")
        elif fault.kind == "return_gpu":
            self.return_device(fault.gpu_id)
        elif fault.kind == "crash_worker":
            self.crash_worker(fault.gpu_id)
        elif fault.kind == "hang_task":
            self.hang_worker(fault.gpu_id)
        else:
            raise DeviceError(
                f"fault {fault.kind} at {fault.time_s:g} s: a real device cannot be made to read that; "
                "allowed on real devices: lose_gpu, return_gpu, crash_worker, hang_task; or use simulated ones"
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

    def hang_worker(self, gpu_id: int) -> None:
        """SIGSTOP the device's worker, if anything runs there: all that does hangs, and the heartbeat must find out."""
        self._lanes[gpu_id].hang()
