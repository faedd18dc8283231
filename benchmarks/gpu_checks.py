"""The checks of gpu_check.py: what is run on one real device, and what must come of it.

Each is a function of a Stand and gives a Finding. They say nothing of CUDA where they need not: the same code runs on a
CPU device, which is how it is tested where no GPU is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from gpu_kinds import all_kinds_are_right, formats_have_their_rate, link, users_function
from gpu_machine import (
    SPARE_S,
    memory_within_reservation,
    mixed_pool,
    parts_contend,
    sampler_keeps_up,
    share_is_enforced,
    silent_worker,
    spare_takes_over,
)
from gpu_speed import LEAST_RATIO, scenario, throughput
from gpu_stand import MODELS, TOGETHER, Finding, Stand, attempts_of, story, worker_pids
from gpu_text import served_text

from altlas_core.faults import Fault
from altlas_core.model import COMPLETED, GIB, DeviceSpec
from altlas_core.result import Result
from altlas_core.scenarios import SCENARIOS

REPLACED_S: Final = 4.0  # beyond kill_grace: what ending a worker and starting another may take
CUDA_OWN_SHARE: Final = 0.04  # of a card's memory that the driver may keep from CUDA
BUSY_PCT: Final = 80.0
POWER_SLACK: Final = 1.05  # of the limit: it bounds an average, not every reading


@dataclass(slots=True, frozen=True)
class Check:
    """`warm`: it runs beside others on one kept worker; None where it starts processes of its own."""

    name: str
    expected: str
    look: Callable[[Stand], Finding]
    warm: int | None = 0


def plan(models: Mapping[str, int] = MODELS, kill_grace_s: float = 0.5, scenarios: Sequence[str] = ()) -> list[Check]:
    """All checks in the order they are made. What puts a CUDA context into this process comes last."""
    within = f"{kill_grace_s + REPLACED_S:g} s"
    checks = [
        Check("NVML and torch see the same card", "same name, UUID, capability; memory within 4 %", same_card, None),
        *(
            Check(
                f"{name}: products are right", "sampled outputs within the fp32 bound of float64", partial(right, name)
            )
            for name in models
        ),
        Check("fp32 is not rounded to TF32", "within the fp32 bound of a sum of 64, which TF32 breaks", no_tf32),
        Check(f"{TOGETHER} tasks at a time", f"{TOGETHER} together, each on its own stream, all right", together),
        Check("a hanging task is stopped", f"timeout, worker gone, next task done in {within}", hanging_is_stopped),
        Check("a killed worker loses no task", "all completed, by another worker", killed_worker),
        Check("out of memory is survived", "out_of_memory; the same worker goes on", out_of_memory),
        Check("every kind and number format is right", "each confirmed by its reference", all_kinds_are_right),
        Check("number formats have their rate", "TF32, FP16, BF16: twice fp32 or more", formats_have_their_rate),
        Check("copies between host and device", "every byte right; GB/s stated", link),
        Check("a user's own function", "runs on the device, its answer comes back", users_function),
        Check(
            "memory stays within what was reserved",
            "peak of each kind alone: 1.1 x and 64 MiB",
            memory_within_reservation,
        ),
        Check("two parts: the share is enforced", "out_of_memory on one, work goes on on the other", share_is_enforced),
        Check("two parts: they contend", "together no more than 125 % of one alone", parts_contend),
        Check("real and simulated in one pool", "all completed, rows say which, simulated exact", mixed_pool),
        Check(
            "a spare worker takes over", f"free slot in {kill_grace_s + SPARE_S:g} s after a deadline", spare_takes_over
        ),
        Check("a silent worker is replaced", "one attempt lost, the next finishes", silent_worker),
        Check("the sampler keeps up", "5 readings/s or more, under 1 % of a core", sampler_keeps_up),
        Check("text through the HTTP API", "greedy, alone and together: as on the CPU", served_text, None),
        Check("readings follow the work", "busy, memory held; watts between idle and limit", readings),
    ]
    checks += [
        Check(f"scenario {name}", "all checks hold", partial(scenario, name), None) for name in scenarios or SCENARIOS
    ]
    for name in models:
        least = LEAST_RATIO.get(name)
        expected = "rate against a bare torch loop: " + (f"{least:.0%} or more" if least else "stated")
        checks.append(Check(f"{name}: cost of the distributor", expected, partial(throughput, name), 1))
    return checks


# --- the card and its arithmetic ----------------------------------------------------------------------------------

_ASK_TORCH: Final = """
import json, sys, torch
card = torch.cuda.get_device_properties(0)
print(json.dumps([card.name, str(card.uuid), [card.major, card.minor], card.total_memory]))
"""


def same_card(stand: Stand) -> Finding:
    if not stand.cuda:
        return Finding(None, "needs a CUDA device")
    from altlas_core.backends.supervision.process import assignment, environment

    command = [sys.executable, "-c", _ASK_TORCH]
    env = environment(1) | assignment(stand.spec, 1, 0)["environment"]
    asked = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    if asked.returncode:
        return Finding(False, "torch cannot use it: " + asked.stderr.strip().splitlines()[-1])
    name, uuid, capability, memory_bytes = json.loads(asked.stdout)
    return compare_cards(stand.spec, name, uuid, tuple(capability), memory_bytes)


def compare_cards(spec: DeviceSpec, name: str, uuid: str, capability: tuple[int, ...], memory_bytes: int) -> Finding:
    """NVML's `spec` with what torch says. CUDA gets a little less memory than there is."""
    differ = []
    if spec.name != name:
        differ.append(f"name {spec.name} / {name}")
    if spec.uuid is not None and spec.uuid.removeprefix("GPU-") != uuid.removeprefix("GPU-"):
        differ.append(f"UUID {spec.uuid} / {uuid}")
    if spec.compute_capability != capability:
        differ.append(f"capability {spec.compute_capability} / {capability}")
    less = 1 - memory_bytes / spec.memory_total_bytes
    if not -0.001 <= less <= CUDA_OWN_SHARE:
        differ.append(f"memory {spec.memory_total_bytes / GIB:.2f} / {memory_bytes / GIB:.2f} GiB")
    if differ:
        return Finding(False, "NVML / torch: " + ", ".join(differ))
    return Finding(True, f"{name}, {capability[0]}.{capability[1]}, torch has {100 * less:.1f} % less memory")


