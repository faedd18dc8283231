"""The worker process of one device: `python -m altlas_core.backends.worker.program FD PARENT`.

It imports torch, says so, and waits to be given a device; how long that takes is why some are started before they are
needed. Then it takes start and stop orders from its channel, runs up to `slots` tasks at a time in threads, and
answers. The main thread only reads the channel: when that closes, the driver's process is gone, and this one ends
whatever runs in it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from altlas_core.backends.worker.channel import (
    ASSIGN,
    FAILED,
    FINISHED,
    IMPORTED,
    PING,
    PONG,
    READY,
    RENEW,
    START,
    STOP,
    STOPPED,
    Channel,
)
from altlas_core.backends.worker.device import WorkDevice
from altlas_core.backends.worker.kinds import RUNNERS
from altlas_core.backends.worker.memory import Usage
from altlas_core.backends.worker.order import Order

Key = tuple[int, int]  # task index, attempt number
_PR_SET_PDEATHSIG: Final = 1
_MOST_WARM_THREADS: Final = 8  # on a GPU, where each costs memory; further ones are warm after their first task
DEVICE_BROKEN: Final = 70  # exit status
MOST_SAID: Final = 4000  # characters of an error
SWITCH_INTERVAL_S: Final = 0.0005  # between Python threads; at Python's 5 ms tasks of pure Python hold each other up


@dataclass(slots=True, frozen=True)
class Assignment:
    """The device a worker is given. `environment` says which GPU: CUDA reads it when it is first used."""

    kind: str
    cores: int
    cpu_ids: tuple[int, ...] | None
    parts: int
    memory_bytes: int
    slots: int
    seed: int
    environment: dict[str, str]


class Worker:
    """Reads orders on the calling thread; tasks run in a pool of `slots` threads, which live as long as the worker."""

    def __init__(self, channel: Channel, device: WorkDevice, slots: int) -> None:
        self._channel = channel
        self._device = device
        self._sending = threading.Lock()
        self._stops: dict[Key, threading.Event] = {}
        self._slots = 0
        self._threads: ThreadPoolExecutor | None = None
        self._provide(slots)
        device.limit_memory(slots)

    def _provide(self, slots: int) -> None:
        """Threads for so many tasks at a time, all started while memory is not limited; the first ready to compute."""
        if slots <= self._slots:
            return
        if self._threads is not None:
            self._threads.shutdown(wait=False)
        self._slots = slots
        self._threads = ThreadPoolExecutor(slots, "task")
        self._device.lift_memory_limit()  # threads need memory of their own
        warm = min(slots, _MOST_WARM_THREADS) if self._device.kind == "cuda" else slots
        together = threading.Barrier(slots)  # so that none does the work of two

        def begin(position: int) -> None:
            together.wait()
            if position < warm:
                self._device.warm_up()

        for done in [self._threads.submit(begin, position) for position in range(slots)]:
            done.result()

    def serve(self) -> None:
        """Until the channel closes."""
        while True:
            try:
                messages = self._channel.receive()
            except (EOFError, OSError):
                return
            answers: list[tuple[Any, ...]] = []
            for orders in messages:
                for order in orders:
                    code = order[0]
                    if code != START:
                        self._control(code, order, answers)
                    elif order[3] == "noop":  # here and now: a thread would cost more than the task
                        answers.append((FINISHED, order[1], order[2], 0.0, None))
                    else:
                        self._start(order)
            if answers:
                self._answer(answers)

    def _control(self, code: int, order: tuple[Any, ...], answers: list[tuple[Any, ...]]) -> None:
        if code == STOP:
            self._stop((order[1], order[2]))
        elif code == PING:
            answers.append((PONG,))
        elif code == RENEW:
            self._renew(*order[3:])

    def _stop(self, key: Key) -> None:
        stop = self._stops.get(key)
        if stop is not None:  # else it has ended meanwhile, and said so
            stop.set()

    def _renew(self, slots: int, seed: int, memory_bytes: int) -> None:
        self._provide(slots)
        self._device.renew(seed, memory_bytes)
        self._device.limit_memory(self._slots)

    def _start(self, order: tuple[Any, ...]) -> None:
        assert self._threads is not None
        begun_s = time.perf_counter()
        key = (order[1], order[2])
        stop = self._stops[key] = threading.Event()
        self._threads.submit(self._run, key, Order(*order[3:]), stop, begun_s)

    def _run(self, key: Key, order: Order, stop: threading.Event, begun_s: float) -> None:
        try:
            with self._device.metered(order) as usage:
                answer = self._outcome(key, order, stop, begun_s, usage)
        except MemoryError as error:  # so little is left that not even the error could be looked at
            answer = (FAILED, *key, "out_of_memory", f"out of memory: {error}", 0.0)
        except BaseException as error:  # whatever a task has broken here: without an answer it would hold its slot
            answer = (FAILED, *key, "task_error", said(error), 0.0)
        del self._stops[key]
        try:
            self._answer([answer])
        except ValueError as error:
            self._answer([(FAILED, *key, "task_error", f"its result cannot be sent: {error}", 0.0)])

    def _outcome(
        self, key: Key, order: Order, stop: threading.Event, begun_s: float, usage: Usage | None
    ) -> tuple[Any, ...]:
        device = self._device
        try:
            iterations, detail = RUNNERS[order.kind](device, order, stop, begun_s)
            if usage is not None:
                detail = {**(detail or {}), **device.meter.figures(usage)}
        except BaseException as error:
            text = said(error)
            if device.broken():
                _give_up(text)
            if not device.out_of_memory(error):
                return (FAILED, *key, "task_error", text, 0.0)
            text, needed_bytes, free_bytes = device.explain_out_of_memory(error, order)
        else:
            return (STOPPED, *key, iterations) if stop.is_set() else (FINISHED, *key, iterations, detail)
        device.free_memory()  # only now, without the error, whose traceback held the tensors
        return (FAILED, *key, "out_of_memory", text[:MOST_SAID], 0.0, needed_bytes, free_bytes)

    def _answer(self, answers: list[tuple[Any, ...]]) -> None:
        try:
            with self._sending:
                self._channel.send(answers)
        except OSError:
            _end(0)  # nobody is left to hear it


def said(error: BaseException) -> str:
    """The error in words that can be sent and written, cut where they are too many."""
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException as problem:  # its own way to make a text of itself
        text = f"{type(error).__name__}, whose text cannot be made ({type(problem).__name__})"
    if len(text) > MOST_SAID:
        text = f"{text[:MOST_SAID]} ... ({len(text)} characters)"
    return text.encode(errors="replace").decode()


def _give_up(error: str) -> NoReturn:
    """No task can compute here any more, and which of them did it cannot be told: a new process is the only cure."""
    print(f"the CUDA context is beyond use: {error.splitlines()[0]}", file=sys.stderr, flush=True)  # noqa: T201
    _end(DEVICE_BROKEN)


def _end(status: int) -> NoReturn:
    """At once, whatever other threads are in the middle of."""
    os._exit(status)


def die_with(parent_pid: int) -> None:
    """Linux: have the kernel kill this process when its parent ends, even while torch is still being imported."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it ended before that call
        _end(0)


