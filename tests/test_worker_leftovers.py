"""Nothing is left behind: no process, nothing in /dev/shm, whatever ends the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from workers import DEVICES, Bench, gone, wait_for

from altlas_core.events import AttemptStopped, WorkerCrashed
from altlas_core.model import Call

HERE = str(Path(__file__).parent)


def family() -> set[int]:
    """The processes that this one has started, and theirs."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


def children_of_a_task(bench: Bench, folder: Path, name: str = "pids") -> list[int]:
    """Start a task that starts processes; their numbers."""
    file = folder / name
    arguments = json.dumps({"pids": str(file)})
    bench.running = bench.start(kind="call", call=Call("leaving:start_children", arguments))  # type: ignore[attr-defined]
    wait_for(file.exists)
    return [int(pid) for pid in file.read_text().split()]


def test_what_a_task_has_started_ends_with_its_worker_however_that_ends(tmp_path: Path) -> None:
    shared_memory = set(os.listdir("/dev/shm"))  # noqa: PTH208
    before = family()
    bench = Bench(DEVICES, spare_workers=1)
    try:
        mine = children_of_a_task(bench, tmp_path, "killed by us")
        bench.stop(bench.running)  # type: ignore[attr-defined]
        assert isinstance(bench.poll_until_next(), AttemptStopped)
        wait_for(lambda: all(map(gone, mine)))
        mine = children_of_a_task(bench, tmp_path, "killed by others")
        os.kill(bench.pid(), signal.SIGKILL)
        assert isinstance(bench.mail.next(), WorkerCrashed)  # although a child holds all that was open in the worker
        wait_for(lambda: all(map(gone, mine)))
        mine = children_of_a_task(bench, tmp_path, "closed")
        for gpu_id in range(2):  # they do not hear that they should end
            bench.start(gpu_id, kind="call", call=Call("leaving:hold_the_interpreter", '{"seconds": 600}'))
    finally:
        bench.backend.close()
    bench.backend.close()  # may be said twice
    wait_for(lambda: all(map(gone, mine)))
    assert family() <= before
    assert set(os.listdir("/dev/shm")) <= shared_memory  # noqa: PTH208  # removed before close() returns


PARENT = """
    import json, sys, time
    from pathlib import Path
    from altlas_core.backends.supervision.backend import TorchBackend
    from altlas_core.config import load_config
    from altlas_core.intake import make_tasks
    from altlas_core.model import Attempt, Call, DeviceSpec, TaskSpec

    class Mail:
        def post(self, fact): print(fact, file=sys.stderr)
        def post_at(self, *_): pass

    sys.path.append({here!r})
    backend = TorchBackend([DeviceSpec(0, "cpu", "cpu:0", 1 << 30, cores=1)], 2, 42, 1.0, spare_workers=1)
    backend.open(Mail())  # at the top level of a script, without a __main__ guard
    call = Call("leaving:start_children", json.dumps(dict(pids={file!r})))
    task = make_tasks([TaskSpec(kind="call", call=call)], load_config().gpu, 1)[0]
    backend.start(0.0, Attempt(task, 1, 0, 0.0))
    backend.flush()
    while not Path({file!r}).exists():
        time.sleep(0.01)
    print("ready", flush=True)
    {then}
"""


@pytest.mark.parametrize(
    ("then", "how"),
    [("time.sleep(600)", signal.SIGKILL), ("time.sleep(600)", signal.SIGINT), ("sys.exit(1)", None)],
    ids=["parent killed", "Ctrl-C", "never closed"],
)
def test_workers_and_what_they_started_end_with_their_parent(
    then: str, how: signal.Signals | None, tmp_path: Path
) -> None:
    shared_memory = set(os.listdir("/dev/shm"))  # noqa: PTH208
    file = tmp_path / "pids"
    program = textwrap.dedent(PARENT).format(then=then, here=HERE, file=str(file))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        assert parent.stdout.readline() == b"ready\n", parent.stderr.read().decode()
        left = [int(pid) for pid in file.read_text().split()]
        if how is not None:
            left += [child.pid for child in psutil.Process(parent.pid).children()]
            assert len(left) == 5  # two of the task, its worker, the spare one, the keeper
            parent.send_signal(how)
        parent.stderr.read()
    wait_for(lambda: all(map(gone, left)))
    wait_for(lambda: set(os.listdir("/dev/shm")) <= shared_memory)  # noqa: PTH208
