"""In what two runs differ before anything is measured, and what a reader must know of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from altlas_core.report.finished import FinishedRun
from altlas_core.report.numbers import MISSING, value_text

NO_INFLUENCE: Final = frozenset(  # settings that change nothing that is measured, or stand in rows of their own
    ("seed", "gpu.backend", "gpu.devices", "run.deadline", "run.notebook_deadline", "run.export", "run.workload")
)
OWN_FACTS: Final = frozenset(("Backend", "Devices", "Git commit", "ALT_LAS GPU Test"))


@dataclass(slots=True, frozen=True)
class Differing:
    """Something in which the runs themselves differ: a setting, a device, a version."""

    name: str
    before: str
    after: str


def repeats_to_the_bit(before: FinishedRun, after: FinishedRun, name: str) -> bool:
    """Whether a scenario has one seed in both runs, and would come out the same if either were repeated."""
    simulated = all(run.scenarios[name]["provenance"] == "simulated" for run in (before, after))
    paced = any((run.settings or {}).get("run.pace", 0) for run in (before, after))
    return simulated and not paced and before.told.seed == after.told.seed


def differences(before: FinishedRun, after: FinishedRun) -> list[Differing]:
    """What is not the same in both, of all that is known of both."""
    rows = [_facts(run) for run in (before, after)]
    known = before.saved is not None and after.saved is not None
    names = [name for name in rows[0] | rows[1] if known or (name in rows[0] and name in rows[1])]
    pairs = [(name, *(own.get(name, MISSING) for own in rows)) for name in names]
    return [Differing(name, *values) for name, *values in pairs if values[0] != values[1]]


def _facts(run: FinishedRun) -> dict[str, str]:
    """All that a result may depend on, as far as it is known."""
    found = {
        "Devices": ", ".join(run.told.devices),
        "Backend": run.told.backend,
        "Seed": str(run.told.seed),
        "Version": str(run.results.get("altlas_version", MISSING)),
        "Commit": str(run.results.get("git_commit") or MISSING),
    }
    if run.saved is None or run.settings is None:
        return found
    found |= {name: value for name, value in run.saved.facts.items() if name not in OWN_FACTS}
    found |= {
        f"File {Path(path).name}": "not there" if digest is None else f"SHA-256 {digest[:12]}…"
        for path, digest in run.saved.inputs.items()
    }
    found["Rules (--fail-if)"] = ", ".join(run.saved.fail_if) or "none"
    return found | {name: value_text(value) for name, value in run.settings.items() if name not in NO_INFLUENCE}


def warnings_of(before: FinishedRun, after: FinishedRun, both: Sequence[str]) -> list[str]:
    """What a reader must know before believing that a difference means something."""
    told = []
    runs = (before, after)
    if before.folder == after.folder:
        told.append("A and B are the same run.")
    if before.told.started > after.told.started:
        told.append("A began after B: read changes as from A to B, which is not the order in time.")
    for name in both:
        kinds = [run.scenarios[name]["provenance"] for run in runs]
        if kinds[0] != kinds[1]:
            told.append(
                f"{name} is {kinds[0]} in A and {kinds[1]} in B: a difference may be one of model and hardware."
            )
    if before.told.devices != after.told.devices:
        told.append("The devices differ: times, power and memory are of different machines.")
    for letter, run, other in (("A", before, after), ("B", after, before)):
        missing = [name for name in run.scenarios if name not in other.scenarios]
        if missing:
            told.append(f"Only {letter} ran {', '.join(missing)}: not compared.")
        if run.saved is None:
            told.append(f"What {letter} was asked is not known (it has no request.json): settings are not compared.")
        elif run.saved.resumed:
            told.append(f"{letter} was gone on with after it had been cut off.")
    return told


def about_chance(before: FinishedRun, after: FinishedRun, both: Sequence[str]) -> list[str]:
    """What is known of the part that chance has in the changes."""
    told = []
    repeated = [[run.scenarios[name].get("repeats") is not None for name in both] for run in (before, after)]
    if any(repeated[0]) != any(repeated[1]):
        told.append("Only one of the runs was repeated (--repeat), so the spread of the other is unknown.")
    exact = [repeats_to_the_bit(before, after, name) for name in both]
    if not all(exact) and not any(map(any, repeated)):
        told.append("How much chance moves these metrics is unknown: run both with --repeat 5 or more.")
    elif any(exact) and not any(map(any, repeated)):
        told.append(
            "Simulated runs of one seed are deterministic, so a difference is exact: it comes from what differs "
            "between A and B. With other seeds it may be another; --repeat 5 says how much."
        )
    return told
