"""How predictions become pieces and what is told of them: a desk, a driver and simulated GPUs under a made-up clock."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altlas_core.api.desk import Desk
from altlas_core.api.pieces import Entry, News
from altlas_core.backends.discover import discover
from altlas_core.backends.simulated import SimulatedBackend
from altlas_core.config import load_config
from altlas_core.distributor import Distributor
from altlas_core.drivers.clock import Inbox
from altlas_core.drivers.realtime import RealtimeDriver
from altlas_core.events import AttemptFinished, WorkerCrashed
from altlas_core.faults import Fault
from altlas_core.generation import Prompt, TextModel, reserved_bytes

MODEL = TextModel("made-up", None, 4, 128, 128, 257, 1024, 850_000, 8)


class HandClock:
    """Time goes on only as far as somebody waits, and not past what the script plans next."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.script: list[tuple[float, Any]] = []
        self.until_s = 0.0
        self.stop: Any = None

    def monotonic(self) -> float:
        return self.now_s

    def wait(self, inbox: Inbox, timeout_s: float) -> Any:
        if not inbox.empty():
            return inbox.get_nowait()
        ahead = self.now_s + max(timeout_s, 1e-6)
        if self.script and self.script[0][0] <= ahead:
            at_s, act = self.script.pop(0)
            self.now_s = max(self.now_s, at_s)
            act()
            return None if inbox.empty() else inbox.get_nowait()
        self.now_s = ahead
        if self.now_s >= self.until_s and not self.script:
            self.stop()
        return None


class Stand:
    """`at(seconds, ...)` scripts what callers do; `run` plays it; `news` is all that was told, in order."""

    def __init__(self, devices: str = "2x A100", delay_s: float = 0.005, **overrides: Any) -> None:
        keys = {"gpu.backend": "simulated", "gpu.devices": [devices], "predict.max_batch_delay": delay_s}
        self.settings = load_config(None, {**keys, **overrides}, environ={})
        specs = discover(self.settings).devices
        self.distributor = Distributor(self.settings.gpu, specs, 1)
        self.news: list[News] = []
        self.clock = HandClock()
        self._started: list[tuple[list[int], int, float]] = []
        self.desk = Desk(self.settings, self.distributor, MODEL, 1.0, self.hear)
        self.backend = SimulatedBackend(specs, 85.0)
        self.driver = RealtimeDriver(
            self.distributor,
            self.backend,
            clock=self.clock,
            queue_processing_interval_s=0.1,
            health_check_interval_s=60.0,
            log=self.desk,
        )
        self.desk.attach(self.driver)
        self.clock.stop = self.driver.stop
        self.number = 0

    def hear(self, news: News) -> None:
        self.news.append(news)
        self._started += [(each.numbers, each.gpu_id, self.driver.now) for each in news.started]

    def entry(self, tokens: int = 128, batch: int | None = None, **like: Any) -> Entry:
        self.number += 1
        wanted = (like.get("priority", "normal"), like.get("strategy", "least_loaded"), like.get("pin"))
        prompt = Prompt("abc", tokens, 0.0, self.number, 4)
        return Entry(self.number, batch, wanted, prompt, time.time())

    def at(self, seconds: float, *entries: Entry) -> list[int]:
        self.clock.script.append((seconds, lambda: self.driver.call(self.take, list(entries))))
        return [entry.number for entry in entries]

    def take(self, now: float, entries: list[Entry]) -> None:
        self.desk.take(now, entries)

    def cancel(self, seconds: float, numbers: Iterable[int]) -> list[int]:
        ended: list[int] = []
        request = (list(numbers), ended.extend)
        self.clock.script.append((seconds, lambda: self.driver.call(self.cancel_now, request)))
        return ended

    def cancel_now(self, now: float, request: Any) -> None:
        self.desk.cancel(now, request)

    def fault(self, seconds: float, kind: str, gpu_id: int = 0) -> None:
        self.driver.post_at(seconds, 1, self.backend.inject, Fault(seconds, gpu_id, kind))

    def run(self, until_s: float = 20.0) -> Stand:
        self.clock.script.sort(key=lambda entry: entry[0])
        self.clock.until_s = until_s
        self.driver.serve()
        return self

    # --- what was told --------------------------------------------------------------------------------------------

    @property
    def starts(self) -> list[tuple[list[int], int]]:
        return [(started.numbers, started.gpu_id) for news in self.news for started in news.started]

    @property
    def retries(self) -> list[str]:
        told = [[*news.retries, *(requeued.code for requeued in news.requeued)] for news in self.news]
        return [code for codes in told for code in codes]

    @property
    def started_at(self) -> list[tuple[list[int], int, float]]:
        """As `starts`, with when, on the run's clock."""
        return self._started

    @property
    def finals(self) -> dict[int, str]:
        found: dict[int, str] = {}
        for news in self.news:
            for final in news.finals:
                assert final.id not in found, "a prediction ended twice"
                found[final.id] = final.status
        return found


