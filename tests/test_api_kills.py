"""`altlas serve` killed at once (SIGKILL) under load, and started again in the same folder: what was told holds."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Served, serving

FINAL = {"COMPLETED", "FAILED", "CANCELLED"}
CLIENTS = 5
SLOWED = ("--backend", "simulated", "--devices", "2x A100", "--pace", "0.3")  # a few tenths of a second for a task


class Ledger:
    """What all clients together were told, and where the server has contradicted itself."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.texts: dict[str, str] = {}  # of every id that was answered
        self.batches: dict[str, list[str]] = {}
        self.finals: dict[str, dict[str, Any]] = {}  # as they were read first
        self.keyed: dict[str, tuple[str, dict[str, Any], Any]] = {}  # path, body and first answer; None: none came
        self.cancelled: set[str] = set()
        self.faults: list[str] = []

    def fault(self, text: str) -> None:
        with self.lock:
            self.faults.append(text)

    def told(self, ids: list[str], texts: list[str], batch: str | None) -> None:
        with self.lock:
            for task_id, text in zip(ids, texts, strict=True):
                if task_id in self.texts:
                    self.faults.append(f"{task_id} was used twice")
                self.texts[task_id] = text
            if batch is not None:
                if batch in self.batches:
                    self.faults.append(f"{batch} was used twice")
                self.batches[batch] = ids

    def known(self, name: str) -> tuple[dict[str, Any] | None, bool]:
        """What has been told of a task so far: how it ended, and whether it was cancelled."""
        with self.lock:
            return self.finals.get(name), name in self.cancelled

    def read(self, task: dict[str, Any], known: tuple[dict[str, Any] | None, bool]) -> None:
        """Enter what a request has read; `known`: what had been told before it was sent (others tell, too)."""
        final, cancelled = known
        with self.lock:
            name, status = task["id"], task["status"]
            if name in self.texts and task["params"]["text"] != self.texts[name]:
                self.faults.append(f"{name} is about another text")
            if final is not None and final != task:
                self.faults.append(f"{name} was {final} and is {task}")
            if cancelled and status != "CANCELLED":
                self.faults.append(f"{name} was cancelled and is {status}")
            if status in FINAL:
                self.finals[name] = task

    def some_id(self, chance: random.Random) -> str | None:
        with self.lock:
            ids = list(self.texts)[-300:]
        return chance.choice(ids) if ids else None


class Caller(threading.Thread):
    """A client that does this and that until its server is gone."""

    def __init__(self, base: str, ledger: Ledger, seed: str) -> None:
        super().__init__(daemon=True)
        self._client = httpx.Client(base_url=f"{base}/api/v1", timeout=30.0)
        self._ledger = ledger
        self._chance = random.Random(seed)
        self._seed = seed
        self._count = 0

    def run(self) -> None:
        acts = [self._single, self._batch, self._repeat, self._cancel, self._get, self._wait]
        until = time.monotonic() + 30
        with self._client:
            while time.monotonic() < until:
                act = self._chance.choices(acts, [4, 2, 1, 2, 4, 1])[0]
                try:
                    act()
                except httpx.TransportError:
                    return
                except Exception as error:
                    self._ledger.fault(f"{act.__name__}: {error!r}")
                    return

    def _text(self) -> str:
        self._count += 1
        return f"{self._seed} {self._count} ü"

    def _length(self) -> int:
        return self._chance.choice([1, 16, 128, 512])

    def _single(self) -> None:
        self._post("/predict", {"text": self._text(), "max_length": self._length()})

    def _batch(self) -> None:
        texts = [self._text() for _ in range(self._chance.randint(1, 6))]
        self._post("/predict/batch", {"texts": texts, "max_length": self._length()})

    def _post(self, path: str, body: dict[str, Any]) -> None:
        key = f"{self._seed}-{self._count}".replace(" ", "-") if self._chance.random() < 0.5 else None
        if key is not None:
            with self._ledger.lock:
                self._ledger.keyed[key] = (path, body, None)
        answer = self._client.post(path, json=body, headers={} if key is None else {"Idempotency-Key": key})
        assert answer.status_code == 200, answer.text
        note(self._ledger, path, body, answer.json(), key)

    def _repeat(self) -> None:
        with self._ledger.lock:
            answered = [key for key, (_, _, told) in self._ledger.keyed.items() if told is not None]
        if answered:
            repeat(self._client, self._ledger, self._chance.choice(answered))

    def _cancel(self) -> None:
        name = self._ledger.some_id(self._chance)
        if name is None:
            return
        answer = self._client.delete(f"/tasks/{name}")
        assert answer.status_code in (200, 409), answer.text
        if answer.status_code == 200:
            with self._ledger.lock:
                self._ledger.cancelled.add(name)
        else:
            assert any(status in answer.json()["error"] for status in FINAL), answer.text

    def _get(self) -> None:
        name = self._ledger.some_id(self._chance)
        if name is not None:
            known = self._ledger.known(name)
            self._ledger.read(self._client.get(f"/tasks/{name}").raise_for_status().json(), known)

    def _wait(self) -> None:
        name = self._ledger.some_id(self._chance)
        if name is not None:
            known = self._ledger.known(name)
            self._ledger.read(self._client.get(f"/tasks/{name}?wait=0.5").raise_for_status().json(), known)


