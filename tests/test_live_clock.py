"""The clock of a live run: it stands, goes at a pace, jumps, steps; the real clock behind it is turned by the tests."""

from __future__ import annotations

import math
import queue
from collections.abc import Callable

import pytest

from altlas_core.drivers.clock import Call, Inbox, News
from altlas_core.live.clock import BUSY_S, FOREVER, MOST_BEHIND_S, MOST_STRIDE_S, REST_S, SteeredClock

NEWS = Call(lambda now, arg: None, None)


class TurnedClock:
    """Goes on only while somebody waits; `then` happens in the middle of the next wait."""

    def __init__(self) -> None:
        self.time_s = 500.0
        self.waits: list[float] = []
        self.then: Callable[[], None] | None = None

    def monotonic(self) -> float:
        return self.time_s

    def wait(self, inbox: Inbox, timeout_s: float) -> News | None:
        self.waits.append(timeout_s)
        then, self.then = self.then, None
        if then is not None:
            self.time_s += timeout_s / 2 if timeout_s < FOREVER else 7.0
            then()
        elif timeout_s < FOREVER:
            self.time_s += timeout_s
        return None if inbox.empty() else inbox.get()


class Scene:
    def __init__(self, pace: float | None = 1.0, goes: bool = True) -> None:
        self.real = TurnedClock()
        self.clock = SteeredClock(self.real, pace)
        self.inbox: Inbox = queue.SimpleQueue()
        if goes:
            self.clock.run()

    def wait(self, timeout_s: float) -> News | None:
        return self.clock.wait(self.inbox, timeout_s)

    @property
    def now(self) -> float:
        return self.clock.monotonic()


def test_it_stands_until_it_is_let_go_and_news_still_get_through() -> None:
    scene = Scene(goes=False)
    scene.real.then = lambda: scene.inbox.put(NEWS)
    assert scene.wait(3.0) is NEWS
    assert (scene.clock.stands, scene.now) == (True, 0.0)
    scene.real.then = scene.clock.run
    assert scene.wait(3.0) is None  # woken, to wait anew
    scene.wait(3.0)
    assert scene.now == pytest.approx(3.0)


def test_a_step_that_is_over_stops_nothing_that_has_been_asked_for_since() -> None:
    scene = Scene(goes=False)
    scene.clock.step()
    scene.clock.stepped()
    assert (scene.clock.stands, scene.clock.stepping) == (True, False)
    scene.clock.step()
    scene.clock.run()
    scene.clock.stepped()
    assert not scene.clock.stands


@pytest.mark.parametrize("pace", [0.25, 1.0, 60.0])
def test_waiting_takes_as_long_as_the_pace_says(pace: float) -> None:
    scene = Scene(pace)
    scene.wait(30.0)
    assert scene.now >= 30.0  # what is due then is due
    assert scene.now == pytest.approx(30.0)
    assert scene.real.waits == [pytest.approx(30.0 / pace)]


def test_it_does_not_go_on_while_nobody_waits() -> None:
    scene = Scene()
    scene.wait(2.0)
    scene.real.time_s += 100.0
    assert scene.now == pytest.approx(2.0)


def test_news_that_come_while_it_goes_come_at_the_time_it_is_then() -> None:
    scene = Scene(10.0)
    seen: list[float] = []

    def post() -> None:
        seen.append(scene.now)
        scene.inbox.put(NEWS)

    scene.real.then = post
    assert scene.wait(40.0) is NEWS
    assert seen == [pytest.approx(20.0)]
    assert scene.now == pytest.approx(20.0)


def test_as_fast_as_possible_it_never_waits_but_for_a_short_rest_now_and_then() -> None:
    scene = Scene(None)
    for count in range(1, 11):
        before = scene.now
        scene.wait(100.0)
        assert 100.0 <= scene.now - before <= 100.0 + MOST_STRIDE_S * 1.001, count
        assert scene.real.waits == []
    scene.real.time_s += BUSY_S
    scene.wait(1.0)
    assert scene.real.waits == [REST_S]


def test_it_jumps_less_far_when_the_driver_needs_long_for_it() -> None:
    quick, slow = Scene(None), Scene(None)
    for _ in range(60):
        quick.wait(0.001)
        slow.wait(0.001)
        slow.real.time_s += 0.05
    assert slow.now < quick.now / 100
    jumps = [-quick.now, -slow.now]
    quick.wait(0.0)
    slow.wait(0.0)
    assert [jumps[0] + quick.now, jumps[1] + slow.now] == [pytest.approx(MOST_STRIDE_S), pytest.approx(0.0, abs=0.01)]


def test_what_it_is_behind_its_pace_it_makes_up_for_only_if_it_is_little() -> None:
    little, much = Scene(10.0), Scene(10.0)
    for scene, lag_s in ((little, 0.5 * MOST_BEHIND_S), (much, 1000.0)):
        scene.wait(1.0)
        scene.real.time_s += lag_s  # so long the driver needed
        scene.wait(0.25)
        scene.real.waits.clear()
        scene.wait(10.0)
    assert sum(little.real.waits) == pytest.approx(1.025 - 0.5 * MOST_BEHIND_S, abs=0.01)
    assert sum(much.real.waits) == pytest.approx(1.0, abs=0.01)


def test_a_step_jumps_to_what_is_waited_for_and_no_further() -> None:
    scene = Scene(goes=False)
    for _ in range(3):
        before = scene.now
        scene.clock.step()
        while not scene.inbox.empty():
            scene.wait(5.0)  # it was woken
        scene.wait(5.0)
        scene.clock.pause()
        assert scene.now == pytest.approx(before + 5.0)
    assert scene.real.waits == []
    assert scene.clock.stands


def test_a_pause_is_no_time_and_the_pace_changes_where_it_is() -> None:
    scene = Scene(2.0)
    scene.real.then = scene.clock.pause  # half way
    scene.wait(8.0)
    assert scene.now == pytest.approx(4.0)
    scene.real.time_s += 1000.0
    scene.clock.run()
    assert scene.now == pytest.approx(4.0)
    scene.wait(4.0)
    scene.real.then = lambda: scene.clock.set_pace(0.5)
    scene.wait(4.0)
    assert scene.now == pytest.approx(6.0)
    scene.real.waits.clear()
    scene.wait(2.0)
    assert scene.now == pytest.approx(8.0)
    assert scene.real.waits == [pytest.approx(4.0)]
    assert (scene.clock.pace, scene.clock.stands) == (0.5, False)


def test_a_pace_set_while_it_stands_is_for_later() -> None:
    scene = Scene(goes=False)
    scene.clock.set_pace(None)
    assert scene.clock.stands
    scene.clock.run()
    scene.wait(math.pi)
    assert scene.now >= math.pi
