"""Which devices a run gets: found on this machine or simulated, what was left out and why, in clear sentences."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Final

from altlas_core.backends import nvml
from altlas_core.backends.device_builders import (
    CudaGpus,
    choose_cuda,
    cpu_devices,
    cuda_gpus,
    simulated_devices,
)
from altlas_core.backends.host import Host, read_host
from altlas_core.backends.machine import Excluded, Machine, NvmlReport
from altlas_core.backends.topology import assumed_topology
from altlas_core.config_schema import Settings
from altlas_core.device_names import DeviceRequest, parse_devices
from altlas_core.errors import DeviceError
from altlas_core.gpu_model.catalog import find_model

DEFAULT_SIMULATED: Final = "8x A100-SXM4-80GB"
_DETECTION_OFF: Final = "gpu.detection.enabled is false, so NVML was asked nothing"
_INSTEAD: Final = "use --backend simulated or --backend cpu"


def discover(settings: Settings, *, environ: Mapping[str, str] | None = None, host: Host | None = None) -> Machine:
    """The machine that `settings` ask for. Asks NVML only where a real GPU is wanted or may be chosen.

    environ: None = the process's (CUDA_VISIBLE_DEVICES, CUDA_DEVICE_ORDER); host: None = read from the system.
    Raises DeviceError where a backend or device is not there, or where the two contradict each other.
    """
    requests = parse_devices(settings.gpu.devices)
    backend = _asked_backend(settings.gpu.backend, requests)
    environ = os.environ if environ is None else environ
    if backend == "simulated":
        return _simulated(settings, requests, _why_simulated(settings))
    host = host or read_host()
    if backend == "cpu":
        return _cpu(requests, host)
    if backend == "cuda":
        return _cuda(settings, requests, environ, host)
    return _auto(settings, environ, host)


def _asked_backend(backend: str, requests: Sequence[DeviceRequest]) -> str:
    """The backend that setting and devices agree on; "auto" only where both leave it open. Raises DeviceError."""
    kinds = sorted({request.kind for request in requests})
    if backend != "auto":
        for kind in kinds:
            if kind != backend:
                raise DeviceError(
                    f"gpu.backend is {backend}, but gpu.devices name a {kind} device: they contradict each other. "
                    f"Leave one of them out, or ask for --backend {kind}."
                )
    if len(kinds) > 1:
        raise DeviceError(
            f"gpu.devices mix {' and '.join(kinds)} devices: one machine of several kinds is not available yet. Name "
            "devices of one kind."
        )
    split = next((request for request in requests if request.split > 1), None)
    if split is not None:
        raise DeviceError(
            f"gpu.devices: a {split.kind} device split into {split.split} (/{split.split}) is not available yet. Name "
            "whole devices, such as cpu:4, cuda or cuda:0."
        )
    return kinds[0] if kinds else backend


def _why_simulated(settings: Settings) -> str:
    asked = "gpu.backend is simulated" if settings.gpu.backend == "simulated" else "gpu.devices name simulated GPUs"
    return f"{asked}: no real GPU was looked for."


def _simulated(
    settings: Settings, requests: Sequence[DeviceRequest], why: str, left_out: Sequence[Excluded] = ()
) -> Machine:
    statements = [why]
    if not requests:
        requests = parse_devices((DEFAULT_SIMULATED,))
        statements.append(f"No devices were named: the default machine is simulated, {DEFAULT_SIMULATED}.")
    models = [model for request in requests for model in [find_model(request.model or "")] * (request.count or 1)]
    minimum = settings.gpu.detection.min_compute_capability
    devices, excluded = simulated_devices(models, minimum)
    if not devices:
        raise DeviceError(f"No simulated GPU is left: {_reasons(excluded)}. Lower the minimum or name newer GPUs.")
    bandwidths = {model.name: model.nvlink_bytes_per_s for model in models}
    return Machine(
        backend="simulated",
        devices=tuple(devices),
        excluded=(*left_out, *excluded),
        statements=tuple(statements),
        topology=assumed_topology(devices, bandwidths),
    )


def _cpu(requests: Sequence[DeviceRequest], host: Host) -> Machine:
    count = sum(request.count or 1 for request in requests)
    statements = []
    if not requests:
        count = 2 if host.cores >= 2 else 1
        statements.append(f"No devices were named: the default is cpu:{count}.")
    cores = f"{host.cores} usable CPU core{'s' if host.cores > 1 else ''}"
    statements.append(
        f"Found {cores}: {count} CPU device{'s' if count > 1 else ''} computing with {max(1, host.cores // count)} "
        "each, and an even share of the memory."
    )
    if count > host.cores:
        statements.append(
            f"Warning: {count} CPU devices on {cores} take the cores from each other, so times, throughput and "
            "utilization are those of shared cores, and scaling over devices means nothing."
        )
    return Machine(backend="cpu", devices=tuple(cpu_devices(count, host)), statements=tuple(statements))


def _look(settings: Settings, environ: Mapping[str, str]) -> tuple[NvmlReport, CudaGpus]:
    report = nvml.read_gpus()
    return report, cuda_gpus(report, settings.gpu.detection.min_compute_capability, environ)


def _cuda(settings: Settings, requests: Sequence[DeviceRequest], environ: Mapping[str, str], host: Host) -> Machine:
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
    return _cuda_machine(report, found, requests)


def _cuda_machine(report: NvmlReport, found: CudaGpus, requests: Sequence[DeviceRequest]) -> Machine:
    named = [request.index for request in requests if request.index is not None]
    chosen = choose_cuda(found, named or None)
    return Machine(
        backend="cuda",
        devices=tuple(spec for spec, _ in chosen),
        excluded=tuple(found.excluded),
        statements=(_found_text(report, found), *found.remarks),
        driver_version=report.driver_version,
        cuda_version=report.cuda_version,
        readings=tuple(reading for _, reading in chosen),
    )


def _auto(settings: Settings, environ: Mapping[str, str], host: Host) -> Machine:
    if not settings.gpu.detection.enabled:
        return _simulated(settings, (), f"{_DETECTION_OFF}: the machine is simulated.")
    report, found = _look(settings, environ)
    if found.usable and host.torch_problem is None:
        return _cuda_machine(report, found, ())
    sentences = [report.problem or _found_text(report, found), *found.remarks]
    if found.usable:
        sentences.append(f"But {host.torch_problem}.")
    return _simulated(settings, (), " ".join(sentences), found.excluded)


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
