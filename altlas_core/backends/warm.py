"""Worker processes that outlive a run: `with warm.keep(): altlas.run(...); altlas.run(...)`.

Starting one takes seconds, most of it the import of torch. What is kept is processes only; see TorchBackend.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from altlas_core.backends.supervision.backend import TorchBackend
    from altlas_core.model import DeviceSpec


class _Kept(threading.local):
    """Of each thread: whether it is inside `keep`, and the backend of the runs there."""

    inside: bool = False
    backend: TorchBackend | None = None


_kept = _Kept()


@contextmanager
def keep() -> Iterator[None]:
    """Let the runs of this block, in this thread, share worker processes; they end with it, however it ends.

    A run with another seed, other slots or other devices uses them too. Costs nothing where all is simulated. A block
    inside another belongs to it. Memory that a process holds for itself (a CUDA context) is held until the end.
    """
    if _kept.inside:
        yield
        return
    _kept.inside = True
    try:
        yield
    finally:
        backend, _kept.backend = _kept.backend, None
        _kept.inside = False
        if backend is not None:
            backend.close()


def torch_backend(
    devices: Sequence[DeviceSpec],
    slots: int,
    seed: int,
    kill_grace_s: float,
    spare_workers: int,
    heartbeat_timeout_s: float,
) -> TorchBackend:
    """A backend for one run: the kept one inside `keep`, else a new one."""
    from altlas_core.backends.supervision.backend import TorchBackend

    if _kept.backend is not None:
        _kept.backend.set_up(devices, slots, seed, kill_grace_s, spare_workers, heartbeat_timeout_s)
        return _kept.backend
    backend = TorchBackend(devices, slots, seed, kill_grace_s, spare_workers, heartbeat_timeout_s)
    if _kept.inside:
        _kept.backend = backend
    return backend


def is_kept(backend: object) -> bool:
    """Whether a run that went well must leave the backend open."""
    return backend is _kept.backend and _kept.inside
