"""What a run was asked, kept in its folder (request.json): what it left is run later with the same settings."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Any, Final, get_args, get_origin, get_type_hints

from altlas_core.config import Settings, from_dict, to_dict
from altlas_core.errors import ConfigError
from altlas_core.report import environment
from altlas_core.report.environment import MachineLike, Request
from altlas_core.report.files import RAN_TO_ITS_END
from altlas_core.report.folder import RESULTS, write_text
from altlas_core.report.numbers import duration
from altlas_core.rules import shown

REQUEST: Final = "request.json"
FORMAT: Final = 1


@dataclass(slots=True, frozen=True)
class SavedRun:
    """`settings` is a tree as in config.yaml, `facts` what the run ran on, `inputs` the SHA-256 of files it reads.

    `backend` and `devices` are those that were found, so that nothing else is found the next time. `resumed` has a line
    for each time the run was gone on with.
    """

    run_id: str
    started: str
    scenarios: tuple[str, ...]
    settings: Mapping[str, Any]
    request: Request
    fail_if: tuple[str, ...]
    backend: str
    devices: tuple[str, ...]
    version: str
    commit: str | None
    facts: Mapping[str, str]
    inputs: Mapping[str, str | None]
    resumed: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        tree = {"format": FORMAT} | dataclasses.asdict(replace(self, request=Request()))
        tree["request"] = dataclasses.asdict(self.request)
        write_text(folder / REQUEST, json.dumps(tree, indent=2, default=str) + "\n")

    def settings_again(self, strategies: Sequence[str] = ()) -> Settings:
        """The run's settings, without its deadlines: what they cut off would be cut off again.

        `strategies`: names of the user's own. Raises ConfigError where a key is no more.
        """
        settings = from_dict(self.settings, REQUEST, strategies)
        devices = settings.gpu.devices or (() if self.backend == "simulated" else self.devices)
        gpu = replace(settings.gpu, backend=self.backend, devices=devices)
        return replace(settings, gpu=gpu, run=replace(settings.run, deadline=0.0, notebook_deadline=0.0))

    def changes(self, machine: MachineLike) -> list[str]:
        """What is not as it was when the run began, a line each."""
        now = dict(environment.facts(machine))
        told = [
            f"{label} was {then}, is now {now.get(label, 'N/A')}"
            for label, then in self.facts.items()
            if now.get(label, "N/A") != then
        ]
        return told + [f"{path} has changed" for path, digest in self.inputs.items() if _sha256(Path(path)) != digest]


def asked(
    run_id: str,
    started: datetime,
    scenarios: Sequence[str],
    settings: Settings,
    machine: MachineLike,
    request: Request,
    fail_if: Sequence[str] = (),
) -> SavedRun:
    """What is kept of a run that begins now."""
    strategy = None if request.strategy is None else request.strategy.rpartition(":")[0]
    files = [str(Path(name).resolve()) for name in (settings.run.workload, strategy) if name]
    return SavedRun(
        run_id=run_id,
        started=started.isoformat(),
        scenarios=tuple(scenarios),
        settings=to_dict(settings),
        request=replace(request, config_path=request.config_path and request.config_path.resolve()),
        fail_if=tuple(fail_if),
        backend=environment.backend_setting(machine),
        devices=tuple(environment.device_specs(settings, machine)),
        version=environment.altlas_version(),
        commit=environment.git_commit(),
        facts=dict(environment.facts(machine)),
        inputs={name: _sha256(Path(name)) for name in files},
    )


def whole_request(request: Request, settings: Settings) -> Request:
    """A request that asks for each of these settings, whatever files and environment say by now."""
    tree = environment.flat(to_dict(settings))
    if request.strategy is not None:
        del tree["gpu.selection.default_strategy"]
    overrides = {name: json.dumps(value) if isinstance(value, str) else value for name, value in tree.items()}
    return Request(None, overrides, {}, request.strategy)


def read_request(folder: Path) -> SavedRun:
    """What the run of this folder was asked. Raises ConfigError where that is not known."""
    path = folder / REQUEST
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree.pop("format") != FORMAT:
            raise ValueError("it is of another version")
        given = tree.pop("request")
        config = given.pop("config_path")
        request = Request(None if config is None else Path(config), **given)
        lists = {name: tuple(value) for name, value in tree.items() if isinstance(value, list)}
        saved = SavedRun(**{**tree, **lists}, request=request)
        _check_types(saved)
        _check_types(request)
        datetime.fromisoformat(saved.started)
        if not saved.scenarios:
            raise ValueError("scenarios: there is none")
        return saved
    except FileNotFoundError:
        raise ConfigError(f"{folder.name} has no {REQUEST}, so what it was asked is not known; run it anew") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be used: {type(error).__name__}: {error}; run it anew") from None


def ended_whole(folder: Path) -> dict[str, float]:
    """Scenarios that ran to their end, by results.json, and their real seconds. What cannot be read there is absent."""
    scenarios = _results(folder).get("scenarios")
    found = {}
    for name, entry in scenarios.items() if isinstance(scenarios, dict) else ():
        with suppress(KeyError, TypeError):
            ended = all(check["passed"] for check in entry["checks"] if check["name"] == RAN_TO_ITS_END)
            taken_s = _seconds(entry["wall_s"])
            if ended and taken_s is not None:
                found[name] = taken_s
    return found


def wall_s(folder: Path) -> float:
    """Real seconds that the run has taken so far."""
    return _seconds(_results(folder).get("wall_s")) or 0.0


def told(earlier_s: float, left: Sequence[str], changes: Sequence[str]) -> str:
    """A line about going on, for the run's pages."""
    at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    line = f"{at}, after {duration(earlier_s)}, to run {', '.join(left)}; times are added up"
    return "; ".join([line, *changes])


def _check_types(record: SavedRun | Request) -> None:
    """Raises ValueError where a field holds something else than its annotation says."""
    for name, kind in get_type_hints(type(record)).items():
        value = getattr(record, name)
        if not _fits(value, kind):
            raise ValueError(f"{name}: {shown(value)} is nothing that can stand there")


def _fits(value: Any, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(_fits(value, one) for one in inner)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, inner[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_fits(item, inner[1]) for item in value.values())
    return kind is Any or isinstance(value, kind)


def _seconds(value: Any) -> float | None:
    """A duration as results.json has it; None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < math.inf else None


def _results(folder: Path) -> Mapping[str, Any]:
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return results if isinstance(results, dict) else {}


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):  # a path that is none
        return None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Meanwhile no other process goes on with this run. Raises ConfigError where one does, or it still runs."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder.name} is running now; wait for its end, or stop it") from None
        yield
    finally:
        os.close(opened)
