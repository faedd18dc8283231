"""One worker process, seen from the driver's process: starting it, ending it, and what it died of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from altlas_core.backends.cuda_visible import worker_environment
from altlas_core.backends.supervision.exit import describe_exit
from altlas_core.backends.supervision.keeper_program import end_group
from altlas_core.backends.supervision.output import Output
from altlas_core.backends.worker.channel import ASSIGN, pair
from altlas_core.model import DeviceSpec

DYING_S: Final = 5.0  # what a process whose end is near usually takes at most
# They would have cuBLAS round fp32 to TF32 whatever the program asks for.
_PRECISION_OVERRIDES: Final = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
_PACKAGE_ROOT: Final = str(Path(__file__).resolve().parents[3])


class WorkerProcess:
    """A worker and our end of its channel.

    The worker is a new program, not a fork of this one: a script needs no __main__ guard, a notebook works, and no
    thread or CUDA context is copied. It imports torch, says so (`imported`), is given a device (`assign`) and is
    `ready` then. It leads a process group of its own, so that what it starts ends with it; and it ends by itself when
    this process is gone.
    """

    __slots__ = (
        "_popen", "cause", "channel", "doomed", "heard_s", "imported", "killed", "output", "pinged_s", "ready",
        "since_s",
    )  # fmt: skip

    def __init__(self, cores: int, now: float) -> None:
        """`cores`: most that a device of its kind has. Raises OSError if no process can be started."""
        self.channel, theirs = pair()
        self.imported = False
        self.ready = False
        self.killed = False  # by us, for the sake of something else
        self.doomed = False  # by a planned fault
        self.cause: str | None = None  # what we killed it for
        self.since_s = now  # when it was started, then when it was given a device
        self.heard_s = now  # when it last said anything
        self.pinged_s: float | None = None  # when it was asked for an answer that has not come yet
        self.output = Output()
        # -P: files of the working directory do not stand in for Python's own modules.
        program = [sys.executable, "-P", "-m", "altlas_core.backends.worker.program"]
        program += [str(theirs.fileno()), str(os.getpid())]
        try:
            self._popen = subprocess.Popen(  # noqa: S603  # our own program
                program,
                stdin=subprocess.DEVNULL,
                stdout=self.output.fileno(),
                stderr=self.output.fileno(),
                env=environment(cores),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C in the terminal reaches the driver alone, which then closes us
            )
        except OSError:
            self.release()
            raise
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """Its process id, and the number of its process group."""
        return self._popen.pid

    @property
    def struck(self) -> bool:
        """Whether it was sent a SIGKILL from here."""
        return self.cause is not None or self.doomed

    @property
    def usable(self) -> bool:
        """Ready, and as far as is known not dying."""
        return self.ready and not self.struck

    def assign(self, assignment: dict[str, Any], now: float) -> None:
        """Give it its device, once. Raises OSError if it has just died."""
        self.since_s, self.pinged_s = now, None
        self.channel.send_soon([(ASSIGN, -1, -1, assignment)])

    # --- its end --------------------------------------------------------------------------------------------------

    def kill(self, cause: str, blamed: bool = False) -> None:
        """SIGKILL; what it has started follows when it is buried. `blamed`: it is its own fault. Does not wait."""
        if self.cause is None:
            self.cause = cause
            self.killed = not blamed
        self._strike()

    def crash(self) -> None:
        """SIGKILL as if it had happened by itself: a planned fault."""
        self.doomed = True
        self._strike()

    def hang(self) -> None:
        """SIGSTOP: it is there and does nothing, until somebody kills it. A planned fault."""
        self._signal(signal.SIGSTOP)

    def _strike(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._popen.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def reap(self, wait_s: float, dying_s: float = DYING_S) -> str:
        """Wait up to `wait_s` for the end, then force it and wait up to `dying_s`. Returns what it died of."""
        if not self._has_ended(wait_s):
            self._strike()
            if not self._has_ended(dying_s):
                return f"process {self.pid} was killed but does not end: it is stuck in the kernel or the GPU driver"
        end_group(self.pid)  # what it had started; its number is nobody else's as long as it has not been waited for
        self._popen.wait()
        return self.cause or describe_exit(self._popen.returncode, self.tail())

    def _has_ended(self, wait_s: float) -> bool:
        """Whether it ends within `wait_s`. Leaves it to be waited for."""
        until_s, pause_s = time.monotonic() + wait_s, 0.0002
        try:
            while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                if time.monotonic() >= until_s:
                    return False
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 0.02)
        except ChildProcessError:  # somebody else in this process has waited for it
            pass
        return True

    @property
    def killed_by_others(self) -> bool:
        """Whether it has ended by a SIGKILL that nobody here sent."""
        return self._popen.returncode == -signal.SIGKILL and self.cause is None and not self.doomed

    def release(self) -> None:
        """Close channel and output. After this the object is of no more use."""
        self.channel.close()
        self.output.close()

    def tail(self) -> str:
        """The end of what the worker wrote to stderr and stdout."""
        return self.output.tail()


def cores_of(spec: DeviceSpec) -> int:
    """CPU cores a device may use for its kernels: those of a CPU device, one for the worker of a GPU."""
    return max(1, spec.cores or 1)


def assignment(spec: DeviceSpec, slots: int, seed: int) -> dict[str, Any]:
    """What a worker must know of its device, as worker.program.Assignment reads it."""
    return {
        "kind": spec.kind,
        "cores": cores_of(spec),
        "cpu_ids": spec.cpu_ids,
        "parts": spec.parts,
        "memory_bytes": spec.memory_total_bytes,
        "slots": slots,
        "seed": seed,
        "environment": worker_environment(spec) if spec.kind == "cuda" else {"CUDA_VISIBLE_DEVICES": ""},
    }


def environment(cores: int) -> dict[str, str]:
    """The environment a worker starts with: our own, but for what would spoil its figures.

    Libraries that count threads when they are loaded may start one for each core of the largest device; torch is told
    later how many its own device has.
    """
    env = {name: value for name, value in os.environ.items() if name not in _PRECISION_OVERRIDES}
    count = str(cores)
    env.update(OMP_NUM_THREADS=count, MKL_NUM_THREADS=count, OPENBLAS_NUM_THREADS=count)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (_PACKAGE_ROOT, env.get("PYTHONPATH"))))
    return env