def test_a_prediction_alone_starts_at_once_on_an_idle_gpu() -> None:
    stand = Stand()
    (number,) = stand.at(1.0, stand.entry())
    stand.run()
    assert stand.starts == [([number], 0)]
    assert stand.finals == {number: "COMPLETED"}
    (measured,) = stand.news[-1].measured
    assert 0.0 <= measured.queue_s < 1.0
    assert (measured.tokens, measured.prompt_tokens) == (128, 4)


def test_idle_gpus_are_used_before_predictions_are_joined() -> None:
    stand = Stand("3x A100")
    numbers = stand.at(1.0, *(stand.entry() for _ in range(5)))
    stand.run()
    assert stand.starts == [(numbers[:1], 0), (numbers[1:2], 1), (numbers[2:], 2)]


def test_while_gpus_are_busy_predictions_wait_for_company_but_no_longer_than_the_delay() -> None:
    stand = Stand("1x A100")
    first = stand.at(1.0, stand.entry(512))
    second = stand.at(1.010, stand.entry(512))
    third = stand.at(1.013, stand.entry(512))
    fourth = stand.at(1.020, stand.entry(512))
    stand.run()
    assert [numbers for numbers, _ in stand.starts] == [first, second + third, fourth]


def test_without_a_delay_nothing_waits() -> None:
    stand = Stand("1x A100", delay_s=0.0)
    numbers = [stand.at(1.0 + 0.001 * place, stand.entry(512))[0] for place in range(3)]
    stand.run()
    assert [started for started, _ in stand.starts] == [[number] for number in numbers]


def test_a_piece_that_waits_for_a_slot_takes_more_until_it_is_full() -> None:
    stand = Stand("1x A100", **{"gpu.workload.max_concurrent_tasks_per_gpu": 1, "gpu.workload.batch_size": 3})
    first = stand.at(1.0, stand.entry(512))
    others = [stand.at(1.001 + 0.002 * place, stand.entry(512))[0] for place in range(5)]
    stand.run()
    assert [numbers for numbers, _ in stand.starts] == [first, others[:3], others[3:]]


def test_only_predictions_alike_are_joined() -> None:
    stand = Stand("1x A100", **{"gpu.workload.max_concurrent_tasks_per_gpu": 1})
    stand.at(1.0, stand.entry(512))
    normal = stand.at(1.001, stand.entry(16), stand.entry(16))
    high = stand.at(1.001, stand.entry(16, priority="high"))
    pinned = stand.at(1.001, stand.entry(16, pin=0))
    stand.run()
    assert [numbers for numbers, _ in stand.starts][1:] == [high, normal, pinned]


def test_a_longer_prediction_does_not_join_where_too_little_memory_is_reserved() -> None:
    stand = Stand("1x A100", **{"gpu.workload.max_concurrent_tasks_per_gpu": 1})
    stand.at(1.0, stand.entry(512))
    short, long = stand.at(1.001, stand.entry(16))[0], stand.at(1.002, stand.entry(500))[0]
    stand.run()
    assert [numbers for numbers, _ in stand.starts][1:] == [[short], [long]]


def test_a_batch_is_cut_into_pieces_over_the_gpus_and_nobody_joins_them() -> None:
    stand = Stand("2x A100")
    batch = stand.at(1.0, *(stand.entry(batch=1) for _ in range(19)))
    alone = stand.at(1.001, stand.entry())
    stand.run()
    assert [numbers for numbers, _ in stand.starts] == [batch[:8], batch[8:16], batch[16:], alone]
    assert {gpu_id for _, gpu_id in stand.starts} == {0, 1}


