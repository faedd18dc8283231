"""A GPU as a source of readings (see sampler.py) for the devices of ours on it: itself, or the parts it is split into.

Every round: utilization, memory, temperature, power, SM clock, throttle reasons, Xids. Thorough ones also what is slow
to read or to change: the memory clock, ECC counts, processes, whose load it is, and what the driver says is needed.

A part shares its card's readings, but for two. Its memory in use is its own worker's, where the driver tells memory
by process, else None; of the memory that others hold on the card it bears an equal share.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from altlas_core.backends.machine import GpuProcess
from altlas_core.backends.nvml import readings as tell
from altlas_core.backends.nvml.ask import Gpu, GpuGoneError, NvmlError, close_nvml, gpu_at, open_nvml
from altlas_core.backends.nvml.events import XidWatch
from altlas_core.backends.nvml.foreign import foreign_memory, foreign_utilization
from altlas_core.backends.nvml.xids import FALLEN_OFF_THE_BUS, problem_of
from altlas_core.model import DeviceSample, DeviceSpec

_UNKNOWN = ("NOT_FOUND", "INVALID_ARGUMENT")  # what NVML says of a UUID or index that it does not know


@dataclass(slots=True)
class _Slow:
    """What was read in the last thorough round."""

    memory_clock_mhz: float | None = None
    ecc: tuple[int | None, int | None] = (None, None)
    processes: int | None = None
    foreign_memory_bytes: int | None = None
    foreign_utilization_pct: float | None = None
    recovery: str | None = None


class GpuCard:
    """`pid_of(gpu_id)` is the worker of a device, if it has one now; `our_pids()` all processes whose load is ours."""

    def __init__(
        self,
        specs: Sequence[DeviceSpec],
        pid_of: Callable[[int], int | None] = lambda _: None,
        our_pids: Callable[[], Collection[int]] = frozenset,
    ) -> None:
        self.gpu_ids = tuple(spec.gpu_id for spec in specs)
        self._specs = specs
        self._place = specs[0].uuid if specs[0].uuid is not None else specs[0].index
        self._pid_of = pid_of
        self._our_pids = our_pids
        self._opened = False
        self._gpu: Gpu | None = None
        self._watch: XidWatch | None = None
        self._xid: int | None = None
        self._problem: str | None = None  # a fatal Xid is not forgotten: the GPU was not reset meanwhile
        self._slow = _Slow()

    def read(self, thorough: bool) -> list[DeviceSample]:
        """A sample for each of `gpu_ids`; all None where NVML as a whole does not answer. Raises GpuGoneError."""
        try:
            if thorough:
                self._open()
            gpu = self._gpu
            if gpu is None:
                return [DeviceSample() for _ in self.gpu_ids]
            self._take_xids()
            return self._samples(gpu, thorough)
        except GpuGoneError:
            self.close()
            raise

    def close(self) -> None:
        """May be called twice; the next thorough reading opens it again."""
        self._gpu = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._opened:
            self._opened = False
            close_nvml()

    def _open(self) -> None:
        if self._gpu is not None and not self._gpu.shut:
            return
        self.close()
        try:
            open_nvml()
            self._opened = True
            self._gpu = gpu_at(self._place)
        except NvmlError as error:
            if self._opened and error.code in _UNKNOWN:
                raise GpuGoneError("the driver does not know it") from error
            self.close()
            return
        self._watch = XidWatch(self._gpu)

    def _take_xids(self) -> None:
        for xid in self._watch.take() if self._watch is not None else ():
            self._xid = xid
            self._problem = problem_of(xid) or self._problem
        if self._xid == FALLEN_OFF_THE_BUS:
            raise GpuGoneError(f"Xid {FALLEN_OFF_THE_BUS}: it has fallen off the bus; restart the machine")

    def _samples(self, gpu: Gpu, thorough: bool) -> list[DeviceSample]:
        _, used_bytes, _ = tell.memory(gpu)
        busy_pct = tell.utilization_pct(gpu)
        listed = tell.processes(gpu) if thorough or self._specs[0].parts > 1 else None
        if thorough:
            self._slow = self._read_slow(gpu, listed, used_bytes, busy_pct)
        slow = self._slow
        whole = DeviceSample(
            utilization_pct=busy_pct,
            memory_used_bytes=used_bytes,
            temperature_c=tell.temperature_c(gpu),
            power_w=tell.power_w(gpu),
            foreign_memory_bytes=slow.foreign_memory_bytes,
            foreign_utilization_pct=slow.foreign_utilization_pct,
            sm_clock_mhz=tell.sm_clock_mhz(gpu),
            memory_clock_mhz=slow.memory_clock_mhz,
            throttle_reasons=tell.throttle_reasons(gpu),
            ecc_corrected=slow.ecc[0],
            ecc_uncorrected=slow.ecc[1],
            xid=self._xid,
            processes=slow.processes,
            problem=self._problem or slow.recovery,
        )
        return [whole if spec.parts == 1 else self._part(whole, spec, listed) for spec in self._specs]

    def _read_slow(
        self, gpu: Gpu, listed: Sequence[GpuProcess] | None, used_bytes: int | None, busy_pct: float | None
    ) -> _Slow:
        ours = frozenset(self._our_pids())
        needed = tell.recovery_needed(gpu)
        return _Slow(
            memory_clock_mhz=tell.memory_clock_mhz(gpu),
            ecc=tell.ecc_errors(gpu),
            processes=None if listed is None else len(listed),
            foreign_memory_bytes=foreign_memory(listed, used_bytes, ours),
            foreign_utilization_pct=foreign_utilization(
                listed, busy_pct, ours, used_bytes, lambda: tell.process_utilization(gpu)
            ),
            recovery=None if needed is None else f"the driver asks for {needed}",
        )

    def _part(self, whole: DeviceSample, spec: DeviceSpec, listed: Sequence[GpuProcess] | None) -> DeviceSample:
        pid = self._pid_of(spec.gpu_id)
        own = [process.memory_bytes for process in listed or () if process.pid == pid]
        foreign = whole.foreign_memory_bytes
        return replace(
            whole,
            memory_used_bytes=own[0] if own else None,
            foreign_memory_bytes=None if foreign is None else -(-foreign // spec.parts),
        )
