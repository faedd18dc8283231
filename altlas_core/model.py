"""The things the scheduler talks about. Slotted data, units in names, no behaviour beyond derived values.

Times are seconds on the run's clock (0 = start of the run), memory is bytes, temperature degrees Celsius, power watts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from altlas_core.generation import Generation

TaskState = Literal["QUEUED", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"]
QUEUED: Final = "QUEUED"
RUNNING: Final = "RUNNING"
COMPLETED: Final = "COMPLETED"
FAILED: Final = "FAILED"
CANCELLED: Final = "CANCELLED"
FINAL_STATES: Final = frozenset({COMPLETED, FAILED, CANCELLED})

DeviceState = Literal["AVAILABLE", "BUSY", "UNHEALTHY", "LOST"]
AVAILABLE: Final = "AVAILABLE"  # healthy, at least one free slot
BUSY: Final = "BUSY"  # healthy, every slot taken
UNHEALTHY: Final = "UNHEALTHY"  # over a threshold at its last check: takes no new task until a clean one
LOST: Final = "LOST"  # gone: what ran there has been queued again

PRIORITIES: Final = {"high": 0, "normal": 1, "low": 2}
PRIORITY_NAMES: Final = ("high", "normal", "low")

ErrorCode = Literal[
    "timeout", "too_large", "out_of_memory", "device_lost", "worker_crashed", "task_error", "queue_full"
]

GIB: Final = 1024**3


@dataclass(slots=True, frozen=True)
class Call:
    """A user's own function: where it is ("package.module:function") and its keyword arguments as JSON text."""

    target: str
    arguments: str = "{}"


@dataclass(slots=True, frozen=True)
class TaskSpec:
    """What its owner asked for. None means: the default of the settings, or what the kind of work needs."""

    submit_s: float = 0.0
    kind: str = "linear"
    duration_s: float | None = None
    iterations: float | None = None
    input_size: int = 1024
    output_size: int = 1024
    batch: int = 256
    memory_bytes: int | None = None
    priority: str = "normal"
    timeout_s: float | None = None
    retry_count: int | None = None
    gpu_id: int | None = None
    strategy: str | None = None
    cancel_s: float | None = None
    batch_id: str | None = None
    dtype: str = "fp32"
    call: Call | None = None
    generation: Generation | None = None


@dataclass(slots=True, eq=False)
class Demand:
    """What a task wants of a GPU; one object for all tasks alike, so that it can be a key. pin None: any GPU.

    `sizes` is (kind, input_size, output_size, batch, dtype).
    """

    memory_bytes: int
    pin: int | None
    strategy: str
    sizes: tuple[str, int, int, int, str]


@dataclass(slots=True, eq=False)
class Task:
    """One task on its way through the scheduler: the request with its defaults filled in, and what became of it.

    `level` is the priority as a number (0 high, 1 normal, 2 low). `memory_bytes` is what it reserves now: that of its
    demand, or more once it ran out of memory. `attempts` counts starts. `failures` counts attempts that failed by the
    task's own fault; `crashes` those in which its worker died. Only the distributor writes here.
    """

    index: int
    spec: TaskSpec
    level: int
    demand: Demand
    memory_bytes: int
    timeout_s: float
    retry_count: int
    submitted_s: float = 0.0
    state: TaskState = QUEUED
    gpu_id: int | None = None
    attempts: int = 0
    failures: int = 0
    crashes: int = 0
    started_s: float | None = None
    finished_s: float | None = None
    error_code: ErrorCode | None = None
    error: str | None = None
    attempt: Attempt | None = None

    @property
    def task_id(self) -> str:
        return f"task-{self.index:06d}"


