"""What a worker writes to stdout and stderr: kept for its last words, and never more than there is room for."""

from __future__ import annotations

import fcntl
import os
import tempfile
from typing import IO, Final

MOST_BYTES: Final = 16 << 20  # what a task prints would else fill the disk
_TAIL_BYTES: Final = 4000


class Output:
    """A file without a name on disk: nothing is left behind, whatever ends us."""

    __slots__ = ("_file",)

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        number = self._file.fileno()
        fcntl.fcntl(number, fcntl.F_SETFL, fcntl.fcntl(number, fcntl.F_GETFL) | os.O_APPEND)

    def fileno(self) -> int:
        return self._file.fileno()

    def trim(self) -> None:
        """Forget what was written if it is much."""
        if os.fstat(self._file.fileno()).st_size > MOST_BYTES:
            os.ftruncate(self._file.fileno(), 0)

    def tail(self) -> str:
        """The end of what was written; nothing once it is closed."""
        if self._file.closed:
            return ""
        size = os.fstat(self._file.fileno()).st_size
        return os.pread(self._file.fileno(), _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode(errors="replace").strip()

    def close(self) -> None:
        self._file.close()
