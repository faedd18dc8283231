"""What this computer gives to CPU devices: cores, memory, the processor's name. Limits of a container count."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

# A cgroup v1 without a limit says a number near 2**63; no real limit is that large.
_NO_LIMIT_BYTES = 1 << 60


@dataclass(slots=True, frozen=True)
class Host:
    """`cores` this process may use, `memory_bytes` it may have, and the processor's name.

    `torch_problem`: why torch here cannot use a CUDA device (it is a build without CUDA, or not installed), or None.
    `cpu_ids`: the cores by number, threads of one physical core side by side; None where they are not ours to choose
    (a quota of CPU time gives fewer than may be used, and the kernel says which).
    """

    cores: int
    memory_bytes: int
    cpu_name: str
    torch_problem: str | None = None
    cpu_ids: tuple[int, ...] | None = None


def read_host(root: Path = Path("/")) -> Host:
    """Read the host below `root` (the file system's root but in tests)."""
    allowed = _affinity(root)
    cores = _cores(root, len(allowed))
    to_choose = cores == len(allowed) and hasattr(os, "sched_setaffinity")
    return Host(cores, _memory(root), _cpu_name(root), torch_problem(), allowed if to_choose else None)


def torch_problem() -> str | None:
    """Why torch could not use a CUDA device, read from its files: importing it would cost a second."""
    found = find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return "torch is not installed here; install torch 2.13.0"
    version = _text(Path(found.submodule_search_locations[0]) / "version.py")
    if re.search(r"^cuda\b.*=\s*None\s*$", version, re.MULTILINE):
        return "the torch installed here is a build without CUDA; install the CUDA build of torch 2.13.0"
    return None


def _affinity(root: Path) -> tuple[int, ...]:
    """The cores this process may run on: package by package, in each core by core, its hardware threads together."""
    if not hasattr(os, "sched_getaffinity"):
        return tuple(range(os.cpu_count() or 1))

    def place(cpu: int) -> tuple[int, int, int]:
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        package, core = (_text(folder / name).strip() for name in ("physical_package_id", "core_id"))
        return int(package) if package.isdigit() else 0, int(core) if core.isdigit() else cpu, cpu

    return tuple(sorted(os.sched_getaffinity(0), key=place))


def _cores(root: Path, allowed: int) -> int:
    """The cores this process may run on, or what the cgroup's CPU time amounts to, if less. At least one."""
    quotas = [_whole_cores(text) for text in _cgroup_files(root, "cpu.max", "")]
    return max(1, min([allowed, *(quota for quota in quotas if quota is not None)]))


def _whole_cores(cpu_max: str) -> int | None:
    """Whole cores: "200000 100000" (microseconds of CPU time per period) is 2; "max 100000" is no limit."""
    fields = cpu_max.split()
    if len(fields) != 2 or not all(field.isdigit() for field in fields) or int(fields[1]) == 0:
        return None
    return int(fields[0]) // int(fields[1])


def _memory(root: Path) -> int:
    physical = _physical_memory(root)
    limits = [int(text) for text in _cgroup_files(root, "memory.max", "memory/memory.limit_in_bytes") if text.isdigit()]
    return min([physical, *(limit for limit in limits if 0 < limit < _NO_LIMIT_BYTES)])


def _physical_memory(root: Path) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroup_files(root: Path, v2_name: str, v1_path: str) -> list[str]:
    """What the limit files say, of our own cgroup and of every one above it: the tightest holds."""
    mount = root / "sys/fs/cgroup"
    paths = [mount / v1_path] if v1_path else []
    for line in _text(root / "proc/self/cgroup").splitlines():
        if line.startswith("0::"):
            own = line[3:].strip("/")
            folders = [mount / own, *(mount / own).parents] if own and ".." not in own.split("/") else [mount]
            paths += [folder / v2_name for folder in folders if folder.is_relative_to(mount)]
    return [text for text in (_text(path).strip() for path in [*paths, mount / v2_name]) if text]


def _cpu_name(root: Path) -> str:
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return " ".join(value.split())
    return platform.processor() or "CPU"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
