"""What a worker process died of, in words."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Final

_COUNT: Final = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


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


class OutOfMemoryKills:
    """How many processes the kernel's out-of-memory killer has ended: in our cgroup, and on the whole computer.

    A SIGKILL does not say who sent it; that one of these counts has risen by one that no other death accounts for does.
    """

    def __init__(self, cgroup: Path | None = None, vmstat: Path = Path("/proc/vmstat")) -> None:
        """`cgroup`: a file with a line "oom_kill N"; None: that of this process's own cgroup."""
        self._files = (cgroup or _cgroup_events(), vmstat)
        self._known = [_count(file) for file in self._files]

    def remark(self) -> str:
        """What to add to "signal 9 (SIGKILL)" of a worker that nobody here has killed. May be empty."""
        in_cgroup, anywhere = (self._one_more(place) for place in range(2))
        if in_cgroup:
            return ", by the kernel's out-of-memory killer: the memory limit of this container or service was reached"
        if anywhere:
            return ", probably by the kernel's out-of-memory killer: see dmesg"
        if self._known == [None, None]:
            return ", perhaps by the kernel's out-of-memory killer: see dmesg"
        return ""

    def _one_more(self, place: int) -> bool:
        known, now = self._known[place], _count(self._files[place])
        if known is None or now is None or now <= known:
            return False
        self._known[place] = known + 1  # the others may be those of workers whose end is seen next
        return True


def _count(file: Path) -> int | None:
    try:
        found = _COUNT.search(file.read_text())
    except OSError:
        return None
    return None if found is None else int(found[1])


def _cgroup_events() -> Path:
    """cgroups(7): memory.events of version 2, memory.oom_control of version 1."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            file = Path(f"/sys/fs/cgroup{path}/memory.events")
        elif "memory" in controllers.split(","):
            file = Path(f"/sys/fs/cgroup/memory{path}/memory.oom_control")
        else:
            continue
        if file.exists():
            return file
    return Path("/sys/fs/cgroup/memory.events")
