"""The one door to NVML, the NVIDIA driver's management library: all that is asked of it passes through `ask`.

pynvml (package nvidia-ml-py) is imported on first use. NVML counts its users, so each opens and closes it for itself.
"""

from __future__ import annotations

import contextlib
from functools import cache
from typing import Any, Final

GONE: Final = {
    "GPU_IS_LOST": "it is lost: the driver cannot reach it any more; look for Xid messages in the kernel log (dmesg), "
    "then reset the GPU or restart the machine",
    "RESET_REQUIRED": "it needs a reset before it can be used: run `nvidia-smi --gpu-reset` or restart the machine",
    "GPU_NOT_FOUND": "the driver does not find it any more; check it in `nvidia-smi` and restart the machine",
}
_NEVER: Final = frozenset({"NOT_SUPPORTED", "FUNCTION_NOT_FOUND", "NO_PERMISSION"})  # what the next time will say too
# An older pynvml without this function, an answer that is not text, a broken installation.
_BROKEN: Final = (AttributeError, TypeError, ValueError, OSError)


class NvmlError(Exception):
    """What NVML answered instead of a reading: its error by name ("GPU_IS_LOST") and in words."""

    def __init__(self, code: str, cause: object) -> None:
        super().__init__(cause)
        self.code = code


class GpuGoneError(Exception):
    """This one GPU does not answer any more. The message is the reason, for a person."""


def ask(name: str, *args: Any) -> Any:
    """The answer of pynvml's function `name`; raises NvmlError for everything that can fail."""
    try:
        import pynvml
    except ImportError as error:
        raise NvmlError("NOT_INSTALLED", error) from error
    try:
        return getattr(pynvml, name)(*args)
    except pynvml.NVMLError as error:
        raise NvmlError(_code_names().get(error.value, f"code {error.value}"), error) from error
    except _BROKEN as error:
        raise NvmlError("FUNCTION_NOT_FOUND", f"{type(error).__name__}: {error}") from error


@cache
def _code_names() -> dict[int, str]:
    import pynvml

    prefix = "NVML_ERROR_"
    return {getattr(pynvml, name): name.removeprefix(prefix) for name in dir(pynvml) if name.startswith(prefix)}


def constant(name: str) -> Any:
    """A constant of pynvml; None in versions that do not know it."""
    import pynvml

    return getattr(pynvml, name, None)


def open_nvml() -> None:
    """May take seconds where nobody uses the GPUs yet. Raises NvmlError."""
    ask("nvmlInit")


def close_nvml() -> None:
    """Once for each `open_nvml` that succeeded."""
    with contextlib.suppress(NvmlError):  # there may be nothing left to let go of
        ask("nvmlShutdown")


class Gpu:
    """One GPU's handle, and what it does not tell: that is asked once only. `shut`: somebody closed NVML meanwhile."""

    __slots__ = ("_never", "handle", "shut")

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.shut = False
        self._never: set[tuple[Any, ...]] = set()

    def ask(self, name: str, *args: Any) -> Any:
        """What pynvml's function `name` says of this GPU. Raises NvmlError, and GpuGoneError where the GPU is lost."""
        key = (name, *args)
        if key in self._never:
            raise NvmlError("NOT_SUPPORTED", "said so before")
        try:
            return ask(name, self.handle, *args)
        except NvmlError as error:
            if error.code in GONE:
                raise GpuGoneError(GONE[error.code]) from error
            if error.code in _NEVER:
                self._never.add(key)
            self.shut = self.shut or error.code == "UNINITIALIZED"
            raise

    def read(self, name: str, *args: Any) -> Any:
        """The same, or None where there is no answer. Raises GpuGoneError where the GPU is lost."""
        try:
            return self.ask(name, *args)
        except NvmlError:
            return None


def gpu_at(place: int | str) -> Gpu:
    """The GPU of this NVML index or UUID (safe when another GPU is lost).

    Raises GpuGoneError with the reason for one that is lost, NvmlError for any other refusal.
    """
    name = "nvmlDeviceGetHandleByIndex" if isinstance(place, int) else "nvmlDeviceGetHandleByUUID"
    try:
        return Gpu(ask(name, place))
    except NvmlError as error:
        if error.code in GONE:
            raise GpuGoneError(GONE[error.code]) from error
        raise
