"""The text of `altlas gpus`: a table of the devices, what was left out and why, then how they came to be chosen."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Final

from altlas_core.backends.machine import GpuReading, Machine, capability_text
from altlas_core.backends.topology import ranges_text
from altlas_core.device_names import whole_name
from altlas_core.model import GIB, DeviceSpec

WIDTH = 100
_GROUP_ABOVE = 32  # larger machines show alike devices in one line
_NAME_WIDTH = 28
_LISTED_LEFT_OUT = 32
_HELD_WIDTH = 44
_NO_READING: Final = GpuReading(index=-1)
# Readings that make a row of the table of clocks and errors worth it.
_HEALTH: Final = tuple(
    attrgetter(name)
    for name in ("sm_clock_mhz", "memory_clock_mhz", "throttle_reasons", "ecc_corrected", "recovery_needed")
)
_Device = tuple[DeviceSpec, GpuReading]


@dataclass(slots=True, frozen=True)
class _Row:
    ids: str
    cells: tuple[str, ...]


def render(machine: Machine) -> str:
    """Plain text of at most 100 columns, without a newline at its end. What is not known is N/A."""
    lines = [_title(machine), *_tables(machine)]
    if machine.excluded:
        lines += ["", f"Left out: {len(machine.excluded)}", *_left_out(machine)]
    if machine.topology is not None:
        lines += ["", *_topology(machine)]
    if machine.statements:
        lines += ["", *(line for statement in machine.statements for line in _wrapped(statement))]
    return "\n".join(lines)


def _title(machine: Machine) -> str:
    kinds = Counter(spec.kind for spec in machine.devices) or Counter({machine.backend: 0})
    words = {"cuda": "CUDA", "cpu": "CPU", "simulated": "simulated"}
    *others, last = [f"{count} {words.get(kind, kind)}" for kind, count in kinds.items()]
    each = f"{', '.join(others)} and {last}" if others else last
    title = f"{each} device{'s' if len(machine.devices) != 1 else ''}"
    if "cuda" in kinds:
        title += f" (driver {machine.driver_version or 'N/A'}, CUDA {machine.cuda_version or 'N/A'})"
    return title


def _tables(machine: Machine) -> list[str]:
    """A table for each kind of device, and one more on the clocks and errors of real GPUs where they are told."""
    readings = machine.readings or (None,) * len(machine.devices)
    by_kind: dict[str, list[_Device]] = {}
    for spec, reading in zip(machine.devices, readings, strict=True):
        by_kind.setdefault(spec.kind, []).append((spec, reading or _NO_READING))
    lines: list[str] = []
    for kind, devices in by_kind.items():
        lines += ["", *_TABLES[kind](devices)]
    told = [device for device in by_kind.get("cuda", ()) if any(field(device[1]) is not None for field in _HEALTH)]
    return lines + (["", *_health_table(told)] if told else [])


def _cuda_table(devices: Sequence[_Device]) -> list[str]:
    header = ("GPU", "Name", "CC", "Memory used/total", "Util", "Temp", "Power", "PCI id")
    return _aligned(header, [_cuda_row(spec, reading) for spec, reading in devices], right={3, 4, 5, 6})


def _cuda_row(spec: DeviceSpec, reading: GpuReading) -> _Row:
    used, total = _gib_number(reading.memory_used_bytes), _gib(spec.memory_total_bytes)
    power = f"{_number(reading.power_w)}/{_number(spec.power_limit_w, ' W')}"
    cells = (
        _name(spec),
        capability_text(spec.compute_capability),
        f"{used}/{total}" if spec.parts == 1 else total,  # what is in use is in use of the whole card
        _number(reading.utilization_pct, " %"),
        _number(reading.temperature_c, " C"),
        power if power != "N/A/N/A" else "N/A",
        spec.pci_id or "N/A",
    )
    return _Row(str(spec.gpu_id), cells)


def _health_table(devices: Sequence[_Device]) -> list[str]:
    """Clocks, what holds them down, memory errors since the driver was loaded; a row for each card. Then what the
    driver asks for."""
    cards: dict[int, list[_Device]] = {}
    for device in devices:
        cards.setdefault(device[0].index, []).append(device)
    rows = [_health_row(ranges_text([spec.gpu_id for spec, _ in parts]), parts[0][1]) for parts in cards.values()]
    header = ("GPU", "SM clock", "Memory clock", "ECC corrected/not", "Clocks held down by")
    lines = _aligned(header, rows, right={1, 2, 3})
    for row, ((_, reading), *_) in zip(rows, cards.values(), strict=True):
        if reading.recovery_needed is not None:
            lines += ["", *_wrapped(f"GPU {row.ids}: the driver asks for {reading.recovery_needed}.")]
    return lines


def _health_row(ids: str, reading: GpuReading) -> _Row:
    held = reading.throttle_reasons
    errors = f"{_or_na(reading.ecc_corrected)}/{_or_na(reading.ecc_uncorrected)}"
    cells = (
        _number(reading.sm_clock_mhz, " MHz"),
        _number(reading.memory_clock_mhz, " MHz"),
        errors if errors != "N/A/N/A" else "N/A",
        "N/A" if held is None else textwrap.shorten(", ".join(held) or "nothing", _HELD_WIDTH, placeholder=" ..."),
    )
    return _Row(ids, cells)


def _cpu_table(devices: Sequence[_Device]) -> list[str]:
    rows = [
        _Row(str(spec.gpu_id), (_name(spec), _gib(spec.memory_total_bytes), _or_na(spec.cores))) for spec, _ in devices
    ]
    return _aligned(("GPU", "Name", "Memory", "Cores"), rows, right={2, 3})


def _simulated_table(devices: Sequence[_Device]) -> list[str]:
    rows = [_simulated_row(spec) for spec, _ in devices]
    if len(rows) > _GROUP_ABOVE:
        rows = _grouped([replace(row, cells=(*row.cells[:-1], "")) for row in rows])
        return _aligned(("GPU", "Name", "CC", "Memory", "Power limit", "Count"), rows, right={3, 4, 5})
    return _aligned(("GPU", "Name", "CC", "Memory", "Power limit", "PCI id"), rows, right={3, 4})


def _simulated_row(spec: DeviceSpec) -> _Row:
    capability = capability_text(spec.compute_capability)
    limit = _number(spec.power_limit_w, " W")
    return _Row(str(spec.gpu_id), (_name(spec), capability, _gib(spec.memory_total_bytes), limit, spec.pci_id or "N/A"))


_TABLES: Final = {"cuda": _cuda_table, "cpu": _cpu_table, "simulated": _simulated_table}


def _grouped(rows: Sequence[_Row]) -> list[_Row]:
    """Neighbours that differ in nothing but their id in one row, with their number in the last cell."""
    runs: list[list[_Row]] = []
    for row in rows:
        if runs and runs[-1][0].cells == row.cells:
            runs[-1].append(row)
        else:
            runs.append([row])
    return [_Row(_span(run), (*run[0].cells[:-1], str(len(run)))) for run in runs]


def _span(run: Sequence[_Row]) -> str:
    return run[0].ids if len(run) == 1 else f"{run[0].ids}-{run[-1].ids}"


def _aligned(header: tuple[str, ...], rows: Sequence[_Row], right: set[int]) -> list[str]:
    """Columns wide enough for what is in them, two blanks between; `right` are those set to the right."""
    table = [header, *((row.ids, *row.cells) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    lines = (
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    )
    return [line.rstrip() for line in lines]


def _left_out(machine: Machine) -> list[str]:
    """Each reason once, with the devices it is about."""
    by_reason: dict[tuple[str, str], list[int]] = {}
    for item in machine.excluded:
        by_reason.setdefault((item.name, item.reason), []).append(item.index)
    lines: list[str] = []
    for (name, reason), indexes in list(by_reason.items())[:_LISTED_LEFT_OUT]:
        lines += _wrapped(f"index {ranges_text(indexes)}, {name}: {reason}", "  ")
    more = len(by_reason) - _LISTED_LEFT_OUT
    return lines + ([f"  and {more} more; --json lists them all"] if more > 0 else [])


def _topology(machine: Machine) -> list[str]:
    assert machine.topology is not None
    lines = _wrapped(f"Links. {machine.topology['statement']}")
    for group in machine.topology["groups"][:_LISTED_LEFT_OUT]:
        speed = f", {group['bytes_per_s'] / 1e9:.0f} GB/s" if group["bytes_per_s"] else ""
        lines += _wrapped(f"GPUs {group['gpu_ids']}: {group['link']}{speed}", "  ")
    return lines


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  " if indent else "")


def _name(spec: DeviceSpec) -> str:
    part = f" {spec.part + 1}/{spec.parts}" if spec.parts > 1 else ""
    return textwrap.shorten(whole_name(spec), _NAME_WIDTH - len(part), placeholder="...") + part


def _gib_number(value: int | None) -> str:
    return "N/A" if value is None else f"{value / GIB:.1f}"


def _gib(value: int | None) -> str:
    return "N/A" if value is None else f"{value / GIB:.1f} GiB"


def _number(value: float | None, unit: str = "") -> str:
    return "N/A" if value is None else f"{value:.0f}{unit}"


def _or_na(value: object) -> str:
    return "N/A" if value is None else str(value)
