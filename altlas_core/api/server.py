"""`altlas serve`: everything that can be wrong is found before anything listens; then the server, until a signal."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

import uvicorn

from altlas_core.api.access_log import LineLog, setup_logging
from altlas_core.api.app import make_app
from altlas_core.api.engine import Engine, Parts
from altlas_core.api.journal import Journal, JournalInUseError
from altlas_core.api.keys import HostNames, Keys, check_exposure, load_keys
from altlas_core.api.metrics import Metrics
from altlas_core.api.protocol import Protocol
from altlas_core.api.service import Service
from altlas_core.backends.machine import Machine
from altlas_core.config_schema import Settings
from altlas_core.distributor import Distributor
from altlas_core.errors import AltlasError, ConfigError, RunError
from altlas_core.experiment import make_backend
from altlas_core.generation import TextModel
from altlas_core.text_models import describe_model

log = logging.getLogger("altlas.api")

DEFAULT_QUEUE: Final = 10_000
MOST_JOURNALS: Final = 100  # that servers in one folder may have
BACKLOG: Final = 2048  # connections waiting to be accepted
MOST_OPEN_FILES: Final = 65_536  # asked of the system, if it allows so many
KEEP_ALIVE_S: Final = 65
GARBAGE_THRESHOLDS: Final = (20_000, 20, 20)  # a full look, which stops everything, is seldom needed
SWITCH_INTERVAL_S: Final = 0.001  # between Python threads: a request waits no longer than that for the scheduler's


def served(settings: Settings) -> Settings:
    """The settings as a service reads them: a bounded queue, real time."""
    workload = settings.gpu.workload
    gpu = replace(settings.gpu, workload=replace(workload, max_queue=workload.max_queue or DEFAULT_QUEUE))
    return replace(settings, gpu=gpu, run=replace(settings.run, pace=settings.run.pace or 1.0))


def run_server(settings: Settings, machine: Machine, host: str, port: int) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the exit status. Raises AltlasError before anything listens."""
    settings = served(settings)
    keys = load_keys(os.environ, settings.api.key_file)
    check_exposure(host, keys)
    model = describe_model(settings.predict.model)
    listening = listen(host, port)
    journal = open_journal(settings)
    line_log = setup_logging(sys.stderr)
    try:
        engine = Engine(_parts(settings, machine, journal, model))
    except BaseException:
        journal.close()
        raise
    if keys.warning:
        log.warning("%s", keys.warning)
    for statement in machine.statements:
        log.info("%s", statement)
    if len(machine.devices) > 1 and settings.gpu.selection.default_strategy == "single_gpu":
        log.info("gpu.selection.default_strategy is single_gpu: GPU 0 alone is used unless a request names another")
    _settle_in()
    server = Server(engine, Service(engine, line_log), keys, HostNames(host, settings.api.allowed_hosts), listening)
    return server.serve_until_signal(line_log)


def _settle_in() -> None:
    """What was imported stays for good and need not be looked through; requests make next to no cyclic garbage."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:  # often 1024, and every connection is one
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _parts(settings: Settings, machine: Machine, journal: Journal, model: TextModel) -> Parts:
    specs = machine.devices
    pace = settings.run.pace if machine.provenance == "simulated" else 1.0
    # The bound on the queue is kept here, per prediction; inside, a piece that was accepted is never refused.
    inside = replace(settings.gpu, workload=replace(settings.gpu.workload, max_queue=0))
    return Parts(
        settings,
        machine,
        Distributor(inside, specs, settings.seed),
        make_backend(settings, specs, settings.seed),
        journal,
        model,
        Metrics(),
        pace,
    )


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"--host {host}: no such address ({error}); allowed: an IP address or a host name") from None
    family, kind, protocol, _, address = found[0]
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"--host {host} --port {port}: cannot listen there: {error.strerror}; take another port"
        ) from None
    return listening


def open_journal(settings: Settings) -> Journal:
    """The journal of the settings; where none is named, the first in the working directory that nobody has open."""
    api = settings.api

    def opened(path: Path) -> Journal:
        return Journal(
            path,
            retention_age_s=api.retention_age,
            retention_count=api.retention_count,
            full_sync=api.full_sync,
        )

    if api.journal is not None:
        return opened(Path(api.journal))
    for number in range(1, MOST_JOURNALS + 1):
        try:
            return opened(Path("altlas.sqlite3" if number == 1 else f"altlas-{number}.sqlite3"))
        except JournalInUseError:
            continue
    raise ConfigError(f"{MOST_JOURNALS} servers run in this folder already; name another with api.journal")


class Server(uvicorn.Server):
    """uvicorn's server, which at the first signal drains the engine before it stops answering."""

    def __init__(
        self, engine: Engine, service: Service, keys: Keys, hosts: HostNames, listening: socket.socket
    ) -> None:
        config = uvicorn.Config(
            make_app(service, keys, hosts),
            log_config=None,
            access_log=False,
            lifespan="off",
            loop="uvloop",
            http=Protocol,
            ws="none",
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=5,
            server_header=False,
            date_header=True,
            proxy_headers=False,
            backlog=BACKLOG,
        )
        super().__init__(config)
        self._engine = engine
        self._service = service
        self._listening = listening
        self._loop: asyncio.AbstractEventLoop | None = None  # once it runs
        self._ending: asyncio.Task[None] | None = None
        self._broken: BaseException | None = None

    def serve_until_signal(self, line_log: LineLog) -> int:
        try:
            self.run(sockets=[self._listening])
        finally:
            self._engine.close()
            line_log.close()
        if isinstance(self._broken, AltlasError):
            raise self._broken
        if self._broken is not None:
            raise RunError(f"the scheduler broke: {type(self._broken).__name__}: {self._broken}") from self._broken
        return 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        hub = self._service.hub
        self._engine.readings.watch = lambda: self._engine.on_loop(hub.tick)
        self._engine.start(self._break)
        await super().startup(sockets)
        host, port = self._listening.getsockname()[:2]
        log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends in good order; a second one at once."""
        if self._loop is None or self._engine.draining:
            self.should_exit = self.force_exit = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._engine.release)
            return
        self._engine.draining = True
        self._loop.call_soon_threadsafe(self._end_soon, self._loop, signal.Signals(sig).name)

    def _end_soon(self, loop: asyncio.AbstractEventLoop, why: str) -> None:
        log.info("%s: taking nothing new, waiting for what runs", why)
        self._ending = loop.create_task(self._end())

    async def _end(self) -> None:
        await self._engine.drain(self._engine.parts.settings.api.shutdown_grace)
        self._service.hub.close()
        self.should_exit = True

    def _break(self, error: BaseException) -> None:
        log.critical("the scheduler stopped: %s", error, exc_info=error)
        self._broken = error
        self._engine.release()
        self._service.hub.close()
        self.should_exit = True
