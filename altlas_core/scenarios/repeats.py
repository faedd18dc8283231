"""A scenario run several times: its checks must hold every time, its metrics get a mean, a spread and an interval.

Of every run but the first only checks, numbers and what `observe` makes of it are kept, whatever it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Final, Generic, TypeVar

from altlas_core.backends import warm
from altlas_core.config import Settings
from altlas_core.config_schema import MAX_SEED
from altlas_core.errors import AltlasError, ConfigError
from altlas_core.model import Check
from altlas_core.scenarios import Scenario
from altlas_core.scenarios.common import ScenarioResult
from altlas_core.statistics import Summary, flat_numbers, summarize

Seen = TypeVar("Seen")

MOST_TOLD: Final = 10  # failed runs of one check whose observations are told


@dataclass(frozen=True, slots=True, eq=False)
class OneRun(Generic[Seen]):
    """What is kept of a run. `label` names it: "seed 43", or "run 2" where all have the same seed."""

    label: str
    checks: Sequence[Check]
    advice: Mapping[str, str]
    numbers: Mapping[str, float | None]
    seen: Seen


@dataclass(eq=False)
class Repeats(Generic[Seen]):
    """The counted runs, in order. `seeds` is None where all had the same, `seed`; `warm_up` runs before were left out.

    `key_metrics` are the scenario's.
    """

    runs: Sequence[OneRun[Seen]]
    seed: int
    seeds: Sequence[int] | None
    warm_up: int
    key_metrics: Sequence[str]

    @property
    def count(self) -> int:
        return len(self.runs)

    @property
    def which(self) -> str:
        """ "seeds 42 to 46", or "seed 42"."""
        return f"seed {self.seed}" if self.seeds is None else f"seeds {self.seeds[0]} to {self.seeds[-1]}"

    @property
    def warm_up_text(self) -> str:
        if self.warm_up:
            return "One warm-up run before them is left out."
        return "No run was left out as a warm-up: simulated devices need none."

    @cached_property
    def metrics(self) -> dict[str, Summary]:
        """Every metric that was a number in some run, by its dotted path."""
        names = dict.fromkeys(name for run in self.runs for name in run.numbers)
        summaries = {name: summarize(self.values(name)) for name in names}
        return {name: summary for name, summary in summaries.items() if summary.n}

    def values(self, name: str) -> list[float | None]:
        """A metric's value in each run, None where it has none."""
        return [run.numbers.get(name) for run in self.runs]

    def varying(self) -> list[str]:
        """The metrics that are not the same in all runs: the scenario's key metrics first, then the least certain."""
        found = [name for name, summary in self.metrics.items() if summary.varies or summary.n < self.count]
        return sorted(found, key=lambda name: (name not in self.key_metrics, -relative_width(self.metrics[name])))

    def to_json(self) -> dict[str, Any]:
        """As the result's bundle and results.json have it."""
        return {
            "count": self.count,
            "warm_up": self.warm_up,
            "seeds": None if self.seeds is None else list(self.seeds),
            "metrics": {name: asdict(summary) for name, summary in self.metrics.items()},
        }


def relative_width(summary: Summary) -> float:
    """Half the interval over the mean: how far from certain the mean is. 0 where either is not there."""
    return abs((summary.half_width or 0.0) / summary.mean) if summary.mean else 0.0


def check_seeds(settings: Settings) -> None:
    """Raise ConfigError where the last of the repeats would have no seed."""
    count = settings.run.repeat
    if settings.seed + count - 1 > MAX_SEED:
        raise ConfigError(f"seed {settings.seed} with run.repeat {count}: the last seed would be over {MAX_SEED}")


def run_repeated(
    scenario: Scenario, settings: Settings, observe: Callable[[ScenarioResult], Seen]
) -> tuple[ScenarioResult, Repeats[Seen] | None]:
    """Run a scenario `run.repeat` times; the first counted run is returned, with checks that speak of all of them.

    Simulated devices get the seeds seed, seed + 1, ...; with real ones the seed stays and a run before the first warms
    them up: what a process does once (loading libraries, growing caches, choosing kernels) is not what repeats measure.
    The length and the event log of the result are those of the run it shows. Without repeats there is no Repeats.
    """
    count = settings.run.repeat
    if count == 1:
        return scenario.run(settings), None
    check_seeds(settings)
    with warm.keep():
        first = scenario.run(settings)
        real = first.provenance != "simulated"
        if real:
            first = scenario.run(settings)
        runs = [_kept("run 1" if real else f"seed {settings.seed}", first, observe)]
        for i in range(1, count):
            label = f"run {i + 1}" if real else f"seed {settings.seed + i}"
            changed = settings if real else replace(settings, seed=settings.seed + i)
            runs.append(_kept(label, _again(scenario, changed, label), observe))
    seeds = None if real else [settings.seed + i for i in range(count)]
    repeats = Repeats(runs, settings.seed, seeds, int(real), first.key_metrics)
    names = dict.fromkeys(check.name for run in runs for check in run.checks)
    checks = [in_every_run(name, runs) for name in names]
    return replace(first, checks=checks, advice=_advice(runs)), repeats


def _again(scenario: Scenario, settings: Settings, label: str) -> ScenarioResult:
    try:
        return scenario.run(settings)
    except AltlasError as problem:
        problem.args = (f"{label}, of {settings.run.repeat} runs: {problem}",)
        raise


def _kept(label: str, result: ScenarioResult, observe: Callable[[ScenarioResult], Seen]) -> OneRun[Seen]:
    return OneRun(label, result.checks, result.advice, flat_numbers(result.metrics), observe(result))


def in_every_run(name: str, runs: Sequence[OneRun[Any]]) -> Check:
    """A check over all runs that made it: it holds if it held in each, and tells which failed and what was seen."""
    made = [(run.label, check) for run in runs for check in run.checks if check.name == name]
    broken = [(label, check) for label, check in made if not check.passed]
    label, first = made[0]
    if broken:
        told = [f"{label}: {_observed(check, first.expected)}" for label, check in broken[:MOST_TOLD]]
        more = [f"and {len(broken) - MOST_TOLD} more"] if len(broken) > MOST_TOLD else []
        return Check(
            name, False, first.expected, f"fails in {len(broken)} of {len(made)} runs; {'; '.join(told + more)}"
        )
    which = f"all {len(runs)} runs" if len(made) == len(runs) else f"the {len(made)} of {len(runs)} runs that made it"
    own = "" if first.observed.startswith("holds in all") else f" ({label}: {first.observed})"  # parts, called runs too
    return Check(name, True, first.expected, f"holds in {which}{own}")


def _observed(check: Check, usual: str) -> str:
    return check.observed if check.expected == usual else f"{check.observed} (expected {check.expected})"


def _advice(runs: Sequence[OneRun[Any]]) -> dict[str, str]:
    """Of each failed check, what the first run in which it failed says."""
    found: dict[str, str] = {}
    for run in runs:
        for check in run.checks:
            if not check.passed and check.name in run.advice:
                found.setdefault(check.name, run.advice[check.name])
    return found