def await_device(channel: Channel) -> Assignment | None:
    """Wait to be given one; None when nobody is left to give it."""
    while True:
        try:
            messages = channel.receive()
        except (EOFError, OSError):
            return None
        for orders in messages:
            for order in orders:
                if order[0] == ASSIGN:
                    return Assignment(**order[3])
                if order[0] == PING:
                    channel.send([(PONG,)])


def take_device(assignment: Assignment) -> WorkDevice:
    """Use this device and no other from now on."""
    os.environ.update(assignment.environment)
    if assignment.cpu_ids is not None:
        for thread in os.listdir("/proc/self/task"):  # noqa: PTH208  # numbers, not paths
            os.sched_setaffinity(int(thread), assignment.cpu_ids)
    return WorkDevice(assignment.kind, assignment.cores, assignment.seed, assignment.memory_bytes, assignment.parts)


def main(arguments: list[str]) -> None:
    die_with(int(arguments[1]))
    faulthandler.enable()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # a dump takes minutes
    end = socket.socket(fileno=int(arguments[0]))
    end.set_inheritable(False)  # a child of ours that held it would hide our end
    channel = Channel(end)
    os.register_at_fork(after_in_child=channel.close)
    import torch  # noqa: F401  # here, where nothing waits for it yet

    channel.send([(IMPORTED,)])
    assignment = await_device(channel)
    if assignment is None:
        _end(0)
    status = 1
    try:
        device = take_device(assignment)
        worker = Worker(channel, device, assignment.slots)
        channel.send([(READY, {"memory_problem": device.memory.problem})])
        worker.serve()
        status = 0
    finally:
        if status:
            traceback.print_exc()
        _end(status)  # the interpreter's own end would wait for the tasks


if __name__ == "__main__":
    main(sys.argv[1:])
