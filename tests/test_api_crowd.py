"""500 clients at once, among them slow, silent and broken ones: the others are answered as if they were alone."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from serving import Served, serving

from altlas_core.api.hub import EVERY_S, LAGGED, MOST_WAITING, Hub, Listener, event
from altlas_core.api.protocol import Protocol
from altlas_core.api.records import Prediction

CLIENTS = 500
ROUNDS = 2
PATIENCE_S = 50.0  # in which a client must have done all it wants: far more than it takes
FAST_POOL = ("--backend", "simulated", "--devices", "8x A100", "--pace", "100", "--set", "gpu.workload.max_queue=50000")


class Connection:
    """HTTP/1.1 on one connection, as much as is needed here: cheap, so that 500 of them fit in one process."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, method: str, path: str, body: bytes | None = None, length: int | None = None) -> None:
        lines = [f"{method} /api/v1{path} HTTP/1.1", "Host: localhost"]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body) if length is None else length}"]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + (body or b""))

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), headers

    async def ask(self, method: str, path: str, asked: Any = None) -> Any:
        """The answer's JSON. Anything but 200 fails."""
        self.send(method, path, None if asked is None else json.dumps(asked).encode())
        status, headers = await self.head()
        text = await self.reader.readexactly(int(headers["content-length"]))
        assert status == 200, text
        return json.loads(text)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("crowd"), *FAST_POOL) as served:
        yield served


def open_files(server: Served) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


# --- clients that do as they should -----------------------------------------------------------------------------------


async def well_behaved(port: int, place: int) -> list[str]:
    """All of it again and again, on one connection; returns the ids it got."""
    async with connected(port) as client:
        return [
            name for round_ in range(ROUNDS) for name in await one_round(client, place, f"client {place} é {round_}")
        ]


async def one_round(client: Connection, place: int, text: str) -> list[str]:
    """Posts, waits, gets, lists."""
    alone = await client.ask("POST", "/predict?wait=40", {"text": text, "max_length": 8})
    assert alone["status"] == "COMPLETED"
    assert alone["task"]["params"]["text"] == text
    batch = await client.ask("POST", "/predict/batch", {"texts": [f"{text} {n}" for n in range(3)]})
    task = await client.ask("GET", f"/tasks/{alone['task_id']}")
    assert task == alone["task"]
    for n, name in enumerate(batch["task_ids"]):
        task = await client.ask("GET", f"/tasks/{name}?wait=40")
        assert (task["status"], task["params"]["text"]) == ("COMPLETED", f"{text} {n}")
        assert task["batch_id"] == batch["batch_id"]
    listed = await client.ask("GET", f"/tasks?batch={batch['batch_id']}")
    assert [task["id"] for task in listed["tasks"]] == batch["task_ids"][::-1]
    if place % 10 == 0:
        newest = await client.ask("GET", "/tasks?limit=20")
        numbers = [int(task["id"][5:]) for task in newest["tasks"]]
        assert numbers == sorted(numbers, reverse=True)
        assert len(set(numbers)) == 20
        assert len((await client.ask("GET", "/gpus"))["gpus"]) == 8
    counted = (await client.ask("GET", f"/batches/{batch['batch_id']}"))["counts"]
    assert counted["COMPLETED"] == 3
    return [alone["task_id"], *batch["task_ids"]]


async def listening(port: int, until: asyncio.Event) -> int:
    """Hears events until it has heard of a task, and on until the end; returns how many tasks it heard of."""
    heard = 0
    async with connected(port) as client:
        client.send("GET", "/events")
        status, headers = await client.head()
        assert (status, headers["content-type"].split(";")[0]) == (200, "text/event-stream")
        while not (until.is_set() and heard):
            heard += (await client.reader.readuntil(b"\n\n")).count(b"event: task\n")
    return heard


# --- clients that do not ----------------------------------------------------------------------------------------------

BODY = json.dumps({"text": "never seen", "max_length": 4}).encode()


async def slow(port: int, until: asyncio.Event) -> None:
    """A byte a second."""
    async with connected(port) as client:
        client.send("POST", "/predict", b"", len(BODY))
        for at in range(len(BODY) - 1):
            client.writer.write(BODY[at : at + 1])
            with suppress(TimeoutError):
                await asyncio.wait_for(until.wait(), 1.0)
            if until.is_set():
                return


async def silent(port: int, until: asyncio.Event) -> None:
    async with connected(port):
        await until.wait()


async def half_a_head(port: int, until: asyncio.Event) -> None:
    async with connected(port) as client:
        client.writer.write(b"POST /api/v1/predict HTTP/1.1\r\nHost: loc")
        await until.wait()


