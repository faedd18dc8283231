"""Which devices a run gets: found on this machine or simulated, what was left out and why, in clear sentences."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from altlas_core.backends.device_builders import (
    CudaGpus,
    choose_cuda,
    cpu_devices,
    cuda_gpus,
    simulated_devices,
)
from altlas_core.backends.host import Host, read_host
from altlas_core.backends.machine import Excluded, GpuReading, Machine, NvmlReport
from altlas_core.backends.nvml import gpus as nvml
from altlas_core.backends.topology import assumed_topology
from altlas_core.config_schema import Settings
from altlas_core.device_names import DeviceRequest, parse_devices
from altlas_core.errors import DeviceError
from altlas_core.gpu_model.catalog import find_model
from altlas_core.model import DeviceSpec

DEFAULT_SIMULATED: Final = "8x A100-SXM4-80GB"
_DETECTION_OFF: Final = "gpu.detection.enabled is false, so NVML was asked nothing"
_INSTEAD: Final = "use --backend simulated or --backend cpu"


@dataclass(slots=True)
class _Found:
    """The devices of one kind: a list for each request, in their order. `readings` are those of GPUs, by CUDA index."""

    groups: list[list[DeviceSpec]]
    statements: list[str]
    excluded: Sequence[Excluded] = ()
    report: NvmlReport | None = None
    readings: Mapping[int, GpuReading] | None = None


def discover(settings: Settings, *, environ: Mapping[str, str] | None = None, host: Host | None = None) -> Machine:
    """The machine that `settings` ask for. Asks NVML only where a real GPU is wanted or may be chosen.

    environ: None = the process's (CUDA_VISIBLE_DEVICES, CUDA_DEVICE_ORDER); host: None = read from the system.
    Raises DeviceError where a backend or device is not there, or where the two contradict each other.
    """
    requests = parse_devices(settings.gpu.devices)
    backend = _asked_backend(settings.gpu.backend, requests)
    environ = os.environ if environ is None else environ
    if backend == "simulated":
        return _only_simulated(settings, requests, _why_simulated(settings))
    host = host or read_host()
    if backend == "auto":
        return _auto(settings, environ, host)
    statements: list[str] = []
    if not requests:
        requests = parse_devices("cuda" if backend == "cuda" else f"cpu:{min(2, host.cores)}")
        if backend == "cpu":
            statements.append(f"No devices were named: the default is {requests[0]}.")
    return _assembled(backend, requests, _find(settings, requests, environ, host), statements)


def _asked_backend(backend: str, requests: Sequence[DeviceRequest]) -> str:
    """The backend that setting and devices agree on; "auto" only where both leave it open. Raises DeviceError."""
    kinds = sorted({request.kind for request in requests})
    if backend != "auto":
        for kind in kinds:
            if kind != backend:
                instead = (
                    f"ask for --backend {kind}" if len(kinds) == 1 else "ask for --backend auto, which takes them all"
                )
                raise DeviceError(
                    f"gpu.backend is {backend}, but gpu.devices name a {kind} device: they contradict each other. "
                    f"Leave one of them out, or {instead}."
                )
    if len(kinds) > 1:
        return "mixed"
    return kinds[0] if kinds else backend


def _find(
    settings: Settings, requests: Sequence[DeviceRequest], environ: Mapping[str, str], host: Host
) -> dict[str, _Found]:
    """The devices of each kind that is named. Raises DeviceError."""
    named: dict[str, list[DeviceRequest]] = {}
    for request in requests:
        named.setdefault(request.kind, []).append(request)
    found = {}
    if "cpu" in named:
        found["cpu"] = _cpu(named["cpu"], host)
    if "cuda" in named:
        found["cuda"] = _cuda(settings, named["cuda"], environ, host)
    if "simulated" in named:
        found["simulated"] = _simulated(settings, named["simulated"])
        found["simulated"].statements.append("Real and simulated devices share one pool, which runs in real time.")
    return found


def _assembled(
    backend: str, requests: Sequence[DeviceRequest], found: Mapping[str, _Found], statements: Sequence[str] = ()
) -> Machine:
    """One machine, its devices in the order of the requests."""
    groups = {kind: iter(part.groups) for kind, part in found.items()}
    specs = [spec for request in requests for spec in next(groups[request.kind])]
    devices = [spec if spec.gpu_id == at else replace(spec, gpu_id=at) for at, spec in enumerate(specs)]
    cuda = found.get("cuda")
    report = cuda.report if cuda and cuda.report else NvmlReport()
    readings = cuda.readings if cuda and cuda.readings else {}
    return Machine(
        backend=backend,
        devices=tuple(devices),
        excluded=tuple(item for part in found.values() for item in part.excluded),
        statements=(*statements, *(text for part in found.values() for text in part.statements)),
        driver_version=report.driver_version,
        cuda_version=report.cuda_version,
        readings=tuple(readings.get(s.index) if s.kind == "cuda" else None for s in devices) if readings else (),
    )


def _grouped(requests: Sequence[DeviceRequest], specs: Sequence[DeviceSpec]) -> list[list[DeviceSpec]]:
    """`specs`, whose index counts through what the requests ask for, by request; some may have been left out."""
    groups, first = [], 0
    for request in requests:
        end = first + (request.count or 1)
        low, high = (bisect_left(specs, index, key=lambda spec: spec.index) for index in (first, end))
        groups.append(list(specs[low:high]))
        first = end
    return groups


def _parts_text(name: str, parts: int, shared: str) -> str:
    return (
        f"{name} is split into {parts} parts: each has its share of the memory and a worker of its own, and they "
        f"contend for {shared}."
    )


# --- simulated ----------------------------------------------------------------------------------------------------


def _why_simulated(settings: Settings) -> str:
    asked = "gpu.backend is simulated" if settings.gpu.backend == "simulated" else "gpu.devices name simulated GPUs"
    return f"{asked}: no real GPU was looked for."


def _simulated(settings: Settings, requests: Sequence[DeviceRequest]) -> _Found:
    models = [model for request in requests for model in [find_model(request.model or "")] * (request.count or 1)]
    devices, excluded = simulated_devices(models, settings.gpu.detection.min_compute_capability)
    if not devices:
        raise DeviceError(f"No simulated GPU is left: {_reasons(excluded)}. Lower the minimum or name newer GPUs.")
    return _Found(_grouped(requests, devices), [], excluded)


def _only_simulated(
    settings: Settings, requests: Sequence[DeviceRequest], why: str, left_out: Sequence[Excluded] = ()
) -> Machine:
    statements = [why]
    if not requests:
        requests = parse_devices((DEFAULT_SIMULATED,))
        statements.append(f"No devices were named: the default machine is simulated, {DEFAULT_SIMULATED}.")
    machine = _assembled("simulated", requests, {"simulated": _simulated(settings, requests)}, statements)
    models = {request.model: find_model(request.model or "") for request in requests}
    bandwidths = {model.name: model.nvlink_bytes_per_s for model in models.values()}
    topology = assumed_topology(machine.devices, bandwidths)
    return replace(machine, excluded=(*left_out, *machine.excluded), topology=topology)


# --- CPU ----------------------------------------------------------------------------------------------------------


def _cpu(requests: Sequence[DeviceRequest], host: Host) -> _Found:
    count = sum(request.count or 1 for request in requests)
    each = max(1, host.cores // count)
    cores = f"{host.cores} usable CPU core{'s' if host.cores > 1 else ''}"
    devices = f"{count} CPU device{'s' if count > 1 else ''}"
    statements = [f"Found {cores}: {devices} computing with {each} each, and an even share of the memory."]
    if count > host.cores:
        statements.append(
            f"Warning: {devices} on {cores} take the cores from each other, so times, throughput and "
            "utilization are those of shared cores, and scaling over devices means nothing."
        )
    shared = "the same cores" if each > 1 else "the same core"
    statements += [_parts_text(f"Each device of {r}", r.split, shared) for r in requests if r.split > 1]
    return _Found(_grouped(requests, cpu_devices(requests, host)), statements)


# --- CUDA ---------------------------------------------------------------------------------------------------------


def _look(settings: Settings, environ: Mapping[str, str]) -> tuple[NvmlReport, CudaGpus]:
    report = nvml.read_gpus()
    return report, cuda_gpus(report, settings.gpu.detection.min_compute_capability, environ)


def _cuda(settings: Settings, requests: Sequence[DeviceRequest], environ: Mapping[str, str], host: Host) -> _Found:
    if not settings.gpu.detection.enabled:
        raise DeviceError(
            f"A CUDA device was asked for, but {_DETECTION_OFF}. Set gpu.detection.enabled to true, or {_INSTEAD}."
        )
    report, found = _look(settings, environ)
    if not found.usable:
        raise DeviceError(_no_gpu(report, found))
    if host.torch_problem is not None:
        raise DeviceError(
            f"No usable GPU for backend cuda. {_found_text(report, found)} But {host.torch_problem}, or {_INSTEAD}."
        )
    return _chosen(report, found, requests)


def _chosen(report: NvmlReport, found: CudaGpus, requests: Sequence[DeviceRequest]) -> _Found:
    groups = [choose_cuda(found, request) for request in requests]
    statements = [_found_text(report, found), *found.remarks]
    for request in requests:
        if request.split > 1:
            name = f"cuda:{request.index}" if request.index is not None else "Each usable GPU"
            statements.append(_parts_text(name, request.split, "all of its multiprocessors"))
    readings = {index: reading for index, (_, reading) in found.usable.items()}
    return _Found(groups, statements, found.excluded, report, readings)


def _auto(settings: Settings, environ: Mapping[str, str], host: Host) -> Machine:
    """No backend and no device is named: CUDA where a GPU is usable, else simulated."""
    if not settings.gpu.detection.enabled:
        return _only_simulated(settings, (), f"{_DETECTION_OFF}: the machine is simulated.")
    report, found = _look(settings, environ)
    if found.usable and host.torch_problem is None:
        requests = parse_devices("cuda")
        return _assembled("cuda", requests, {"cuda": _chosen(report, found, requests)})
    sentences = [report.problem or _found_text(report, found), *found.remarks]
    if found.usable:
        sentences.append(f"But {host.torch_problem}.")
    return _only_simulated(settings, (), " ".join(sentences), found.excluded)


def _found_text(report: NvmlReport, found: CudaGpus) -> str:
    driver = f"driver {report.driver_version or 'N/A'}, CUDA {report.cuda_version or 'N/A'}"
    count = len(report.gpus) + len(report.excluded)
    return f"Looked for NVIDIA GPUs: found {count}, usable {len(found.usable)} ({driver})."


def _no_gpu(report: NvmlReport, found: CudaGpus) -> str:
    """What was looked for, what was found, what to do."""
    if report.problem is not None:
        return f"No usable GPU for backend cuda. {report.problem}"
    remarks = "".join(f" {remark}" for remark in found.remarks)
    return (
        f"No usable GPU for backend cuda. {_found_text(report, found)} Left out: {_reasons(found.excluded)}.{remarks} "
        f"Without a GPU, {_INSTEAD}."
    )


def _reasons(excluded: Sequence[Excluded]) -> str:
    """Each reason once, with the GPUs it is about: a machine of 1,024 is told in one line."""
    by_reason: dict[tuple[str, str], list[int]] = {}
    for item in excluded:
        by_reason.setdefault((item.name, item.reason), []).append(item.index)
    return "; ".join(
        f"{name} ({len(at)}x, first at index {at[0]}): {why}" if len(at) > 1 else f"{name} (index {at[0]}): {why}"
        for (name, why), at in by_reason.items()
    )