@dataclass(slots=True, eq=False)
class Attempt:
    """One start of one task on one device. In a list of actions it is the order to start it.

    `solo`: it has the device to itself. `ended_s` is None while the device is still held. `outcome` is how it ended:
    finished, stopped, worker_replaced, or an error code.
    `iterations` is how many times the kernel ran; `detail` holds further figures a real device measured.
    `noted_bytes`: what it had reserved, noted where it ended otherwise than finished, since its task may ask for more
    the next time; see `reserved_bytes`.
    """

    task: Task
    number: int
    gpu_id: int
    started_s: float
    solo: bool = False
    stopping: bool = False
    ended_s: float | None = None
    outcome: str | None = None
    iterations: float = 0.0
    detail: dict[str, Any] | None = None
    noted_bytes: int | None = None

    @property
    def reserved_bytes(self) -> int:
        """Device memory that it reserves, or had reserved."""
        return self.task.memory_bytes if self.noted_bytes is None else self.noted_bytes


@dataclass(slots=True, frozen=True)
class DeviceSpec:
    """A device as it was found (or as it is simulated). What could not be read is None.

    `kind` is "simulated", "cpu" or "cuda"; `model` is the catalog name of a simulated device; `index` counts within
    its kind (the CUDA index of a real GPU); `cores` is the number of CPU cores a CPU device may use, `cpu_ids` which
    ones, where it is held to them. A real device that was split is several of these: `part` 0, 1, ... of `parts`, each
    with its share of the memory and all of the cores or multiprocessors.
    """

    gpu_id: int
    kind: str
    name: str
    memory_total_bytes: int
    model: str = ""
    index: int = 0
    uuid: str | None = None
    pci_id: str | None = None
    compute_capability: tuple[int, int] | None = None
    power_limit_w: float | None = None
    driver_version: str | None = None
    cores: int | None = None
    cpu_ids: tuple[int, ...] | None = None
    part: int = 0
    parts: int = 1

    @property
    def simulated(self) -> bool:
        return self.kind == "simulated"


@dataclass(slots=True)
class DeviceSample:
    """One reading of a device. A missing reading is None, never 0.

    `utilization_pct` is NVML's: the share of the past sample period in which a kernel was running. The `foreign_`
    values are the part that is not ours (other processes). Clocks are MHz. `throttle_reasons` names why the clocks are
    held down (empty: they are not). `ecc_corrected` and `ecc_uncorrected` count memory errors since the driver was
    loaded; `xid` is the last Xid error reported; `processes` counts compute processes, ours among them. `problem` is
    why the device takes no work just now although it answers (its worker keeps dying, a fatal Xid), in words.
    """

    utilization_pct: float | None = None
    memory_used_bytes: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    foreign_memory_bytes: int | None = None
    foreign_utilization_pct: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    throttle_reasons: tuple[str, ...] | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    xid: int | None = None
    processes: int | None = None
    problem: str | None = None


@dataclass(slots=True, eq=False)
class Device:
    """A device in the pool: what is reserved on it and how it is. Only the pool writes here.

    `capacity_bytes` is what tasks of ours may reserve in all; `free_bytes` what is left of it now. `running` counts the
    attempts that hold a slot; `solo`: one of them has the device to itself.
    """

    spec: DeviceSpec
    gpu_id: int
    slots: int
    bit: int
    capacity_bytes: int
    free_bytes: int
    running: int = 0
    solo: bool = False
    healthy: bool = True
    lost: bool = False
    reason: str | None = None
    sample: DeviceSample | None = None

    @property
    def state(self) -> DeviceState:
        if self.lost:
            return LOST
        if not self.healthy:
            return UNHEALTHY
        return BUSY if self.solo or self.running >= self.slots else AVAILABLE


@dataclass(slots=True, frozen=True)
class Check:
    """One thing that must be true of a run, with what was expected and what was seen, in words."""

    name: str
    passed: bool
    expected: str
    observed: str

    def __getitem__(self, name: str) -> bool | str:
        """By name, as in results.json: check["passed"]."""
        if name not in self.__slots__:
            raise KeyError(name)
        value: bool | str = getattr(self, name)
        return value
