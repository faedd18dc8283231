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
    """`notebook` is its file name in notebooks/, `section` its part of `test` in the settings."""

    name: str
    title: str
    notebook: str
    section: str

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
    )
}


def enabled_scenarios(settings: Settings) -> list[Scenario]:
    """Those that test.<section>.enabled leaves in, in order."""
    return [scenario for scenario in SCENARIOS.values() if getattr(settings.test, scenario.section).enabled]