def right(model: str, stand: Stand) -> Finding:
    result = stand.play([stand.linear(stand.models[model], iterations=20)] * 2)
    return judge_products(result)


def judge_products(result: Result) -> Finding:
    details = [attempt.detail or {} for attempt in attempts_of(result)]
    good = sum(detail.get("reference_ok") is True for detail in details)
    worst = max((detail.get("max_rel_error", float("inf")) for detail in details), default=float("inf"))
    bound = min((detail.get("tolerance", 0.0) for detail in details), default=0.0)
    passed = good == len(details) == len(result.task_list)
    if not passed:
        return Finding(False, f"{good} of {len(details)} right; {story(result)}")
    figures = {"max_rel_error": worst, "tolerance": bound}
    return Finding(True, f"{good} of {len(details)} tasks; error {worst:.2g}, bound {bound:.2g}", figures)


def no_tf32(stand: Stand) -> Finding:
    """A short sum: the fp32 bound grows with the length, the error of TF32 does not, so here the bound is the less."""
    found = judge_products(stand.play([{**stand.linear(64), "output_size": 4096, "iterations": 20}]))
    if not found.passed:
        return found
    rounded, bound = tf32_error(stand.batch)
    figures = {**found.figures, "tf32_error": rounded}
    told = rounded > bound
    return Finding(told, f"{found.observed}; rounded to TF32 on purpose {rounded:.2g}", figures)


def tf32_error(batch: int, size: int = 64) -> tuple[float, float]:
    """(error, bound) of a product whose factors were cut to the 10 bits of mantissa that TF32 keeps."""
    import torch

    from altlas_core.backends.worker.reference import check_product

    pick = torch.Generator().manual_seed(42)
    x = torch.empty(batch, size).uniform_(-1, 1, generator=pick)
    weight = torch.empty(size, 4096).uniform_(-1, 1, generator=pick)
    cut_x, cut_weight = ((t.view(torch.int32) & ~0x1FFF).view(torch.float32) for t in (x, weight))
    return check_product(x, weight, cut_x @ cut_weight, 4096, seed=42)


# --- several at a time, stops, deaths ---------------------------------------------------------------------------------


def together(stand: Stand) -> Finding:
    size = stand.models["medium_model"]
    result = stand.play([stand.linear(size, duration_s=stand.seconds)] * TOGETHER)
    attempts = attempts_of(result)
    products = judge_products(result)
    most = int(result.telemetry["running_tasks"].max())
    streams = [(attempt.detail or {}).get("stream") for attempt in attempts]
    own = len(set(streams)) == TOGETHER if stand.cuda else True
    told = f"{len(set(streams))} streams" if stand.cuda else "no streams on a CPU"
    passed = bool(products.passed) and most == TOGETHER and own
    return Finding(passed, f"{most} together, {told}; {products.observed}", {"streams": streams})


def hanging_is_stopped(stand: Stand) -> Finding:
    stand.play([{"kind": "noop"}])  # there is a worker
    before = worker_pids()
    hang = {"kind": "hang", "duration_s": 600.0, "timeout_s": 0.5, "retry_count": 0}
    result = stand.play([hang, stand.linear(64, iterations=1)], slots=1)
    hung, following = result.task_list
    if hung.error_code != "timeout" or following.state != COMPLETED:
        return Finding(False, story(result))
    took_s = (following.finished_s or 0.0) - (hung.finished_s or 0.0)
    gone = bool(before - worker_pids())  # another of them was a spare one, and is the device's now
    late = took_s > stand.kill_grace_s + REPLACED_S
    observed = f"timeout, worker {'gone' if gone else 'still there'}, next task done after {took_s:.2f} s"
    return Finding(gone and not late, observed, {"deadline_to_next_done_s": took_s})


