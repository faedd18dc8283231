"""Which GPU gets this task: one function per strategy, one line each in STRATEGIES.

A built-in strategy is `choose(task, candidates, pool) -> gpu_id` (-1: none of them). `candidates` is a bit mask of the
GPUs the task may use now (bit i = gpu_id i), never empty, so a decision costs the same on 8 GPUs as on 1,024.
A user's own gets the read-only GPUs themselves: see `register_strategy`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple, Protocol

from altlas_core.errors import StrategyError, nearest
from altlas_core.model import Task


class PoolView(Protocol):
    """What a built-in strategy may look at. Masks have bit i set for gpu_id i."""

    healthy: int
    by_load: list[int]
    cursor: int
    rng: Random

    def most_free(self, candidates: int) -> int: ...


class Gpu(NamedTuple):
    """A GPU as a user's strategy sees it: facts, what is reserved now, the last health reading (None: not known)."""

    gpu_id: int
    name: str
    memory_total_bytes: int
    memory_free_bytes: int
    running_tasks: int
    free_slots: int
    utilization_pct: float | None
    temperature_c: float | None
    power_w: float | None


Choose = Callable[[Task, int, PoolView], int]
UserChoose = Callable[[Task, Sequence[Gpu]], "Gpu | None"]


def lowest(mask: int) -> int:
    """The lowest gpu_id in a non-empty mask."""
    return (mask & -mask).bit_length() - 1


def nth(mask: int, n: int) -> int:
    """The n-th (from 0) gpu_id in a mask, by halving: O(log GPUs)."""
    low, width = 0, mask.bit_length()
    while width > 1:
        half = width >> 1
        below = mask & ((1 << half) - 1)
        count = below.bit_count()
        if n < count:
            mask, width = below, half
        else:
            n -= count
            mask >>= half
            low += half
            width -= half
    return low


def single_gpu(task: Task, candidates: int, pool: PoolView) -> int:
    """The first GPU that can hold the task; another one only when that fails (the pool narrows `candidates` to it)."""
    return lowest(candidates)


def round_robin(task: Task, candidates: int, pool: PoolView) -> int:
    """The next GPU after the one chosen last, in turn."""
    after = candidates >> (pool.cursor + 1)
    pool.cursor = pool.cursor + 1 + lowest(after) if after else lowest(candidates)
    return pool.cursor


def least_loaded(task: Task, candidates: int, pool: PoolView) -> int:
    """The GPU with the fewest slots taken; the lowest id among equals."""
    if not candidates & (candidates - 1):
        return candidates.bit_length() - 1  # there is only one
    for mask in pool.by_load:
        here = mask & candidates
        if here:
            return (here & -here).bit_length() - 1
    return -1


def memory_optimized(task: Task, candidates: int, pool: PoolView) -> int:
    """The GPU with the most memory left to reserve; the lowest id among equals."""
    return pool.most_free(candidates)


def random(task: Task, candidates: int, pool: PoolView) -> int:
    """Any of them with equal chance, from the run's seed."""
    return nth(candidates, pool.rng.randrange(candidates.bit_count()))


STRATEGIES: dict[str, Choose] = {
    "single_gpu": single_gpu,
    "round_robin": round_robin,
    "least_loaded": least_loaded,
    "memory_optimized": memory_optimized,
    "random": random,
}
USER_STRATEGIES: dict[str, UserChoose] = {}


def register_strategy(name: str, choose: UserChoose) -> None:
    """Make `choose(task, gpus) -> gpu or None` usable by name from now on (a name of yours may be registered again).

    `gpus` are the GPUs the task may use now, never empty, in order of gpu_id. None leaves the task waiting.
    Raises StrategyError for a built-in's name, a name that is no identifier, or something that cannot be called so.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise StrategyError(f"strategy name {name!r}: a name of letters, digits and underscores is needed")
    if name in STRATEGIES:
        raise StrategyError(f"strategy '{name}' is built in and cannot be replaced; register yours under another name")
    if not callable(choose):
        raise StrategyError(f"strategy '{name}': {choose!r} cannot be called; a function choose(task, gpus) is needed")
    try:
        inspect.signature(choose).bind(None, ())
    except TypeError:
        raise StrategyError(f"strategy '{name}' must accept two arguments: choose(task, gpus)") from None
    except ValueError:
        pass  # a builtin without a signature: the first call tells
    USER_STRATEGIES[name] = choose


def known_strategies() -> frozenset[str]:
    """Every name that may be used: the built-in ones and those registered."""
    return frozenset(STRATEGIES) | frozenset(USER_STRATEGIES)


def check_strategy(name: Any, allowed: Sequence[str], where: str) -> str:
    """Return `name` if it may be used: listed in gpu.selection.strategies, or registered by the user.

    Raises StrategyError saying where it was asked for, what is allowed and the nearest name.
    """
    if not isinstance(name, str):
        raise StrategyError(f"{where}: strategy {name!r}: a name is needed")
    if name in USER_STRATEGIES or (name in STRATEGIES and name in allowed):
        return name
    listed = ", ".join([*allowed, *sorted(set(USER_STRATEGIES) - set(allowed))])
    if name in STRATEGIES:
        raise StrategyError(f"{where}: strategy '{name}' is not listed in gpu.selection.strategies ({listed})")
    hint = nearest(name, known_strategies())
    raise StrategyError(f"{where}: unknown strategy '{name}'.{hint} Allowed: {listed}")
