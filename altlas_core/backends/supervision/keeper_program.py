"""The program of keeper.py: it reads numbers of process groups ("-N" takes N back), and kills them at the end."""

from __future__ import annotations

import os
import signal
from contextlib import suppress


def main() -> None:
    groups: set[int] = set()
    rest = b""
    while data := os.read(0, 1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        for number in map(int, lines):
            if number > 0:
                groups.add(number)
            else:
                groups.discard(-number)
    for group in groups:
        with suppress(OSError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