def test_single_gpu_has_one_idle_gpu_however_many_there_are() -> None:
    stand = Stand("8x A100")
    numbers = stand.at(1.0, *(stand.entry(strategy="single_gpu") for _ in range(4)))
    stand.run()
    assert stand.starts == [(numbers, 0)]


def test_what_is_cancelled_while_it_waits_leaves_the_others_alone() -> None:
    stand = Stand("1x A100", **{"gpu.workload.max_concurrent_tasks_per_gpu": 1})
    first = stand.at(1.0, stand.entry(512))
    others = stand.at(1.001, *(stand.entry(16) for _ in range(4)))
    ended = stand.cancel(1.010, [others[1], others[3], 99])
    stand.run()
    assert ended == [others[1], others[3]]
    assert [numbers for numbers, _ in stand.starts] == [first, [others[0], others[2]]]
    assert stand.finals == {
        first[0]: "COMPLETED",
        others[0]: "COMPLETED",
        others[1]: "CANCELLED",
        others[2]: "COMPLETED",
        others[3]: "CANCELLED",
    }


def test_a_piece_is_stopped_when_the_last_of_it_is_cancelled() -> None:
    stand = Stand("1x A100")
    numbers = stand.at(1.0, *(stand.entry(512, batch=1) for _ in range(2)))
    stand.cancel(1.001, numbers[:1])
    stand.cancel(1.002, numbers[1:])
    late = stand.cancel(1.003, numbers)
    stand.run()
    assert late == []
    assert stand.finals == dict.fromkeys(numbers, "CANCELLED")
    assert not stand.driver.busy
    assert stand.distributor.tasks == {}


def test_what_is_cancelled_in_a_running_piece_ends_at_once_and_the_rest_goes_on() -> None:
    stand = Stand("1x A100")
    numbers = stand.at(1.0, *(stand.entry(512, batch=1) for _ in range(3)))
    stand.cancel(1.001, numbers[1:2])
    stand.run()
    assert stand.finals == {numbers[0]: "COMPLETED", numbers[1]: "CANCELLED", numbers[2]: "COMPLETED"}


def test_what_is_held_for_company_can_be_cancelled() -> None:
    stand = Stand("1x A100", delay_s=0.1)
    stand.at(1.0, stand.entry(512))
    (number,) = stand.at(1.001, stand.entry())
    assert stand.cancel(1.002, [number]) is not None
    stand.run()
    assert stand.finals[number] == "CANCELLED"


def test_a_lost_gpu_sends_its_predictions_elsewhere() -> None:
    stand = Stand("2x A100")
    numbers = stand.at(1.0, *(stand.entry(512, batch=1) for _ in range(2)))
    stand.fault(1.01, "lose_gpu", 0)
    stand.run()
    assert stand.starts == [(numbers, 0), (numbers, 1)]
    assert stand.retries == ["device_lost"]
    assert set(stand.finals.values()) == {"COMPLETED"}


def test_a_worker_that_dies_again_and_again_fails_its_predictions_with_the_reason() -> None:
    stand = Stand("1x A100")
    numbers = stand.at(1.0, *(stand.entry(512, batch=1) for _ in range(2)))
    for place in range(3):
        stand.fault(1.01 + 0.01 * place, "crash_worker")
    stand.run()
    assert stand.finals == dict.fromkeys(numbers, "FAILED")
    final = stand.news[-1].finals[0]
    assert final.error_code == "worker_crashed"
    assert final.retry_count == 2
    assert [started.retry_count for news in stand.news for started in news.started] == [0, 1, 2]
    assert stand.retries == ["worker_crashed"] * 2


def test_a_timeout_fails_every_prediction_of_its_piece() -> None:
    stand = Stand("1x A100", **{"gpu.workload.timeout": 0.01})
    numbers = stand.at(1.0, *(stand.entry(512, batch=1) for _ in range(2)))
    stand.run()
    assert stand.finals == dict.fromkeys(numbers, "FAILED")
    assert stand.news[-1].finals[0].error_code == "timeout"


