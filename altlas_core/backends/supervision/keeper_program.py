"""The program of keeper.py: it reads numbers of process groups ("-N" takes N back), and ends them when its input does.

Run by itself, without the package. `end_group` is also how a worker's group ends while its driver lives.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

PATIENCE_S = 0.5  # for a resource tracker: it sees at once that nobody is left, and removes what they have left


def end_group(group: int) -> None:
    """SIGKILL to a process group; a resource tracker of multiprocessing in it is first left to remove shared memory."""
    trackers = set()
    for pid in members(group):
        if is_tracker(pid):
            trackers.add(pid)
        else:
            _kill(pid)
    until_s = time.monotonic() + PATIENCE_S
    while trackers.intersection(members(group)) and time.monotonic() < until_s:
        time.sleep(0.002)
    with suppress(OSError):
        os.killpg(group, signal.SIGKILL)


def members(group: int) -> list[int]:
    """The processes of a group that have not ended. Empty where the system does not tell."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, of_group = (process / "stat").read_bytes().rpartition(b")")[2].split()[:3]
            if int(of_group) == group and state not in b"ZX":
                found.append(int(process.name))
    return found


def is_tracker(pid: int) -> bool:
    """Whether it is the process of multiprocessing that removes shared memory when those who made it have ended."""
    with suppress(OSError):
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _kill(pid: int) -> None:
    with suppress(OSError):
        os.kill(pid, signal.SIGKILL)


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
        end_group(group)


if __name__ == "__main__":
    main()