def killed_worker(stand: Stand) -> Finding:
    stand.play([{"kind": "noop"}])
    before = worker_pids()
    work = stand.linear(stand.models["small_model"], duration_s=0.5 * stand.seconds, retry_count=0)
    result = stand.play([work] * 8, Fault(0.25 * stand.seconds, 0, "crash_worker"))
    attempts = attempts_of(result)
    again = len(attempts) - len(result.task_list)
    done = sum(task.state == COMPLETED for task in result.task_list)
    passed = done == 8 and again > 0 and bool(before - worker_pids())
    observed = f"{done} of 8 completed, {again} attempts lost and made again"
    return Finding(passed, observed if done == 8 else f"{observed}; {story(result)}", {"attempts": len(attempts)})


def out_of_memory(stand: Stand) -> Finding:
    """Tasks that ask for next to nothing and use more than there is: on a GPU the first fits, so memory is short."""
    if stand.cuda:
        side = int((0.6 * stand.spec.memory_total_bytes / 4) ** 0.5)
        sizes = [(side, side), (side, side - 1)]
    else:
        sizes = [(2**20, 2**20)]  # 4 TiB: a CPU gives memory that it does not have, if asked for less
    greedy = [
        {"input_size": rows, "output_size": columns, "batch": 1, "duration_s": stand.seconds, "memory_bytes": 1 << 20}
        for rows, columns in sizes
    ]
    stand.play([{"kind": "noop"}])
    before = worker_pids()
    first = {"timeout_s": 120.0, "retry_count": 0}
    later = stand.linear(stand.models["small_model"], iterations=5, submit_s=0.5 * stand.seconds)
    result = stand.play([task | first for task in greedy] + [later])
    *asked, last = result.task_list
    short = [task for task in asked if task.error_code == "out_of_memory"]
    fitted = sum(task.state == COMPLETED for task in asked)
    same = before == worker_pids()
    passed = len(short) == 1 and fitted == len(asked) - 1 and last.state == COMPLETED and same
    told = (short[0].error or "").splitlines()[0][:100] if short else story(result)
    return Finding(passed, f"{told}; {'the same' if same else 'another'} worker then did {last.state}")


# --- readings ---------------------------------------------------------------------------------------------------------


def readings(stand: Stand) -> Finding:
    """Idle for a moment, then the large model long enough for the driver's averages to follow."""
    size, idle_s = stand.models["large_model"], max(1.0, stand.seconds)
    work_s = 5 * stand.seconds
    task = stand.linear(size, duration_s=work_s, submit_s=idle_s)
    result = stand.play([task])
    done = result.task_list[0]
    if done.state != COMPLETED or done.started_s is None or done.finished_s is None:
        return Finding(False, story(result))
    table = result.telemetry
    idle = table[table.time_s < idle_s]
    busy = table[(table.time_s > done.started_s + 0.4 * work_s) & (table.time_s < done.finished_s)]

    def middle(frame: Any, column: str) -> float | None:
        values = frame[column].dropna()
        return float(values.median()) if len(values) else None

    seen = {
        column: middle(busy, column) for column in ("utilization_pct", "memory_used_bytes", "power_w", "temperature_c")
    }
    idle_w = middle(idle, "power_w")
    return judge_readings(seen, idle_w, stand.spec.power_limit_w, done.memory_bytes)


def judge_readings(
    seen: Mapping[str, float | None], idle_w: float | None, limit_w: float | None, held_bytes: int
) -> Finding:
    """Medians of readings while working. One that the device does not give is told and not judged; two it must give."""
    wrong = []
    busy_pct, memory, watts, celsius = (
        seen[k] for k in ("utilization_pct", "memory_used_bytes", "power_w", "temperature_c")
    )
    if busy_pct is None or busy_pct < BUSY_PCT:
        wrong.append("not busy")
    if memory is None or memory < held_bytes:
        wrong.append(f"less memory than the {held_bytes / GIB:.2f} GiB it holds")
    if watts is not None and idle_w is not None and watts <= idle_w:
        wrong.append("no more power than idle")
    if watts is not None and limit_w is not None and watts > POWER_SLACK * limit_w:
        wrong.append("more power than its limit")
    if celsius is not None and not 5 <= celsius <= 110:
        wrong.append("no such temperature")

    def shown(value: float | None, unit: str, digits: int = 0) -> str:
        return "N/A" if value is None else f"{value:.{digits}f} {unit}"

    text = (
        f"{shown(busy_pct, '%')}, {shown(None if memory is None else memory / GIB, 'GiB', 2)}, {shown(watts, 'W')} "
        f"(idle {shown(idle_w, 'W')}, limit {shown(limit_w, 'W')}), {shown(celsius, 'C')}"
    )
    figures = {**seen, "idle_w": idle_w, "limit_w": limit_w}
    return Finding(not wrong, "; ".join([text, *wrong]), figures)