def test_nothing_is_kept_of_what_has_ended() -> None:
    stand = Stand("2x A100")
    for place in range(200):
        stand.at(1.0 + 0.01 * place, stand.entry(64), stand.entry(64))
    stand.run()
    assert len(stand.finals) == 400
    assert stand.distributor.tasks == {}
    kept = (stand.desk._pieces, stand.desk._piece_of, stand.desk._joinable, stand.desk._lingering)
    assert [len(each) for each in kept] == [0, 0, 0, 0]


@st.composite
def scripts(draw: st.DrawFn) -> list[tuple[float, str, int]]:
    kinds = st.sampled_from(["single", "batch", "cancel", "lose", "crash", "return"])
    steps = st.tuples(st.floats(0.0, 0.3), kinds, st.integers(0, 30))
    return draw(st.lists(steps, max_size=40))


@settings(max_examples=60, deadline=None)
@given(scripts(), st.integers(1, 3), st.sampled_from([1, 4]))
def test_whatever_happens_every_prediction_ends_exactly_once(
    script: list[tuple[float, str, int]], gpus: int, slots: int
) -> None:
    stand = Stand(f"{gpus}x A100", **{"gpu.workload.max_concurrent_tasks_per_gpu": slots})
    numbers: list[int] = []
    for seconds, kind, value in sorted(script):
        if kind == "single":
            numbers += stand.at(1.0 + seconds, stand.entry(16 + 16 * value))
        elif kind == "batch":
            first = stand.number + 1
            numbers += stand.at(1.0 + seconds, *(stand.entry(64, batch=first) for _ in range(1 + value)))
        elif kind == "cancel" and numbers:
            stand.cancel(1.0 + seconds, [numbers[value % len(numbers)]])
        elif kind == "lose":
            stand.fault(1.0 + seconds, "lose_gpu", value % gpus)
            stand.fault(2.0 + seconds, "return_gpu", value % gpus)
        elif kind == "crash":
            stand.fault(1.0 + seconds, "crash_worker", value % gpus)
    stand.run(400.0)
    assert set(stand.finals) == set(numbers)
    assert stand.distributor.open_tasks == 0
    assert stand.distributor.tasks == {}
    assert not stand.driver.busy


def test_what_waits_for_other_gpus_does_not_keep_a_prediction_from_an_idle_one() -> None:
    stand = Stand("2x A100", delay_s=1.0, **{"gpu.workload.max_concurrent_tasks_per_gpu": 1})
    pinned = stand.at(1.0, *(stand.entry(512, batch=1, pin=0) for _ in range(64)))
    free, other = stand.at(1.010, stand.entry(16))[0], stand.at(1.030, stand.entry(16, pin=1))[0]
    stand.run()
    begun = {numbers[0]: (gpu_id, at) for numbers, gpu_id, at in stand.started_at}
    assert begun[pinned[0]][0] == 0
    assert begun[free] == (1, pytest.approx(1.010, abs=0.001))
    assert begun[other] == (1, pytest.approx(1.030, abs=0.001))


def test_where_memory_does_not_suffice_for_a_whole_piece_fewer_are_computed_together() -> None:
    rows, room = 8, reserved_bytes(MODEL, 2, 1024)
    stand = Stand("1x A100", **{"gpu.workload.batch_size": rows, "gpu.memory_limit_bytes": room})
    batch = stand.at(1.0, *(stand.entry(1000, batch=1) for _ in range(5)))
    (alone,) = stand.at(5.0, stand.entry(1000))
    stand.run(60.0)
    assert [numbers for numbers, _ in stand.starts] == [batch[:2], batch[2:4], batch[4:], [alone]]
    assert set(stand.finals.values()) == {"COMPLETED"}


def test_a_late_fact_about_a_task_that_is_forgotten_changes_nothing() -> None:
    stand = Stand("1x A100")
    stand.at(1.0, stand.entry(16))
    stand.clock.script.append((2.0, lambda: stand.driver.post(AttemptFinished(0, 1))))
    stand.clock.script.append((2.0, lambda: stand.driver.post(WorkerCrashed(0, ((0, 1),), "late"))))
    (number,) = stand.at(3.0, stand.entry(16))
    stand.run()
    assert stand.finals[number] == "COMPLETED"
    assert stand.distributor.stale == {"AttemptFinished": 1, "WorkerCrashed": 1}
