"""The text of `altlas gpus`: a table of the devices, what was left out and why, then how they came to be chosen."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

from altlas_core.backends.machine import GpuReading, Machine, capability_text
from altlas_core.backends.topology import ranges_text
from altlas_core.model import GIB, DeviceSpec

WIDTH = 100
_GROUP_ABOVE = 32  # larger machines show alike devices in one line
_NAME_WIDTH = 28
_LISTED_LEFT_OUT = 32


@dataclass(slots=True, frozen=True)
class _Row:
    ids: str
    cells: tuple[str, ...]


def render(machine: Machine) -> str:
    """Plain text of at most 100 columns, without a newline at its end. What is not known is N/A."""
    lines = [_title(machine), "", *_table(machine)]
    if machine.excluded:
        lines += ["", f"Left out: {len(machine.excluded)}", *_left_out(machine)]
    if machine.topology is not None:
        lines += ["", *_topology(machine)]
    if machine.statements:
        lines += ["", *(line for statement in machine.statements for line in _wrapped(statement))]
    return "\n".join(lines)


def _title(machine: Machine) -> str:
    count = len(machine.devices)
    kind = {"cuda": "CUDA", "cpu": "CPU", "simulated": "simulated"}.get(machine.backend, machine.backend)
    title = f"{count} {kind} device{'s' if count != 1 else ''}"
    if machine.backend == "cuda":
        title += f" (driver {machine.driver_version or 'N/A'}, CUDA {machine.cuda_version or 'N/A'})"
    return title


def _table(machine: Machine) -> list[str]:
    if machine.backend == "cuda":
        header = ("GPU", "Name", "CC", "Memory used/total", "Util", "Temp", "Power", "PCI id")
        empty = GpuReading(index=-1)
        readings = machine.readings or (empty,) * len(machine.devices)
        rows = [_cuda_row(spec, reading) for spec, reading in zip(machine.devices, readings, strict=True)]
        return _aligned(header, rows, right={3, 4, 5, 6})
    if machine.backend == "cpu":
        rows = [
            _Row(str(spec.gpu_id), (_name(spec), _gib(spec.memory_total_bytes), _or_na(spec.cores)))
            for spec in machine.devices
        ]
        return _aligned(("GPU", "Name", "Memory", "Cores"), rows, right={2, 3})
    rows = [_simulated_row(spec) for spec in machine.devices]
    if len(rows) > _GROUP_ABOVE:
        rows = _grouped([replace(row, cells=(*row.cells[:-1], "")) for row in rows])
        return _aligned(("GPU", "Name", "CC", "Memory", "Power limit", "Count"), rows, right={3, 4, 5})
    return _aligned(("GPU", "Name", "CC", "Memory", "Power limit", "PCI id"), rows, right={3, 4})


def _cuda_row(spec: DeviceSpec, reading: GpuReading) -> _Row:
    used, total = _gib_number(reading.memory_used_bytes), _gib(spec.memory_total_bytes)
    power = f"{_number(reading.power_w)}/{_number(spec.power_limit_w, ' W')}"
    cells = (
        _name(spec),
        capability_text(spec.compute_capability),
        f"{used}/{total}",
        _number(reading.utilization_pct, " %"),
        _number(reading.temperature_c, " C"),
        power if power != "N/A/N/A" else "N/A",
        spec.pci_id or "N/A",
    )
    return _Row(str(spec.gpu_id), cells)


def _simulated_row(spec: DeviceSpec) -> _Row:
    capability = capability_text(spec.compute_capability)
    limit = _number(spec.power_limit_w, " W")
    return _Row(str(spec.gpu_id), (_name(spec), capability, _gib(spec.memory_total_bytes), limit, spec.pci_id or "N/A"))


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
    return textwrap.shorten(spec.name, _NAME_WIDTH, placeholder="...")


def _gib_number(value: int | None) -> str:
    return "N/A" if value is None else f"{value / GIB:.1f}"


def _gib(value: int | None) -> str:
    return "N/A" if value is None else f"{value / GIB:.1f} GiB"


def _number(value: float | None, unit: str = "") -> str:
    return "N/A" if value is None else f"{value:.0f}{unit}"


def _or_na(value: object) -> str:
    return "N/A" if value is None else str(value)
