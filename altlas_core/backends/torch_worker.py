"""The worker process of one device: `python -m altlas_core.backends.torch_worker FD ORDERS`, started by torch_process.

It takes start and stop orders from its channel, runs up to `slots` tasks at a time in threads, and answers. The main
thread only reads the channel: when that closes, the driver's process is gone, and this one ends whatever runs in it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NoReturn

from altlas_core.backends.torch_channel import FAILED, FINISHED, READY, RENEW, STOP, STOPPED, Channel
from altlas_core.backends.torch_device import WorkDevice
from altlas_core.backends.torch_order import Order
from altlas_core.backends.torch_work import run_linear

Key = tuple[int, int]  # task index, attempt number
Done = tuple[float, dict[str, Any] | None]  # iterations, detail
_PR_SET_PDEATHSIG: Final = 1
_MOST_WARM_THREADS: Final = 8  # each costs memory on a GPU; further ones are made when they are needed
DEVICE_BROKEN: Final = 70  # exit status


def run_sleep(_device: WorkDevice, order: Order, stop: threading.Event, begun_s: float) -> Done:
    _wait(order, stop, begun_s)
    return 0.0, None


def run_hang(_device: WorkDevice, order: Order, _stop: threading.Event, _begun_s: float) -> Done:
    """Does not look at the stop flag: what it stands for is work that cannot be asked to end."""
    time.sleep(order.duration_s if order.duration_s is not None else threading.TIMEOUT_MAX / 2)
    return 0.0, None


def run_raise_error(_device: WorkDevice, order: Order, stop: threading.Event, begun_s: float) -> Done:
    _wait(order, stop, begun_s)
    if not stop.is_set():
        raise RuntimeError("raise_error: this kind of task always fails")
    return 0.0, None


def run_crash_worker(_device: WorkDevice, order: Order, stop: threading.Event, begun_s: float) -> Done:
    _wait(order, stop, begun_s)
    if not stop.is_set():
        os.kill(os.getpid(), signal.SIGKILL)
    return 0.0, None


def _wait(order: Order, stop: threading.Event, begun_s: float) -> None:
    stop.wait(max(0.0, begun_s + (order.duration_s or 0.0) - time.perf_counter()))


RUNNERS: Final[dict[str, Callable[[WorkDevice, Order, threading.Event, float], Done]]] = {
    "linear": run_linear,
    "sleep": run_sleep,
    "hang": run_hang,
    "raise_error": run_raise_error,
    "crash_worker": run_crash_worker,
}


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

    def _provide(self, slots: int) -> None:
        """Threads for so many tasks at a time; the first of them ready to compute."""
        if slots <= self._slots:
            return
        if self._threads is not None:
            self._threads.shutdown(wait=False)
        self._slots = slots
        self._threads = ThreadPoolExecutor(slots, "task")
        first = min(slots, _MOST_WARM_THREADS)
        together = threading.Barrier(first)  # so that none does the work of two

        def warm_up() -> None:
            together.wait()
            self._device.warm_up()

        for done in [self._threads.submit(warm_up) for _ in range(first)]:
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
                    if order[0] == STOP:
                        self._stop((order[1], order[2]))
                    elif order[0] == RENEW:
                        self._renew(*order[3:])
                    elif order[3] == "noop":  # here and now: a thread would cost more than the task
                        answers.append((FINISHED, order[1], order[2], 0.0, None))
                    else:
                        self._start(order)
            if answers:
                self._answer(answers)

    def _stop(self, key: Key) -> None:
        stop = self._stops.get(key)
        if stop is not None:  # else it has ended meanwhile, and said so
            stop.set()

    def _renew(self, slots: int, seed: int, memory_bytes: int) -> None:
        self._provide(slots)
        self._device.renew(seed, memory_bytes)

    def _start(self, order: tuple[Any, ...]) -> None:
        assert self._threads is not None
        begun_s = time.perf_counter()
        key = (order[1], order[2])
        stop = self._stops[key] = threading.Event()
        self._threads.submit(self._run, key, Order(*order[3:]), stop, begun_s)

    def _run(self, key: Key, order: Order, stop: threading.Event, begun_s: float) -> None:
        answer = self._outcome(key, order, stop, begun_s)
        del self._stops[key]
        self._answer([answer])

    def _outcome(self, key: Key, order: Order, stop: threading.Event, begun_s: float) -> tuple[Any, ...]:
        try:
            iterations, detail = RUNNERS[order.kind](self._device, order, stop, begun_s)
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
            if self._device.broken():
                _give_up(text)
            out_of_memory = self._device.out_of_memory(error)
        else:
            return (STOPPED, *key, iterations) if stop.is_set() else (FINISHED, *key, iterations, detail)
        if out_of_memory:  # only now, without the error, whose traceback held the tensors
            self._device.free_memory()
        return (FAILED, *key, "out_of_memory" if out_of_memory else "task_error", text, 0.0)

    def _answer(self, answers: list[tuple[Any, ...]]) -> None:
        try:
            with self._sending:
                self._channel.send(answers)
        except OSError:
            _end(0)  # nobody is left to hear it


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


def main(arguments: list[str]) -> None:
    settings = json.loads(arguments[1])
    die_with(settings["parent_pid"])
    faulthandler.enable()
    channel = Channel(socket.socket(fileno=int(arguments[0])))
    device = WorkDevice(settings["kind"], settings["cores"], settings["seed"], settings["memory_bytes"])
    worker = Worker(channel, device, settings["slots"])
    channel.send([(READY, {"pid": os.getpid(), "torch": str(device.torch.__version__)})])
    try:
        worker.serve()
    except Exception:
        traceback.print_exc()
        _end(1)  # the interpreter's own end would wait for the tasks
    _end(0)


if __name__ == "__main__":
    main(sys.argv[1:])
