"""Errors a user can cause or meet. Each message says what was wrong, where, and what to do or what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AltlasError(Exception):
    """Base of every error raised on purpose. The command line prints it without a traceback."""

    exit_status = 2


class ConfigError(AltlasError):
    """A setting is unknown, of the wrong type or impossible."""


class WorkloadError(AltlasError):
    """A workload record, or a row of a workload file, cannot be used."""


class DeviceError(AltlasError):
    """A device, or a backend, that was asked for is not there."""


class StrategyError(AltlasError):
    """A selection strategy is unknown, not allowed, or chose a GPU it was not offered."""


class StateError(AltlasError):
    """An event that the state machine cannot accept; nothing was changed. The message tells the task's story."""

    exit_status = 3


class RunError(AltlasError):
    """The run itself broke: a worker would not start, a notebook raised."""

    exit_status = 3


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest allowed name, ignoring case, or an empty string."""
    by_folded = {known.casefold(): known for known in allowed}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.5)
    return f" Did you mean '{by_folded[close[0]]}'?" if close else ""
