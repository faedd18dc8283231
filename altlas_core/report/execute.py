"""Executes one notebook with papermill, in a kernel of the very Python that runs this code."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_running: dict[int, int] = {}  # kernel process id -> its process group
_running_lock = threading.Lock()


@dataclass(slots=True, frozen=True)
class Execution:
    """`error` is None, or why the notebook did not run to its end, in one line."""

    wall_s: float
    error: str | None


def execute(notebook: Path, output: Path, parameters: Mapping[str, Any]) -> Execution:
    """Run `notebook` with `parameters` and save it, whole or as far as it came, to `output`. Never raises for what
    the notebook did."""
    import papermill

    started = time.perf_counter()
    sockets = Path(tempfile.mkdtemp(prefix="altlas-kernel-"))
    error = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            papermill.execute_notebook(
                str(notebook),
                str(output),
                parameters=dict(parameters),
                progress_bar=False,
                kernel_name="python3",
                language="python",
                kernel_manager_class=_kernel_class(sockets),
                shutdown_kernel="immediate",  # the run has closed its workers; asking politely can take seconds
            )
    except papermill.exceptions.PapermillExecutionError as raised:
        error = _one_line(f"{raised.ename}: {raised.evalue}")
    except Exception as raised:
        error = _one_line(f"the kernel did not survive the run ({type(raised).__name__}: {raised})")
    finally:
        shutil.rmtree(sockets, ignore_errors=True)
    return Execution(time.perf_counter() - started, error)


def prepare() -> None:
    """Load what `execute` needs (about a second), so that threads that execute do not wait for each other's import."""
    import papermill

    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    logging.getLogger("traitlets").setLevel(logging.CRITICAL)
    assert papermill.execute_notebook


def kill_kernels() -> None:
    """End every kernel this process has running, with the worker processes they started."""
    with _running_lock:
        groups = list(_running.values())
    for group in groups:
        _kill_group(group)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]


def _kernel_class(sockets: Path) -> type[Any]:
    """A kernel manager that starts sys.executable, whatever kernels are registered, and talks through Unix sockets.

    Sockets in a folder of their own: no port that another kernel of the suite could take in the meantime, none that
    other users of the machine can reach, and no need for a writable home.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class SuiteKernel(AsyncKernelManager):  # type: ignore[misc, unused-ignore]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.transport = "ipc"
            self.ip = str(sockets / "s")
            self.connection_file = str(sockets / "kernel.json")
            os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # kernels inherit it; else they warn
            command = [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            self._kernel_spec = KernelSpec(argv=command, display_name="Python 3", language="python")

        async def _async_post_start_kernel(self, **options: Any) -> None:
            await super()._async_post_start_kernel(**options)
            process_id = getattr(self.provisioner, "pid", None)
            if process_id is not None:
                with _running_lock, contextlib.suppress(ProcessLookupError):
                    _running[process_id] = os.getpgid(process_id)

        async def _async_cleanup_resources(self, restart: bool = False) -> None:
            with _running_lock:
                group = _running.pop(getattr(self.provisioner, "pid", None) or 0, None)
            if group is not None:
                _kill_group(group)  # worker processes that a dead kernel left behind
            await super()._async_cleanup_resources(restart)

    return SuiteKernel