async def deaf(port: int, until: asyncio.Event) -> None:
    """Asks for the events and reads none."""
    async with connected(port) as client:
        client.send("GET", "/events")
        await until.wait()
        client.writer.transport.abort()


async def leaves_in_the_body(port: int, until: asyncio.Event) -> None:
    while not until.is_set():
        async with connected(port) as client:
            client.send("POST", "/predict", BODY[:10], len(BODY))
            await asyncio.sleep(0.05)
            client.writer.transport.abort()


async def leaves_while_it_waits(port: int, until: asyncio.Event) -> None:
    while not until.is_set():
        async with connected(port) as client:
            client.send("POST", "/predict?wait=30", json.dumps({"text": "left", "max_length": 512}).encode())
            await asyncio.sleep(0.003)
            client.writer.transport.abort()
        await asyncio.sleep(0.05)


async def leaves_the_events(port: int, until: asyncio.Event) -> None:
    while not until.is_set():
        async with connected(port) as client:
            client.send("GET", "/events")
            await client.head()
            client.writer.transport.abort()
        await asyncio.sleep(0.05)


async def talks_nonsense(port: int, until: asyncio.Event) -> None:
    chance = random.Random(port)
    while not until.is_set():
        async with connected(port) as client:
            client.writer.write(chance.randbytes(200) + b"\r\n\r\n")
            with suppress(OSError):
                await asyncio.wait_for(client.reader.read(1000), 5)
        await asyncio.sleep(0.05)


BROKEN = (slow, silent, half_a_head, deaf, leaves_in_the_body, leaves_while_it_waits, leaves_the_events, talks_nonsense)


# --- together ---------------------------------------------------------------------------------------------------------


def crowd(server: Served, broken: int) -> tuple[list[str], list[float]]:
    """500 clients with so many broken ones of each kind; the ids that were given out, and how long a health check took
    that somebody made all the while (seconds)."""

    async def health(until: asyncio.Event) -> list[float]:
        took = []
        async with connected(server.port) as client:
            while not until.is_set():
                began = time.perf_counter()
                assert (await client.ask("GET", "/status"))["ready"] is True
                took.append(time.perf_counter() - began)
                await asyncio.sleep(0.05)
        return took

    async def all_of_them() -> tuple[list[str], list[float]]:
        done = asyncio.Event()
        beside = [asyncio.ensure_future(act(server.port, done)) for act in BROKEN for _ in range(broken)]
        listeners = [asyncio.ensure_future(listening(server.port, done)) for _ in range(5)]
        watch = asyncio.ensure_future(health(done))
        await asyncio.sleep(0.1)
        try:
            ids = await asyncio.gather(*(well_behaved(server.port, place) for place in range(CLIENTS)))
        finally:
            done.set()
        assert all(heard > 0 for heard in await asyncio.gather(*listeners))
        await asyncio.gather(*beside)
        return [name for names in ids for name in names], await watch

    async def in_time() -> tuple[list[str], list[float]]:
        return await asyncio.wait_for(all_of_them(), PATIENCE_S)

    return asyncio.run(in_time())


@pytest.mark.parametrize("broken", [0, 12])
def test_500_clients_get_their_own_answers(server: Served, broken: int) -> None:
    before = open_files(server)
    ids, took = crowd(server, broken)
    assert len(set(ids)) == len(ids) == 4 * CLIENTS * ROUNDS
    print(f"{len(took)} status requests beside them, the slowest {max(took) * 1e3:.0f} ms")
    until = time.monotonic() + 20
    while (left := open_files(server)) > before + 5:  # what the others left behind is closed
        assert time.monotonic() < until, left
        time.sleep(0.1)
    assert server.predict("still there", wait=20)["status"] == "COMPLETED"
    assert not any("Traceback" in line for line in server.lines)
    levels = {message["level"] for message in server.messages() if "logger" in message}
    assert levels <= {"info", "warning"}


def test_the_system_s_usual_limit_of_open_files_is_raised_as_far_as_it_allows(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        server = Served(tmp_path, *FAST_POOL)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        server.wait_ready()
        limits = Path(f"/proc/{server.process.pid}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
        assert int(line.split()[3]) == (65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536))
    finally:
        server.close()


# --- heads that do not come -------------------------------------------------------------------------------------------


class Hasty(Protocol):
    head_s = 0.3


async def answers_late(_scope: Any, _receive: Any, send: Any) -> None:
    await asyncio.sleep(2 * Hasty.head_s)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})


