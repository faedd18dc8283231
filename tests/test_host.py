"""A CPU device gets what this process may really use: its cores, and its memory within a container's limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from altlas_core.backends.host import read_host


def write(root: Path, **files: str) -> Path:
    """Files below `root`; `__` in a name is a slash, `_DOT_` a dot."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


BASE = {
    "proc__meminfo": "MemTotal:       1048576 kB\nMemFree: 1 kB\n",
    "proc__cpuinfo": "processor : 0\nmodel name\t: A   Processor 9000\n",
}


def test_memory_and_name_come_from_the_kernel(tmp_path: Path) -> None:
    host = read_host(write(tmp_path, **BASE))
    assert host.memory_bytes == 2**30
    assert host.cpu_name == "A Processor 9000"
    assert host.cores == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({"sys__fs__cgroup__memory_DOT_max": "max\n"}, 2**30),
        ({"sys__fs__cgroup__memory_DOT_max": "1000\n"}, 1000),
        ({"sys__fs__cgroup__memory__memory_DOT_limit_in_bytes": "9223372036854771712\n"}, 2**30),
        ({"sys__fs__cgroup__memory__memory_DOT_limit_in_bytes": "2000\n"}, 2000),
        ({"proc__self__cgroup": "0::/a/b\n", "sys__fs__cgroup__a__memory_DOT_max": "3000\n"}, 3000),
        (
            {
                "proc__self__cgroup": "0::/a\n",
                "sys__fs__cgroup__a__memory_DOT_max": "max\n",
                "sys__fs__cgroup__memory_DOT_max": "5",
            },
            5,
        ),
    ],
)
def test_the_tightest_limit_of_a_container_holds(tmp_path: Path, files: dict[str, str], memory: int) -> None:
    assert read_host(write(tmp_path, **BASE, **files)).memory_bytes == memory


@pytest.mark.parametrize("text", ["100000 100000", "50000 100000"])
def test_a_quota_of_cpu_time_is_counted_in_whole_cores_and_at_least_one(tmp_path: Path, text: str) -> None:
    assert read_host(write(tmp_path, **BASE, sys__fs__cgroup__cpu_DOT_max=text)).cores == 1


@pytest.mark.parametrize("text", ["max 100000", "nonsense", "100 0", ""])
def test_no_quota_leaves_the_cores_this_process_may_run_on(tmp_path: Path, text: str) -> None:
    host = read_host(write(tmp_path, **BASE, sys__fs__cgroup__cpu_DOT_max=text))
    assert host.cores == len(os.sched_getaffinity(0))


def test_a_tighter_quota_leaves_no_core_to_choose(tmp_path: Path) -> None:
    """Where the affinity is no wider than the quota, the cores are ours by number."""
    one = read_host(write(tmp_path, **BASE, sys__fs__cgroup__cpu_DOT_max="100000 100000"))
    alone = len(os.sched_getaffinity(0)) == 1
    assert one.cpu_ids == (tuple(os.sched_getaffinity(0)) if alone else None)


def test_hardware_threads_of_a_core_stand_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux numbers the first thread of every core before the second of any."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    for cpu in range(4):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text("0\n")
        (folder / "core_id").write_text(f"{cpu % 2}\n")
    assert read_host(write(tmp_path, **BASE)).cpu_ids == (0, 2, 1, 3)


def test_without_any_of_these_files_there_is_still_a_host(tmp_path: Path) -> None:
    host = read_host(tmp_path)
    assert host.memory_bytes > 0
    assert host.cpu_name
