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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OnCell = Callable[[int, int, str], None]  # number of the code cell, how many there are, what the cell is about


@dataclass(slots=True, frozen=True)
class Execution:
    """`error` is None, or why the notebook did not run to its end, in one line. `ran`: whether it was begun at all."""

    wall_s: float
    error: str | None
    ran: bool = True


class NotebookRun:
    """One execution of a notebook, by one thread; any other may kill it."""

    def __init__(
        self, notebook: Path, output: Path, parameters: Mapping[str, Any], on_cell: OnCell | None = None
    ) -> None:
        self._notebook, self._output, self._parameters, self._on_cell = notebook, output, parameters, on_cell
        self._lock = threading.Lock()
        self._group: int | None = None  # the kernel's process group, while it may live
        self._killed_for: str | None = None

    def execute(self) -> Execution:
        """Run the notebook and save it, whole or as far as it came. Never raises for what the notebook did."""
        if self._killed_for is not None:
            return Execution(0.0, f"not run: {self._killed_for}", ran=False)
        import papermill

        started = time.perf_counter()
        sockets = Path(tempfile.mkdtemp(prefix="altlas-kernel-"))
        error = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                papermill.execute_notebook(
                    str(self._notebook),
                    str(self._output),
                    parameters=dict(self._parameters),
                    progress_bar=False,
                    kernel_name="python3",
                    language="python",
                    kernel_manager_class=_kernel_class(sockets, self),
                    shutdown_kernel="immediate",  # the run has closed its workers; asking politely can take seconds
                    **_hooks(self._on_cell),
                )
        except papermill.exceptions.PapermillExecutionError as raised:
            error = self._cut_off() or _one_line(f"{raised.ename}: {raised.evalue}")
        except Exception as raised:
            told = _one_line(f"the kernel did not survive the run ({type(raised).__name__}: {raised})")
            error = self._cut_off() or told
        finally:
            shutil.rmtree(sockets, ignore_errors=True)
        return Execution(time.perf_counter() - started, error)

    def kill(self, why: str) -> None:
        """End the kernel and by that its workers, whatever they do; `execute` returns soon and tells `why`."""
        with self._lock:
            self._killed_for = self._killed_for or why
            if self._group is not None:
                _kill_group(self._group)

    def _cut_off(self) -> str | None:
        return None if self._killed_for is None else f"cut off: {self._killed_for}"

    def kernel_started(self, process_id: int) -> None:
        """The kernel manager says so. One that was killed meanwhile ends at once."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            self._group = os.getpgid(process_id)
            if self._killed_for is not None:
                _kill_group(self._group)

    def kernel_ended(self) -> None:
        """The kernel manager says so; what a dead kernel left in its process group ends too."""
        with self._lock:
            if self._group is not None:
                _kill_group(self._group)
            self._group = None


def prepare() -> None:
    """Load what `execute` needs (about a second), so that threads that execute do not wait for each other's import."""
    import papermill

    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    logging.getLogger("traitlets").setLevel(logging.CRITICAL)
    assert papermill.execute_notebook


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]


def _hooks(on_cell: OnCell | None) -> dict[str, Any]:
    """What nbclient is to call so that `on_cell` hears of every code cell that begins."""
    if on_cell is None:
        return {}
    seen = {"begun": 0, "count": 0}
    heading = ""

    def notebook_starts(notebook: Any) -> None:
        seen["count"] = sum(cell.cell_type == "code" for cell in notebook.cells)

    def cell_starts(cell: Any, cell_index: int) -> None:
        nonlocal heading
        if cell.cell_type != "code":
            heading = _heading(cell.source) or heading
            return
        seen["begun"] += 1
        on_cell(seen["begun"], seen["count"], _comment(cell.source) or heading)

    return {"on_notebook_start": notebook_starts, "on_cell_start": cell_starts}


def _heading(markdown: str) -> str:
    """The last heading of a Markdown cell."""
    lines = [line for line in markdown.splitlines() if line.startswith("#")]
    return lines[-1].lstrip("#").strip() if lines else ""


def _comment(source: str) -> str:
    """The comment that a code cell begins with, if it does."""
    first = source.strip().partition("\n")[0]
    return first.lstrip("#").strip() if first.startswith("#") else ""


def _kernel_class(sockets: Path, run: NotebookRun) -> type[Any]:
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
                run.kernel_started(process_id)

        async def _async_cleanup_resources(self, restart: bool = False) -> None:
            run.kernel_ended()
            await super()._async_cleanup_resources(restart)

    return SuiteKernel
