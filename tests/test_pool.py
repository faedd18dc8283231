"""The pool: its masks and indexes against a recount, its strategies against plain reference functions."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scheduling import machine
from scheduling import settings as make_settings

import altlas_core as altlas
from altlas_core.errors import StrategyError
from altlas_core.model import GIB, Attempt, Demand, Device, DeviceSample, Task, TaskSpec
from altlas_core.pool import Pool
from altlas_core.strategies import STRATEGIES, USER_STRATEGIES, Gpu, nth
from altlas_core.task_queue import Need

SPEC = TaskSpec(duration_s=1.0)
SIZES = (10, 10, 8, 12, 10, 6)


def make_pool(*sizes: float, slots: int = 3, seed: int = 1, **overrides: Any) -> Pool:
    made = make_settings(overrides, max_concurrent_tasks_per_gpu=slots)
    return Pool(made.gpu, machine(*sizes), seed)


def make_task(gib: float = 1, index: int = 0, strategy: str = "least_loaded") -> Task:
    size = int(gib * GIB)
    return Task(index, SPEC, 1, Demand(size, None, strategy, ("linear", 1, 1, 1)), size, 300.0, 3)


def make_need(pool: Pool, gib: float, strategy: str, pin: int | None = None, solo: bool = False) -> Need:
    need = Need(int(gib * GIB), pin, strategy, solo)
    need.allowed = pool.allowed(need)
    return need


# --- plain references -------------------------------------------------------------------------------------------------


def fitting(pool: Pool, need: Need, closed: int = 0) -> list[Device]:
    """The GPUs a task may use now, counted afresh from the devices alone."""
    found = []
    for device in pool.devices:
        busy = device.solo or device.running >= device.slots or (need.solo and device.running > 0)
        pinned_elsewhere = need.pin is not None and need.pin != device.gpu_id
        if not device.lost and device.healthy and not busy and not pinned_elsewhere and not closed >> device.gpu_id & 1:
            found.append(device)
    if need.strategy == "single_gpu":
        could = [
            device.gpu_id
            for device in pool.devices
            if device.healthy and device.capacity_bytes >= need.memory_bytes and need.pin in (None, device.gpu_id)
        ]
        found = [device for device in found if could and device.gpu_id == could[0]]
    return [device for device in found if device.free_bytes >= need.memory_bytes]


def reference(strategy: str, fits: list[Device], last: int) -> set[int]:
    """The gpu_ids a strategy may choose of those that fit, `last` being the one round_robin chose before."""
    if not fits:
        return {-1}
    if strategy == "round_robin":
        after = [device.gpu_id for device in fits if device.gpu_id > last]
        return {min(after) if after else fits[0].gpu_id}
    if strategy == "least_loaded":
        return {min(fits, key=lambda device: (device.running, device.gpu_id)).gpu_id}
    if strategy == "memory_optimized":
        return {min(fits, key=lambda device: (-device.free_bytes, device.gpu_id)).gpu_id}
    if strategy == "random":
        return {device.gpu_id for device in fits}
    return {fits[0].gpu_id}


class PoolMachine(RuleBasedStateMachine):
    """Anything that can happen to a pool, in any order."""

    @initialize(slots=st.integers(1, 4), only=st.sampled_from([None, *STRATEGIES]))
    def begin(self, slots: int, only: str | None) -> None:
        self.pool = make_pool(*SIZES, slots=slots)
        self.needs = [
            make_need(self.pool, gib, strategy, pin, solo)
            for strategy in STRATEGIES
            if only in (None, strategy)
            for gib, pin, solo in ((1, None, False), (5, None, False), (9, None, False), (3, 3, False), (2, None, True))
        ]
        self.held: list[Attempt] = []
        self.last = -1  # what round_robin chose last
        self.count = 0

    @rule(which=st.integers(0, 999), closed=st.sampled_from([0, 0, 0, 1, 0b101000]))
    def place(self, which: int, closed: int) -> None:
        need = self.needs[which % len(self.needs)]
        task = make_task(need.memory_bytes / GIB, self.count, need.strategy)
        self.count += 1
        expected = reference(need.strategy, fitting(self.pool, need, closed), self.last)
        device = self.pool.place(task, need, closed)
        chosen = -1 if device is None else device.gpu_id
        assert chosen in expected, f"{need.strategy} chose {chosen}, should be one of {expected}"
        if device is None:
            return
        if need.strategy == "round_robin":
            self.last = chosen
        attempt = Attempt(task, 1, chosen, 0.0, need.solo)
        self.pool.reserve(device, attempt)
        self.held.append(attempt)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @rule(
        gpu_id=st.integers(0, len(SIZES) - 1),
        hot=st.booleans(),
        foreign=st.sampled_from([0, 0, 0, 2, 6, None]),
    )
    def check(self, gpu_id: int, hot: bool, foreign: int | None) -> None:
        device = self.pool.devices[gpu_id]
        if not device.lost:
            bytes_ = None if foreign is None else foreign * GIB
            self.pool.check(device, DeviceSample(0.0, 0, 99.0 if hot else 40.0, 60.0, bytes_, 0.0))

    @rule(gpu_id=st.integers(0, len(SIZES) - 1))
    def lose(self, gpu_id: int) -> None:
        """As the distributor does: what ran there is released after."""
        device = self.pool.devices[gpu_id]
        if device.lost:
            return
        self.pool.lose(device, "gone")
        for need in self.needs:
            need.allowed &= ~device.bit
        for attempt in [attempt for attempt in self.held if attempt.gpu_id == gpu_id]:
            self.held.remove(attempt)
            self.pool.release(attempt)

    @rule(gpu_id=st.integers(0, len(SIZES) - 1))
    def come_back(self, gpu_id: int) -> None:
        device = self.pool.devices[gpu_id]
        if device.lost:
            self.pool.take_back(device)
            for need in self.needs:
                need.allowed = self.pool.allowed(need)

    @invariant()
    def the_masks_agree_with_a_recount(self) -> None:
        if not hasattr(self, "pool"):
            return
        pool = self.pool
        healthy = open_ = 0
        by_load = [0] * pool.slots  # only those with a free slot
        for device in pool.devices:
            held = [attempt for attempt in self.held if attempt.gpu_id == device.gpu_id]
            assert device.running == len(held)
            assert device.solo == any(attempt.solo for attempt in held)
            assert not device.solo or len(held) == 1
            reserved = sum(attempt.task.memory_bytes for attempt in held)
            foreign = device.sample.foreign_memory_bytes if device.sample is not None else 0
            assert device.free_bytes == device.spec.memory_total_bytes - (foreign or 0) - reserved
            assert not (device.lost and device.healthy)
            if device.healthy:
                healthy |= device.bit
                if device.running < pool.slots:
                    by_load[device.running] |= device.bit
                if device.running < pool.slots and not device.solo:
                    open_ |= device.bit
        assert (pool.healthy, pool.open, pool.by_load) == (healthy, open_, by_load)

    @invariant()
    def the_states_follow(self) -> None:
        for device in self.pool.devices if hasattr(self, "pool") else ():
            full = device.running >= device.slots or device.solo
            expected = "LOST" if device.lost else "UNHEALTHY" if not device.healthy else "BUSY" if full else "AVAILABLE"
            assert device.state == expected


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


# --- each strategy ----------------------------------------------------------------------------------------------------


def choices(pool: Pool, strategy: str, gibs: list[float]) -> list[int]:
    """Place one after the other, each staying; -1 where there is no room."""
    found = []
    for index, gib in enumerate(gibs):
        need = make_need(pool, gib, strategy)
        task = make_task(gib, index, strategy)
        device = pool.place(task, need, 0)
        found.append(-1 if device is None else device.gpu_id)
        if device is not None:
            pool.reserve(device, Attempt(task, 1, device.gpu_id, 0.0))
    return found


def test_single_gpu_fills_the_first_gpu_and_then_waits_although_others_are_free() -> None:
    assert choices(make_pool(10, 10, slots=3), "single_gpu", [1] * 5) == [0, 0, 0, -1, -1]


def test_single_gpu_means_the_first_healthy_gpu_that_can_hold_the_task() -> None:
    pool = make_pool(4, 10, 10, slots=3)
    assert choices(pool, "single_gpu", [5, 1, 5, 5]) == [1, 0, 1, -1]
    pool.check(pool.devices[1], DeviceSample(temperature_c=99.0))
    assert choices(pool, "single_gpu", [5]) == [2]


def test_round_robin_takes_turns() -> None:
    assert choices(make_pool(10, 10, 10, slots=2), "round_robin", [1] * 7) == [0, 1, 2, 0, 1, 2, -1]


def test_round_robin_goes_on_after_the_one_chosen_last_past_those_that_do_not_fit() -> None:
    assert choices(make_pool(4, 10, 4, 10, slots=4), "round_robin", [1, 5, 1, 5, 1]) == [0, 1, 2, 3, 0]


def test_a_round_robin_task_that_fits_nowhere_does_not_take_a_turn() -> None:
    pool = make_pool(10, 4, 10, slots=9)
    assert choices(pool, "round_robin", [2, 2, 2, 1, 1]) == [0, 1, 2, 0, 1]
    assert choices(pool, "round_robin", [9, 1]) == [-1, 2]


def test_least_loaded_takes_the_fewest_slots_and_the_lowest_id_among_equals() -> None:
    pool = make_pool(10, 10, 10, slots=3)
    assert choices(pool, "least_loaded", [1, 1, 1, 1]) == [0, 1, 2, 0]
    pool.release(Attempt(make_task(1), 1, 1, 0.0))
    assert choices(pool, "least_loaded", [1, 1, 1]) == [1, 1, 2]


def test_memory_optimized_takes_the_most_free_memory_and_the_lowest_id_among_equals() -> None:
    assert choices(make_pool(10, 12, 10, slots=9), "memory_optimized", [1, 1, 1, 3, 1, 1]) == [1, 1, 0, 1, 2, 0]


def test_random_is_uniform_over_those_that_fit_and_only_those() -> None:
    """Exact: the index drawn is uniform by random.Random; each index is another of the GPUs that fit."""
    mask = 0b1011010001
    ids = [bit for bit in range(10) if mask >> bit & 1]
    assert [nth(mask, n) for n in range(len(ids))] == ids
    seen = Counter()
    for seed in range(600):
        pool = make_pool(10, 3, 10, 10, slots=2, seed=seed)
        seen.update(choices(pool, "random", [5]))
    assert set(seen) == {0, 2, 3}  # GPU 1 is too small
    assert min(seen.values()) > 140  # 200 expected; five standard deviations below is 142


def test_random_follows_the_seed() -> None:
    def drawn(seed: int) -> list[int]:
        return choices(make_pool(*[10] * 8, slots=4, seed=seed), "random", [1] * 20)

    assert drawn(5) == drawn(5)
    assert len({tuple(drawn(seed)) for seed in range(10)}) == 10


def test_nth_counts_the_bits_of_any_mask() -> None:
    rng = Random(3)
    for _ in range(300):
        mask = rng.getrandbits(rng.randint(1, 1100)) or 1
        ids = [bit for bit in range(mask.bit_length()) if mask >> bit & 1]
        n = rng.randrange(len(ids))
        assert nth(mask, n) == ids[n]


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "single_gpu"])
def test_every_strategy_but_single_gpu_finds_the_only_place_there_is(strategy: str) -> None:
    """Whatever it would rather have: the only GPU with slot and memory is number 3."""
    pool = make_pool(10, 10, 10, 10, 10, slots=1)
    choices(pool, "least_loaded", [1, 1, 1, 1, 1])
    pool.release(Attempt(make_task(1), 1, 3, 0.0))
    assert choices(pool, strategy, [8]) == [3]


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_a_miss_is_forgotten_when_memory_comes_back(strategy: str) -> None:
    pool = make_pool(10, slots=4)
    need, big = make_need(pool, 6, strategy), make_task(6)
    pool.reserve(pool.devices[0], Attempt(make_task(5), 1, 0, 0.0))
    assert pool.place(big, need, 0) is None
    assert pool.place(big, need, 0) is None
    pool.release(Attempt(make_task(5), 1, 0, 0.0))
    assert pool.place(big, need, 0) is pool.devices[0]


def test_memory_once_followed_is_not_followed_for_ever() -> None:
    """One task with memory_optimized must not make every later start and end leave something behind."""
    pool = make_pool(10, 10, slots=4)
    choices(pool, "memory_optimized", [1])
    need, task = make_need(pool, 1, "least_loaded"), make_task(1)
    for _ in range(5_000):
        device = pool.place(task, need, 0)
        assert device is not None
        attempt = Attempt(task, 1, device.gpu_id, 0.0)
        pool.reserve(device, attempt)
        pool.release(attempt)
    assert sum(held(getattr(pool, name)) for name in Pool.__slots__) < 1_000


def held(value: Any) -> int:
    return sum(map(held, value)) + len(value) if isinstance(value, (list, set, dict)) else 0


# --- the cost of a decision -------------------------------------------------------------------------------------------


class Counted(list[Any]):
    """A list that counts how often its items are looked at."""

    touched = 0

    def __getitem__(self, index: Any) -> Any:
        self.touched += 1
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[Any]:
        self.touched += len(self)
        return super().__iter__()


def touches_per_decision(strategy: str, gpus: int) -> float:
    """Devices looked at by a placement, after a start; a third of the machine is busy, memory half full."""
    pool = make_pool(*[10] * gpus, slots=4)
    need, task = make_need(pool, 2, strategy), make_task(2)
    attempts = []
    for i in range(gpus * 4 // 3):
        device = pool.devices[i * 3 % gpus if strategy != "single_gpu" else 0]
        if device.running < 3:
            attempts.append(Attempt(task, 1, device.gpu_id, 0.0))
            pool.reserve(device, attempts[-1])
    assert pool.place(task, need, 0) is not None  # builds what is built once
    pool.devices = counted = Counted(pool.devices)
    rounds = 50
    for i in range(rounds):
        device = pool.place(task, need, 0)
        assert device is not None
        attempt = Attempt(task, 1, device.gpu_id, 0.0)
        pool.reserve(device, attempt)
        pool.release(attempts[i % len(attempts)])
        attempts[i % len(attempts)] = attempt
    return counted.touched / rounds


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_a_decision_looks_at_no_more_devices_of_1024_than_of_8(strategy: str) -> None:
    few, many = touches_per_decision(strategy, 8), touches_per_decision(strategy, 1024)
    assert many <= few + 2.0
    assert many <= 8.0


# --- strategies of a user's own ---------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_user_strategy_stays() -> Iterator[None]:
    before = dict(USER_STRATEGIES)
    yield
    USER_STRATEGIES.clear()
    USER_STRATEGIES.update(before)


def run_with(choose: Callable[..., Any], records: list[dict[str, Any]], gpus: int = 3) -> altlas.Result:
    altlas.register_strategy("mine", choose)
    keys = {"gpu.backend": "simulated", "gpu.devices": [f"{gpus}x T4"]}
    return altlas.run(altlas.load_config(None, keys, environ={}), altlas.Workload.from_records(records))


def mine(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"duration_s": 1.0, "strategy": "mine", **more} for _ in range(count)]


def test_a_users_strategy_is_asked_and_its_choice_taken_without_any_listing() -> None:
    result = run_with(lambda task, gpus: gpus[-1], mine(5))
    assert list(result.tasks.gpu_id) == [2, 2, 2, 2, 1]


def test_it_may_be_the_default_strategy() -> None:
    altlas.register_strategy("my_default", lambda task, gpus: gpus[-1])
    keys = {"gpu.backend": "simulated", "gpu.devices": ["2x T4"], "gpu.selection.default_strategy": "my_default"}
    result = altlas.run(altlas.load_config(None, keys, environ={}), altlas.Workload.from_records([{"duration_s": 1}]))
    assert list(result.tasks.gpu_id) == [1]


def test_it_sees_only_gpus_with_a_slot_and_memory_in_order_and_with_what_is_free() -> None:
    seen: list[list[Gpu]] = []

    def choose(task: Any, gpus: list[Gpu]) -> Gpu:
        seen.append(gpus)
        return gpus[0]

    run_with(choose, mine(2, memory_bytes=8 * GIB) + mine(1, memory_bytes=7 * GIB))
    assert [[gpu.gpu_id for gpu in gpus] for gpus in seen] == [[0, 1, 2], [1, 2], [2]]
    first = seen[0][0]
    assert first.memory_free_bytes == int(0.9 * first.memory_total_bytes)
    assert (first.running_tasks, first.free_slots, first.utilization_pct) == (0, 4, None)  # no reading yet: not known


def test_the_gpus_it_sees_are_read_only() -> None:
    def choose(task: Any, gpus: list[Gpu]) -> Gpu:
        gpus[0].free_slots = 99  # type: ignore[misc]
        return gpus[0]

    with pytest.raises(StrategyError, match="strategy 'mine' raised AttributeError: can't set attribute"):
        run_with(choose, mine(1))


def test_its_error_is_named_with_the_task() -> None:
    with pytest.raises(StrategyError, match=r"'mine' raised ZeroDivisionError: .*task-000000"):
        run_with(lambda task, gpus: 1 // 0, mine(1))


def test_a_strategy_that_would_end_the_process_is_an_error_like_any_other() -> None:
    with pytest.raises(StrategyError, match=r"strategy 'mine' raised SystemExit: 3 \(task-000000\)"):
        run_with(lambda task, gpus: sys.exit(3), mine(1))


@pytest.mark.parametrize(
    "answer",
    [7, -1, "GPU 0", 0.5, True, [], lambda gpus: gpus, lambda gpus: {"gpu_id": 0}],
    ids=["7", "-1", "text", "0.5", "True", "empty list", "all of them", "a dict"],
)
def test_an_answer_that_is_none_of_those_offered_is_an_error(answer: Any) -> None:
    with pytest.raises(StrategyError, match="must return one of the GPUs it was offered"):
        run_with(lambda task, gpus: answer(gpus) if callable(answer) else answer, mine(1))


def test_a_gpu_that_was_offered_to_another_task_is_an_error_when_it_is_full() -> None:
    kept: list[Gpu] = []

    def choose(task: Any, gpus: list[Gpu]) -> Gpu:
        kept.append(gpus[0])
        return kept[0]

    with pytest.raises(StrategyError, match="was offered"):
        run_with(choose, mine(5))


def test_the_id_of_a_gpu_is_as_good_as_the_gpu() -> None:
    assert list(run_with(lambda task, gpus: gpus[1].gpu_id, mine(1)).tasks.gpu_id) == [1]


def test_none_leaves_the_task_waiting_until_it_is_asked_again() -> None:
    def choose(task: Any, gpus: list[Gpu]) -> Gpu | None:
        return gpus[0] if gpus[0].running_tasks == 0 else None

    result = run_with(choose, mine(3), gpus=1)
    assert list(result.tasks.started_s) == [0.0, 1.0, 2.0]


def test_a_strategy_that_never_chooses_ends_with_a_reason_not_in_an_endless_loop() -> None:
    result = run_with(lambda task, gpus: None, mine(1))
    assert list(result.tasks.state) == ["FAILED"]
    assert list(result.tasks.error_code) == ["device_lost"]


@pytest.mark.parametrize("choose", [lambda task: None, lambda: None, lambda a, b, c: None, 5, None])
def test_what_cannot_be_called_with_task_and_gpus_is_refused_at_once(choose: Any) -> None:
    with pytest.raises(StrategyError, match="choose"):
        altlas.register_strategy("mine", choose)
    assert "mine" not in USER_STRATEGIES


@pytest.mark.parametrize("name", ["random", "single_gpu", "", "no name", "a-b", 5, None])
def test_a_builtin_name_or_none_at_all_is_refused(name: Any) -> None:
    with pytest.raises(StrategyError, match="strategy"):
        altlas.register_strategy(name, lambda task, gpus: None)


def test_more_arguments_with_defaults_are_fine_and_a_name_may_be_registered_again() -> None:
    altlas.register_strategy("mine", lambda task, gpus, more=1: gpus[0])
    result = run_with(lambda task, gpus, *rest: gpus[2], mine(1))
    assert list(result.tasks.gpu_id) == [2]


def test_an_unknown_strategy_is_refused_with_the_nearest_name() -> None:
    altlas.register_strategy("warmest_first", lambda task, gpus: gpus[0])
    with pytest.raises(altlas.AltlasError, match="'warmest_first'"):
        run_with(lambda task, gpus: None, [{"duration_s": 1, "strategy": "warmest_frist"}])
