"""What a worker died of, in words, and whether the kernel's out-of-memory killer did it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from workers import wait_for

from altlas_core.backends.supervision.exit import OutOfMemoryKills, describe_exit
from altlas_core.backends.supervision.output import MOST_BYTES, Output


def test_an_exit_is_told_in_words() -> None:
    assert describe_exit(-11, "") == "signal 11 (SIGSEGV)"
    assert describe_exit(-62, "") == "signal 62"
    assert describe_exit(3, "a\nImportError: no torch") == "exit status 3: ImportError: no torch"
    assert describe_exit(3, "") == "exit status 3"


def test_of_what_a_worker_prints_the_end_is_kept_and_a_flood_is_forgotten() -> None:
    output = Output()
    subprocess.run(
        ["sh", "-c", "echo first; echo the last words >&2"], stdout=output.fileno(), stderr=output.fileno(), check=True
    )
    output.trim()
    assert output.tail() == "first\nthe last words"
    flood = [sys.executable, "-c", f"import os; os.write(1, bytes({MOST_BYTES + 1})); input(); print('goes on')"]
    with subprocess.Popen(flood, stdin=subprocess.PIPE, stdout=output.fileno()) as printing:
        wait_for(lambda: os.fstat(output.fileno()).st_size > MOST_BYTES)
        output.trim()
        assert os.fstat(output.fileno()).st_size == 0
        printing.communicate(b"\n")
    assert output.tail() == "goes on"
    output.close()
    assert output.tail() == ""


class Counts:
    """Files as the kernel keeps them."""

    def __init__(self, folder: Path) -> None:
        self.cgroup, self.vmstat = folder / "memory.events", folder / "vmstat"
        self.set(cgroup=5, anywhere=7)

    def set(self, cgroup: int, anywhere: int) -> None:
        self.cgroup.write_text(f"low 0\nhigh 0\nmax 31\noom 9\noom_kill {cgroup}\noom_group_kill 0\n")
        self.vmstat.write_text(f"nr_free_pages 1\noom_kill {anywhere}\npgfault 12\n")


@pytest.fixture
def counts(tmp_path: Path) -> Counts:
    return Counts(tmp_path)


def test_a_kill_that_no_count_knows_of_was_somebody_else(counts: Counts) -> None:
    assert OutOfMemoryKills(counts.cgroup, counts.vmstat).remark() == ""


def test_a_kill_in_our_cgroup_is_named_as_such_once(counts: Counts) -> None:
    kills = OutOfMemoryKills(counts.cgroup, counts.vmstat)
    counts.set(cgroup=6, anywhere=8)
    assert kills.remark().startswith(", by the kernel's out-of-memory killer: the memory limit of this container")
    assert kills.remark() == ""


def test_two_kills_at_a_time_account_for_two_workers(counts: Counts) -> None:
    kills = OutOfMemoryKills(counts.cgroup, counts.vmstat)
    counts.set(cgroup=7, anywhere=9)
    assert all("by the kernel" in kills.remark() for _ in range(2))
    assert kills.remark() == ""


def test_a_kill_elsewhere_on_the_computer_is_a_guess(counts: Counts) -> None:
    kills = OutOfMemoryKills(counts.cgroup, counts.vmstat)
    counts.set(cgroup=5, anywhere=8)
    assert kills.remark() == ", probably by the kernel's out-of-memory killer: see dmesg"


def test_where_nothing_is_counted_it_is_a_possibility(tmp_path: Path) -> None:
    kills = OutOfMemoryKills(tmp_path / "none", tmp_path / "neither")
    assert kills.remark() == ", perhaps by the kernel's out-of-memory killer: see dmesg"
