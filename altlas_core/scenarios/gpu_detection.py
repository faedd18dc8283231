"""What is there, what was left out and why, the health of each device, and how a simulated machine is linked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from altlas_core.backends.device_builders import capability_tuple
from altlas_core.backends.machine import capability_text
from altlas_core.config import Settings
from altlas_core.events import DeviceSampled
from altlas_core.gpu_model.catalog import CATALOG
from altlas_core.model import COMPLETED, GIB, DeviceSample, DeviceSpec
from altlas_core.result import Result
from altlas_core.scenarios.common import Bench, ScenarioResult
from altlas_core.scenarios.measures import capacity_bytes

if TYPE_CHECKING:
    import pandas as pd

HOLD_S = 1.0  # each device is held so long, which leaves time for a health check
CHECK_S = 0.5
GIVE_UP_S = 30.0  # a device that takes no task in this time is not waited for
HOTTEST_PLAUSIBLE_C = 120.0
POWER_MARGIN = 1.05  # boards pass their limit for moments


def run(settings: Settings) -> ScenarioResult:
    """Hold every device once for a moment; read each while it is idle and again in a health check."""
    bench = Bench("gpu_detection", settings)
    records = [
        {"kind": "sleep", "duration_s": HOLD_S, "gpu_id": spec.gpu_id, "cancel_s": GIVE_UP_S / bench.scale}
        for spec in bench.devices
    ]
    interval_s = min(CHECK_S * bench.scale, settings.gpu.detection.health_check_interval)
    result = bench.run("hold_each_device", records, {"gpu.detection.health_check_interval": interval_s})
    samples = _health_samples(result)
    _check_identity(bench)
    _check_exclusions(bench)
    _check_health(bench, result, samples)
    metrics = {
        "devices": len(bench.devices),
        "left_out": len(bench.machine.excluded),
        "healthy": sum(device.healthy for device in result.pool),
        "memory_total_bytes": sum(spec.memory_total_bytes for spec in bench.devices),
        "memory_offered_bytes": sum(capacity_bytes(settings, spec) for spec in bench.devices),
        "slots": len(bench.devices) * settings.gpu.workload.max_concurrent_tasks_per_gpu,
    }
    tables = {
        "devices": _device_table(settings, bench.devices),
        "health": _health_table(result, samples),
        "left_out": _excluded_table(bench),
        "links": _link_table(bench),
    }
    return bench.finish(metrics, ["devices", "left_out", "healthy", "memory_total_bytes"], tables)


def _health_samples(result: Result) -> dict[int, DeviceSample]:
    """The first health check's reading of each device."""
    found: dict[int, DeviceSample] = {}
    for entry in result.log.entries:
        if isinstance(entry, DeviceSampled):
            found.setdefault(entry.gpu_id, entry.sample)
    return found


def _check_identity(bench: Bench) -> None:
    specs = bench.devices
    ids = [spec.gpu_id for spec in specs]
    bench.check(
        "GPU ids count from 0 without gaps",
        bool(ids) and ids == list(range(len(ids))),
        f"0 to {len(ids) - 1}" if ids else "at least one device",
        f"{len(ids)} devices, ids {min(ids, default=0)} to {max(ids, default=0)}, {len(set(ids))} different",
    )
    for name, values in (("UUIDs", [s.uuid for s in specs]), ("PCI ids", [s.pci_id for s in specs])):
        # The parts of a device have its identity.
        known = [(value, spec.part) for value, spec in zip(values, specs, strict=True) if value is not None]
        if known:
            bench.check(
                f"{name} are unique", len(set(known)) == len(known), f"{len(known)}", f"{len(set(known))} different"
            )
    asked = bench.settings.gpu.detection.min_compute_capability
    capabilities = [spec.compute_capability for spec in specs if spec.compute_capability is not None]
    if capabilities:
        lowest = min(capabilities)
        bench.check(
            "no GPU is under the minimum compute capability",
            lowest >= capability_tuple(asked),
            f"at least {asked:g}",
            f"lowest {capability_text(lowest)}",
        )


def _check_exclusions(bench: Bench) -> None:
    excluded = bench.machine.excluded
    silent = [item for item in excluded if not item.reason.strip()]
    bench.check(
        "every device left out has a reason",
        not silent,
        "a reason for each",
        f"{len(excluded)} left out" + (f", {len(silent)} without a reason" if silent else ""),
    )


