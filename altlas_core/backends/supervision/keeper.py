"""A small process that outlives ours by a moment: it ends what workers have started, should we be killed at once.

The kernel ends a worker with its parent, but not the worker's own children. This process is told of every worker's
process group; when our end of its pipe closes, whatever the reason, it kills the groups that are left, and ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

_GOODBYE_S: Final = 5.0
_PROGRAM: Final = str(Path(__file__).with_name("keeper_program.py"))


class Keeper:
    """Our end. Called by one thread at a time."""

    def __init__(self) -> None:
        """Raises OSError if no process can be started."""
        self._popen = subprocess.Popen(  # noqa: S603  # our own program
            [sys.executable, "-I", "-S", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C in the terminal must not reach it
        )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def watch(self, group: int) -> None:
        """A worker has started: its process group is to end with us."""
        self._tell(f"{group}\n")

    def forget(self, group: int) -> None:
        """The group is empty: its number may belong to others from now on."""
        self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        assert self._popen.stdin is not None
        with suppress(BrokenPipeError):  # somebody has killed it: only what it is for is lost
            os.write(self._popen.stdin.fileno(), line.encode())

    def close(self) -> None:
        """End it, and with it whatever it still watches."""
        assert self._popen.stdin is not None
        self._popen.stdin.close()
        try:
            self._popen.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:  # somebody has stopped it
            self._popen.kill()
            self._popen.wait()
