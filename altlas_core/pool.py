"""The GPU pool: who is healthy, what is reserved, and indexes so that a choice never scans the GPUs.

Sets of GPUs are bit masks (bit i = gpu_id i). A placement asks the strategy for one GPU out of the mask of those with a
free slot; only when that one turns out to lack memory is it noted as a miss for this need (until it gives some back)
and the next asked for. So a decision costs the same on 8 GPUs as on 1,024.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from random import Random
from typing import Any

from altlas_core.config_schema import GpuSettings
from altlas_core.errors import StrategyError
from altlas_core.model import GIB, Attempt, Device, DeviceSample, DeviceSpec, Task
from altlas_core.strategies import USER_STRATEGIES, Gpu, lowest
from altlas_core.task_queue import Need


class Pool:
    """Devices with slots and memory. Masks: `healthy`, `open` (healthy with a free slot), `by_load[n]` (healthy with n
    slots taken, n < slots)."""

    __slots__ = (
        "_detection",
        "_free_heap",
        "_indexed",
        "_missed",
        "by_load",
        "cursor",
        "devices",
        "healthy",
        "open",
        "rng",
        "slots",
    )

    def __init__(self, settings: GpuSettings, specs: Sequence[DeviceSpec], seed: int) -> None:
        self.slots = settings.workload.max_concurrent_tasks_per_gpu
        self._detection = settings.detection
        self.rng = Random(seed)
        self.cursor = -1
        self.devices: list[Device] = []
        for gpu_id, spec in enumerate(specs):
            capacity = int(settings.detection.memory_threshold * spec.memory_total_bytes)
            if settings.memory_limit_bytes is not None:
                capacity = min(capacity, settings.memory_limit_bytes)
            self.devices.append(Device(spec, gpu_id, self.slots, 1 << gpu_id, capacity, capacity))
        everyone = (1 << len(self.devices)) - 1
        self.healthy = self.open = everyone
        self.by_load = [everyone] + [0] * (self.slots - 1)
        self._missed: set[Need] = set()
        self._indexed = False  # whether free memory is followed in the misses or the heap
        self._free_heap: list[tuple[int, int]] | None = None  # (-free_bytes, gpu_id), kept once somebody asks

    # --- choosing -------------------------------------------------------------------------------------------------

    def allowed(self, need: Need) -> int:
        """The mask of GPUs, lost ones left out, that could serve a need if they were empty and healthy."""
        mask = 0
        for device in self.devices:
            if not device.lost and device.capacity_bytes >= need.memory_bytes:
                mask |= device.bit
        return mask if need.pin is None else mask & (1 << need.pin)

    def place(self, task: Task, need: Need, closed: int) -> Device | None:
        """The GPU for a task now, or None. `closed` is a mask of GPUs it may not use. Raises StrategyError."""
        candidates = self.candidates(need) if need.misses or need.narrowed else self.open & need.allowed
        if closed:
            candidates &= ~closed
        choose = need.choose
        if choose is None:
            return self._place_by_user(task, need, candidates)
        memory_bytes, before = need.memory_bytes, self.cursor
        while candidates:
            device = self.devices[choose(task, candidates, self)]
            if device.free_bytes >= memory_bytes or not memory_bytes:
                return device
            self._note_miss(need, device)
            candidates &= ~device.bit
        self.cursor = before  # whoever has no room is not passed over next time
        return None

    def candidates(self, need: Need) -> int:
        """The mask of GPUs with a slot that may serve a need now; some may still turn out to lack the memory."""
        mask = self.open & need.allowed
        mask &= ~need.misses
        if need.solo:
            mask &= self.by_load[0]
        if need.strategy == "single_gpu" and mask:
            usable = self.healthy & need.allowed
            mask &= usable & -usable
        return mask

    def roomiest(self, need: Need) -> Device | None:
        """Of the healthy GPUs that could serve a need once empty, the one with most free memory now; the lowest id."""
        usable = self.healthy & need.allowed
        if need.strategy == "single_gpu":
            usable &= -usable
        found = [device for device in self.devices if device.bit & usable and self.could_hold(device, need)]
        return max(found, key=lambda device: (device.free_bytes, -device.gpu_id), default=None)

    def could_hold(self, device: Device, need: Need) -> bool:
        """Whether the device would have room for a need if nothing of ours were on it."""
        return device.healthy and self._budget(device) >= need.memory_bytes

    def most_free(self, candidates: int) -> int:
        """The gpu_id with the most memory left among `candidates`; the lowest among equals."""
        heap = self._free_heap
        if heap is None:
            heap = self._free_heap = [(-device.free_bytes, device.gpu_id) for device in self.devices]
            heapq.heapify(heap)
            self._indexed = True
        aside = []
        found = -1
        while heap:
            free, gpu_id = heap[0]
            device = self.devices[gpu_id]
            if device.free_bytes == -free and device.bit & candidates:
                found = gpu_id
                break
            heapq.heappop(heap)
            if device.free_bytes == -free and device.bit & self.open:
                aside.append((free, gpu_id))
        for entry in aside:
            heapq.heappush(heap, entry)
        return found if found >= 0 else lowest(candidates)

    def _place_by_user(self, task: Task, need: Need, candidates: int) -> Device | None:
        offered = {}
        while candidates:
            device = self.devices[lowest(candidates)]
            candidates ^= device.bit
            if device.free_bytes >= need.memory_bytes or not need.memory_bytes:
                offered[device.gpu_id] = self.view(device)
        if not offered:
            return None
        name = need.strategy
        try:
            chosen = USER_STRATEGIES[name](task, list(offered.values()))
        except (Exception, SystemExit) as error:  # whatever a function of the user's does
            raise StrategyError(f"strategy '{name}' raised {type(error).__name__}: {error} ({task.task_id})") from error
        if chosen is None:
            return None
        gpu_id: Any = getattr(chosen, "gpu_id", chosen)
        if type(gpu_id) is not int or gpu_id not in offered:
            raise StrategyError(
                f"strategy '{name}' chose {chosen!r} for {task.task_id}; it must return one of the GPUs it was offered "
                f"(gpu_id {', '.join(map(str, offered))}) or None"
            )
        return self.devices[gpu_id]

    def view(self, device: Device) -> Gpu:
        sample = device.sample or DeviceSample()
        return Gpu(
            device.gpu_id,
            device.spec.name,
            device.spec.memory_total_bytes,
            device.free_bytes,
            device.running,
            device.slots - device.running,
            sample.utilization_pct,
            sample.temperature_c,
            sample.power_w,
        )

    def _note_miss(self, need: Need, device: Device) -> None:
        need.misses |= device.bit
        self._missed.add(need)
        self._indexed = True

    # --- reserving ------------------------------------------------------------------------------------------------

    def reserve(self, device: Device, attempt: Attempt) -> None:
        """Take a slot (all of them, for a solo attempt) and memory on a healthy device."""
        device.free_bytes -= attempt.task.memory_bytes
        by_load, bit, load = self.by_load, device.bit, device.running
        by_load[load] ^= bit
        device.running = load = load + 1
        if load < self.slots:
            by_load[load] ^= bit
        if load == self.slots or attempt.solo:
            self.open ^= bit
            device.solo = attempt.solo
        if self._indexed:
            self._index(device)

    def release(self, attempt: Attempt) -> None:
        """Give back what an attempt held."""
        device = self.devices[attempt.gpu_id]
        device.free_bytes += attempt.task.memory_bytes
        load = device.running
        device.running = load - 1
        if device.healthy:  # else it is in no mask until it is well
            by_load, bit = self.by_load, device.bit
            by_load[load - 1] ^= bit
            if load == self.slots:
                self.open ^= bit
            else:
                by_load[load] ^= bit
                if device.solo:
                    self.open ^= bit
        device.solo = False
        if self._indexed:
            self._index(device)

    def _index(self, device: Device) -> None:
        """Its free memory has changed: needs it was too full for may ask again, and the heap learns of it."""
        for need in list(self._missed):
            need.misses &= ~device.bit
            if not need.misses:
                self._missed.discard(need)
        heap = self._free_heap
        if heap is None:
            self._indexed = bool(self._missed)
        elif len(heap) > 8 * len(self.devices) + 64:
            self._free_heap = None  # made anew when it is asked for
        else:
            heapq.heappush(heap, (-device.free_bytes, device.gpu_id))

    # --- health ---------------------------------------------------------------------------------------------------

    def check(self, device: Device, sample: DeviceSample) -> None:
        """Take a health reading: over a threshold means UNHEALTHY, a clean one AVAILABLE or BUSY again."""
        reserved = self._budget(device) - device.free_bytes
        device.sample = sample
        device.free_bytes = self._budget(device) - reserved
        self._index(device)
        device.reason = self._complaint(device, sample)
        self._set_healthy(device, device.reason is None)

    def _budget(self, device: Device) -> int:
        """What tasks of ours may reserve in all while others hold what the last reading says, bytes."""
        foreign = device.sample.foreign_memory_bytes if device.sample is not None else None
        share = int(self._detection.memory_threshold * device.spec.memory_total_bytes)
        return min(device.capacity_bytes, share - (foreign or 0))

    def _complaint(self, device: Device, sample: DeviceSample) -> str | None:
        limits = self._detection
        if sample.problem is not None:
            return sample.problem
        if sample.temperature_c is not None and sample.temperature_c > limits.max_temperature:
            return f"temperature {sample.temperature_c:.1f} C is over max_temperature {limits.max_temperature:g} C"
        load = sample.foreign_utilization_pct
        if load is not None and load > 100 * limits.utilization_threshold:
            return f"other processes use {load:.0f} %, over utilization_threshold {limits.utilization_threshold:g}"
        foreign = sample.foreign_memory_bytes
        if foreign is not None and foreign > limits.memory_threshold * device.spec.memory_total_bytes:
            return f"other processes hold {foreign / GIB:.2f} GiB, over memory_threshold {limits.memory_threshold:g}"
        return None

    def lose(self, device: Device, reason: str) -> None:
        """The device is gone: it takes nothing more. What ran there is still to be released."""
        self._set_healthy(device, False)
        device.lost, device.reason = True, reason

    def take_back(self, device: Device) -> None:
        """A lost device answers again; it stays UNHEALTHY until a clean check."""
        device.lost = False
        device.reason = "back after it was lost; not yet checked"

    def _set_healthy(self, device: Device, healthy: bool) -> None:
        if device.healthy == healthy:
            return
        device.healthy = healthy
        bit = device.bit
        self.healthy ^= bit
        if device.running < self.slots:
            self.by_load[device.running] ^= bit
        if healthy and device.running < self.slots and not device.solo:
            self.open |= bit
        else:
            self.open &= ~bit
