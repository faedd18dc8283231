"""One worker process, seen from the driver's process: starting it, ending it, and what it died of."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Final

import psutil

from altlas_core.backends.cuda_visible import worker_environment
from altlas_core.backends.torch_channel import pair
from altlas_core.model import DeviceSpec

_TAIL_BYTES: Final = 4000
_DYING_S: Final = 10.0  # what the kernel and the GPU driver may take to end a killed process
# They would have cuBLAS round fp32 to TF32 whatever the program asks for.
_PRECISION_OVERRIDES: Final = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
_PACKAGE_ROOT: Final = str(Path(__file__).resolve().parents[2])


class WorkerProcess:
    """A worker and our end of its channel.

    The worker is a new program, not a fork of this one: a script needs no __main__ guard, a notebook works, and no
    thread or CUDA context is copied. It ends by itself when this process is gone (its channel closes).
    """

    __slots__ = (
        "_errors", "_ours", "_popen", "_sampled_at", "_usage", "channel", "doomed", "killed", "ready", "started_at",
    )  # fmt: skip

    def __init__(self, spec: DeviceSpec, slots: int, seed: int) -> None:
        self.channel, theirs = pair()
        self.killed = False  # by us, on purpose
        self.doomed = False  # by a planned fault
        self.ready = False
        self.started_at = time.monotonic()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # has no name on disk: nothing is left behind
        orders = {
            "kind": spec.kind,
            "cores": cores_of(spec),
            "slots": slots,
            "seed": seed,
            "memory_bytes": spec.memory_total_bytes,
            "parent_pid": os.getpid(),
        }
        with theirs:
            self._popen = subprocess.Popen(  # noqa: S603  # our own program
                [
                    sys.executable,
                    "-m",
                    "altlas_core.backends.torch_worker",
                    str(theirs.fileno()),
                    json.dumps(orders),
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                env=environment(spec),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C in the terminal reaches the driver alone, which then closes us
            )
        self._ours: psutil.Process | None = None
        self._sampled_at = 0.0
        self._usage: tuple[float | None, int | None] = (None, None)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def kill(self) -> None:
        """SIGKILL, on purpose. Does not wait."""
        self.killed = True
        self._popen.kill()

    def crash(self) -> None:
        """SIGKILL as if it had happened by itself: a planned fault."""
        self.doomed = True
        self._popen.kill()

    @property
    def usable(self) -> bool:
        """Ready, and as far as is known not dying."""
        return self.ready and not self.killed and not self.doomed

    def reap(self, wait_s: float) -> str:
        """Wait up to `wait_s` for the end, then force it. Returns what it died of."""
        try:
            self._popen.wait(wait_s)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            try:
                self._popen.wait(_DYING_S)
            except subprocess.TimeoutExpired:
                return f"process {self.pid} was killed but does not end: it is stuck in the kernel or the GPU driver"
        return describe_exit(self._popen.returncode, self.tail())

    def release(self) -> None:
        """Close channel and error file. After this the object is of no more use."""
        self.channel.close()
        self._errors.close()

    def tail(self) -> str:
        """The end of what the worker wrote to stderr and stdout."""
        if self._errors.closed:
            return ""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _TAIL_BYTES))
        return self._errors.read().decode(errors="replace").strip()

    def forget_usage(self) -> None:
        """The next reading is the first again: another run begins."""
        self._ours = None
        self._sampled_at = 0.0

    def usage(self, cores: int) -> tuple[float | None, int | None]:
        """(percent of `cores` used since the call before, resident bytes); None where there is no reading.

        Looks at most every 50 ms: CPU time is counted in ticks of 10 ms, so a shorter span says little.
        """
        now = time.monotonic()
        if now - self._sampled_at < 0.05:
            return self._usage
        try:
            first = self._ours is None
            if self._ours is None:
                self._ours = psutil.Process(self.pid)
            percent = self._ours.cpu_percent(None)
            self._usage = (None if first else min(100.0, percent / cores), self._ours.memory_info().rss)
        except psutil.Error:
            self._usage = (None, None)
        self._sampled_at = now
        return self._usage


def cores_of(spec: DeviceSpec) -> int:
    """CPU cores a device may use for its kernels: those of a CPU device, one for the worker of a GPU."""
    return max(1, spec.cores or 1)


def environment(spec: DeviceSpec) -> dict[str, str]:
    """The worker's environment: our own, with its device as the only one it sees and its share of the cores."""
    env = dict(os.environ)
    cores = str(cores_of(spec))
    if spec.kind == "cuda":
        env.update(worker_environment(spec))
    else:
        env["CUDA_VISIBLE_DEVICES"] = ""
    for name in _PRECISION_OVERRIDES:
        env.pop(name, None)
    env.update(OMP_NUM_THREADS=cores, MKL_NUM_THREADS=cores, OPENBLAS_NUM_THREADS=cores)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (_PACKAGE_ROOT, env.get("PYTHONPATH"))))
    return env


def describe_exit(status: int, tail: str) -> str:
    """ "signal 9 (SIGKILL)", or the exit status and the last line the worker wrote."""
    if status < 0:
        try:
            name = f" ({signal.Signals(-status).name})"
        except ValueError:
            name = ""
        return f"signal {-status}{name}"
    last = tail.splitlines()[-1:] if tail else []
    return ": ".join([f"exit status {status}", *last])