def test_a_connection_on_which_no_request_comes_is_closed_and_one_that_waits_for_its_answer_is_not() -> None:
    async def test() -> None:
        config = uvicorn.Config(answers_late, http=Hasty, log_config=None, lifespan="off", access_log=False)
        server = uvicorn.Server(config)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            serving_ = asyncio.ensure_future(server._serve([listening]))
            async with connected(port) as silent, connected(port) as halting, connected(port) as good:
                halting.writer.write(b"GET / HTTP/1.1\r\nHost: loc")
                assert await good.ask("GET", "/") == {}
                assert await silent.reader.read() == b""
                told = await halting.reader.read()
                assert told.startswith(b"HTTP/1.1 400 ")
                assert b"the headers did not arrive within 0.3 s" in told
                assert await good.ask("GET", "/") == {}
                for byte in b"GET ":  # the next one on the same connection
                    good.writer.write(bytes([byte]))
                    await asyncio.sleep(0.05)
                assert (await good.reader.read()).startswith(b"HTTP/1.1 400 ")
            server.should_exit = True
            await serving_

    asyncio.run(asyncio.wait_for(test(), 20))


# --- those who hear the events, by themselves -------------------------------------------------------------------------


def make_hub() -> Hub:
    return Hub(lambda: {"ready": True}, lambda: {"gpus": "x" * 1000})


def prediction(number: int, text: str = "a") -> Prediction:
    params = json.dumps({"text": text})
    return Prediction(number, text, 1, 0.0, "normal", None, None, params, 1.0, committed=True)


def test_a_listener_that_does_not_read_costs_a_bounded_amount_and_is_told_that_it_missed_something() -> None:
    listener = Listener()
    for place in range(3 * MOST_WAITING):
        listener.put(b"task %d" % place)
        listener.put(b"gpus %d" % place, "gpus")
        assert len(listener.waiting) <= MOST_WAITING
        assert len(listener.latest) == 1
    assert listener.take() == LAGGED
    assert listener.take() == b"gpus %d" % (3 * MOST_WAITING - 1)  # of a state the latest is enough
    assert listener.take() == b"task %d" % (2 * MOST_WAITING)
    while listener.take() is not None:
        pass
    listener.put(b"y")
    assert listener.take() == b"y"
    assert listener.take() is None


def test_all_listeners_share_what_waits_for_them() -> None:
    async def both() -> None:
        hub = make_hub()
        streams = [hub.stream() for _ in range(2)]
        for stream in streams:
            await anext(stream)
        hub.tick()
        hub.changed(prediction(1))
        await asyncio.sleep(2 * EVERY_S)
        first, second = hub._listeners
        assert first.waiting[0] is second.waiting[0]
        assert first.latest["gpus"] is second.latest["gpus"]

    asyncio.run(both())


def test_several_ticks_in_a_row_are_told_as_one() -> None:
    async def counted() -> int:
        made: list[int] = []
        hub = Hub(lambda: {"made": made.append(1)}, dict)
        stream = hub.stream()
        await anext(stream)
        for _ in range(100):
            hub.tick()
        await asyncio.sleep(0)
        return len(made)

    assert asyncio.run(counted()) == 2  # at the beginning, and for the hundred


def test_a_slow_listener_holds_up_nobody_and_one_that_left_is_forgotten() -> None:
    async def both() -> None:
        hub = make_hub()
        slow, quick = hub.stream(), hub.stream()
        assert (await anext(slow)).startswith(b"event: status\n")
        assert (await anext(quick)).startswith(b"event: status\n")
        for place in range(MOST_WAITING + 10):
            hub._tell(event("task", str(place)))
            assert (await anext(quick)).startswith(b"event: ")
        assert await anext(slow) == LAGGED
        await slow.aclose()  # type: ignore[attr-defined]
        while (await anext(quick)) != event("task", str(MOST_WAITING + 9)):
            pass
        waiting = asyncio.ensure_future(anext(quick))
        await asyncio.sleep(0)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        assert not hub._listeners

    asyncio.run(both())


def test_of_many_changes_of_a_task_the_last_is_told_and_at_the_end_every_stream_ends() -> None:
    async def heard() -> str:
        hub = make_hub()
        stream = hub.stream()
        told = [await anext(stream), await anext(stream)]
        task = prediction(1, "long " * 1000)
        for status in ("QUEUED", "RUNNING", "COMPLETED"):
            task.status = status
            hub.changed(task)
        told.append(await asyncio.wait_for(anext(stream), 5))
        asyncio.get_running_loop().call_soon(hub.close)
        told += [each async for each in stream]
        assert not hub._listeners
        return b"".join(told).decode()

    text = asyncio.run(heard())
    (told,) = [part.partition("data: ")[2] for part in text.split("\n\n") if part.startswith("event: task\n")]
    task = json.loads(told)
    assert task["status"] == "COMPLETED"
    assert len(task["params"]["text"]) < 300
