"""The test scenarios by name. Nothing heavy is loaded until one runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from altlas_core.config import Settings
    from altlas_core.scenarios.common import ScenarioResult


@dataclass(slots=True, frozen=True)
class Scenario:
    """`notebook` is its file name in notebooks/, `section` its part of `test` in the settings.

    `on_request`: part of a suite only where it is asked for by name, or where a workload is given.
    """

    name: str
    title: str
    notebook: str
    section: str
    on_request: bool = False

    def run(self, settings: Settings) -> ScenarioResult:
        """Run it; its module is imported now. Workers of real devices stay warm from one of its runs to the next."""
        from importlib import import_module

        from altlas_core.backends import warm

        function: Callable[[Settings], ScenarioResult] = import_module(f"altlas_core.scenarios.{self.name}").run
        with warm.keep():
            return function(settings)


SCENARIOS: Final[dict[str, Scenario]] = {
    scenario.name: scenario
    for scenario in (
        Scenario("gpu_detection", "GPU detection", "01_gpu_detection.ipynb", "detection"),
        Scenario("basic_functionality", "Basic functionality", "02_basic_functionality.ipynb", "basic_functionality"),
        Scenario(
            "concurrent_processing", "Concurrent processing", "03_concurrent_processing.ipynb", "concurrent_processing"
        ),
        Scenario("performance", "Performance", "04_performance.ipynb", "performance"),
        Scenario("error_handling", "Error handling", "05_error_handling.ipynb", "error_handling"),
        Scenario("own_workload", "Your own workload", "06_own_workload.ipynb", "own_workload", on_request=True),
        Scenario("strategy_comparison", "Strategies compared", "07_strategy_comparison.ipynb", "strategy_comparison"),
    )
}


def enabled_scenarios(settings: Settings) -> list[Scenario]:
    """Those that test.<section>.enabled leaves in, in order."""
    return [scenario for scenario in SCENARIOS.values() if getattr(settings.test, scenario.section).enabled]


def waits_to_be_asked(name: str, settings: Settings) -> bool:
    """Whether a scenario is left out of a suite that names none: nobody has given what it is about."""
    return name in SCENARIOS and SCENARIOS[name].on_request and settings.run.workload is None