def _check_health(bench: Bench, result: Result, samples: dict[int, DeviceSample]) -> None:
    count = len(bench.devices)
    bench.check(
        "every device answers its health check", len(samples) == count, f"{count} readings", f"{len(samples)} readings"
    )
    odd = [text for spec in bench.devices for text in _implausible(spec, samples.get(spec.gpu_id))]
    bench.check(
        "readings are plausible",
        not odd,
        "0 to 100 % busy, memory within the device, up to 120 °C, power up to its limit; N/A where nothing can be read",
        "; ".join(odd[:3]) if odd else f"all of {len(samples)} devices",
    )
    mute = [device.gpu_id for device in result.pool if not device.healthy and not device.reason]
    ill = [device for device in result.pool if not device.healthy]
    told = "; ".join(f"GPU {device.gpu_id}: {device.reason}" for device in ill[:3])
    bench.check(
        "every device is healthy, or says why it is not",
        not mute,
        "a reason for each that is not",
        f"{count - len(ill)} of {count} healthy" + (f"; {told}" if ill else ""),
    )
    waiting = [t for t, device in zip(result.task_list, result.pool, strict=True) if device.healthy]
    taken = sum(task.state == COMPLETED and task.gpu_id == task.spec.gpu_id for task in waiting)
    bench.check(
        "every healthy device takes a task", taken == len(waiting), f"{len(waiting)} devices", f"{taken} completed one"
    )


def _implausible(spec: DeviceSpec, sample: DeviceSample | None) -> Iterator[str]:
    """What cannot be true of a reading, in words. A reading that is missing is no mistake."""
    if sample is None:
        return
    limits: Sequence[tuple[str, float | None, float, str]] = (
        ("utilization", sample.utilization_pct, 100.0, "%"),
        ("memory", sample.memory_used_bytes, float(spec.memory_total_bytes * spec.parts), "bytes"),
        ("temperature", sample.temperature_c, HOTTEST_PLAUSIBLE_C, "°C"),
        ("power", sample.power_w, POWER_MARGIN * (spec.power_limit_w or 10_000.0), "W"),
    )
    for name, value, most, unit in limits:
        if value is not None and not 0 <= value <= most:
            yield f"GPU {spec.gpu_id}: {name} {value:g} {unit}, at most {most:g}"
    idle_w = CATALOG[spec.model].idle_w_or_estimate if spec.model in CATALOG else 0.0
    if sample.power_w is not None and sample.power_w < idle_w * 0.999:
        yield f"GPU {spec.gpu_id}: power {sample.power_w:g} W is under its idle power of {idle_w:g} W"


def _device_table(settings: Settings, specs: Sequence[DeviceSpec]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "GPU": [spec.gpu_id for spec in specs],
            "name": [spec.name for spec in specs],
            "compute capability": [capability_text(spec.compute_capability) for spec in specs],
            "memory (GiB)": [spec.memory_total_bytes / GIB for spec in specs],
            "offered to tasks (GiB)": [capacity_bytes(settings, spec) / GIB for spec in specs],
            "power limit (W)": pd.Series([spec.power_limit_w for spec in specs], dtype="float64"),
            "CPU cores": pd.array([spec.cores for spec in specs], dtype="Int64"),
            "PCI id": [spec.pci_id or "N/A" for spec in specs],
        }
    ).drop(columns=[] if any(spec.cores for spec in specs) else ["CPU cores"])


def _health_table(result: Result, samples: dict[int, DeviceSample]) -> pd.DataFrame:
    import pandas as pd

    nothing = DeviceSample()
    read = [samples.get(device.gpu_id, nothing) for device in result.pool]

    def column(values: list[Any]) -> pd.Series[float]:
        return pd.Series(values, dtype="float64")

    return pd.DataFrame(
        {
            "GPU": [device.gpu_id for device in result.pool],
            "state": [device.state for device in result.pool],
            "utilization (%)": column([sample.utilization_pct for sample in read]),
            "memory used (GiB)": column([_gib(sample.memory_used_bytes) for sample in read]),
            "of others (GiB)": column([_gib(sample.foreign_memory_bytes) for sample in read]),
            "temperature (°C)": column([sample.temperature_c for sample in read]),
            "power (W)": column([sample.power_w for sample in read]),
            "reason": [device.reason or "" for device in result.pool],
        }
    )


def _gib(size: int | None) -> float | None:
    return None if size is None else size / GIB


def _excluded_table(bench: Bench) -> pd.DataFrame:
    import pandas as pd

    rows = [(item.index, item.name, item.reason) for item in bench.machine.excluded]
    return pd.DataFrame(rows, columns=["index", "name", "reason"])


def _link_table(bench: Bench) -> pd.DataFrame:
    """Groups of linked GPUs; empty where the topology is not known."""
    import pandas as pd

    topology = bench.machine.topology or {"groups": []}
    rows = [
        (
            group["gpu_ids"],
            group["model"],
            group["count"],
            group["link"],
            None if group["bytes_per_s"] is None else group["bytes_per_s"] / 1e9,
            group["node_size"] if group["link"] != topology["between_groups"] else None,
        )
        for group in topology["groups"]
    ]
    frame = pd.DataFrame(rows, columns=["GPUs", "model", "count", "link", "bandwidth (GB/s)", "GPUs per node"])
    return frame.astype({"bandwidth (GB/s)": "float64", "GPUs per node": "Int64"})