def note(ledger: Ledger, path: str, body: dict[str, Any], told: dict[str, Any], key: str | None) -> None:
    """Enter the first answer to a POST."""
    if path == "/predict":
        ledger.told([told["task_id"]], [body["text"]], None)
    else:
        ledger.told(told["task_ids"], body["texts"], told["batch_id"])
    if key is not None:
        with ledger.lock:
            ledger.keyed[key] = (path, body, told)


def repeat(client: httpx.Client, ledger: Ledger, key: str) -> None:
    """POST again with a key that was used: it gets the first answer, also where that never arrived."""
    path, body, first = ledger.keyed[key]
    answer = client.post(path, json=body, headers={"Idempotency-Key": key})
    assert answer.status_code == 200, answer.text
    if first is None:
        note(ledger, path, body, answer.json(), key)
    elif answer.json() != first:
        ledger.fault(f"{key}: first {first}, then {answer.json()}")


def every_task(server: Served) -> list[dict[str, Any]]:
    """Through the pages of the list, newest first."""
    found: list[dict[str, Any]] = []
    page = server.get("/tasks", limit=500)
    for _ in range(1000):
        found += page["tasks"]
        if page["next"] is None:
            return found
        page = server.get("/tasks", limit=500, before=page["next"])
    raise AssertionError("the list has no end")


def check(server: Served, ledger: Ledger) -> None:
    """All that was told before is still so."""
    there = {task["id"]: task for task in every_task(server)}
    assert set(ledger.texts) <= set(there)
    for task in there.values():
        ledger.read(task, ledger.known(task["id"]))
    for batch, ids in ledger.batches.items():
        assert server.get(f"/batches/{batch}")["task_ids"] == ids
    assert ledger.faults == []


def until_all_have_ended(server: Served) -> None:
    until = time.monotonic() + 60
    while True:
        tasks = server.get("/status")["tasks"]
        if tasks["QUEUED"] == tasks["RUNNING"] == 0:
            return
        assert time.monotonic() < until, tasks
        time.sleep(0.05)


def under_load(server: Served, ledger: Ledger, seed: int, round_: int) -> None:
    """Clients at work, until a moment drawn by chance: then the server is killed as soon as it has answered a large
    batch, whose commit takes a while."""
    callers = [Caller(server.base, ledger, f"{seed} {round_} {place}") for place in range(CLIENTS)]
    for caller in callers:
        caller.start()
    time.sleep(random.Random(f"{seed} {round_}").uniform(0.6, 1.6))
    body = {"texts": [f"{seed} {round_} last {place} " + "x" * 5000 for place in range(150)], "max_length": 1}
    answer = server.client.post("/api/v1/predict/batch", json=body)
    server.kill()
    note(ledger, "/predict/batch", body, answer.json(), None)
    for caller in callers:
        caller.join(35)
        assert not caller.is_alive()


def test_what_was_told_before_a_kill_holds_after_it(tmp_path: Path) -> None:
    seed = 1
    ledger = Ledger()
    for round_ in range(3):
        with serving(tmp_path, *SLOWED) as server:
            check(server, ledger)
            under_load(server, ledger, seed, round_)
    assert ledger.faults == []
    assert len(ledger.texts) > 600
    assert ledger.finals
    assert ledger.cancelled
    assert ledger.keyed
    with serving(tmp_path, *SLOWED[:-1], "1000") as server:
        check(server, ledger)
        with httpx.Client(base_url=f"{server.base}/api/v1", timeout=30.0) as client:
            for key in list(ledger.keyed):
                repeat(client, ledger, key)
        until_all_have_ended(server)
        check(server, ledger)
        tasks = every_task(server)
        assert {task["status"] for task in tasks} <= FINAL
        texts = [task["params"]["text"] for task in tasks]
        assert len(set(texts)) == len(texts)  # nothing was begun twice
        ids = [task["id"] for task in tasks]
        assert len(set(ids)) == len(ids)
        check(server, ledger)
        assert server.terminate() == 0
    assert [path.name for path in tmp_path.glob("*.sqlite3")] == ["altlas.sqlite3"]


def descendants(pid: int) -> set[int]:
    """The processes below this one, as /proc tells them."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # it has ended meanwhile
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_kill_in_the_middle_of_generation_leaves_no_process_and_loses_no_work(tmp_path: Path) -> None:
    texts = [f"def function_{place}(" for place in range(12)]
    body = {"texts": texts, "max_length": 500, "temperature": 0.0}
    with serving(tmp_path, "--devices", "cpu:1") as server:
        told = server.client.post("/api/v1/predict/batch", json=body).json()
        until = time.monotonic() + 30
        while not server.get("/tasks", status="RUNNING")["tasks"]:
            assert time.monotonic() < until
        workers = descendants(server.process.pid)
        assert workers
        server.kill()
        assert [server.process.returncode, os.getpid() in workers] == [-9, False]
        while left := {pid for pid in workers if alive(pid)}:
            assert time.monotonic() < until, left
            time.sleep(0.02)
    with serving(tmp_path, "--devices", "cpu:1") as server:
        for place, name in enumerate(told["task_ids"]):
            task = server.task(name, wait=60)
            assert (task["status"], task["params"]["text"]) == ("COMPLETED", texts[place])
            assert task["result"]["text"]
            assert not task["result"]["simulated"]
        counts = server.get(f"/batches/{told['batch_id']}")["counts"]
        assert counts == {"QUEUED": 0, "RUNNING": 0, "COMPLETED": 12, "FAILED": 0, "CANCELLED": 0}
