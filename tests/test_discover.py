"""Which devices a run gets from its settings, what was left out and why, and what refuses to start."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pynvml
import pytest
from fake_nvml import FakeGpu, FakeNvml, gpus, installed
from hypothesis import given, settings
from hypothesis import strategies as st

from altlas_core.backends.device_builders import capability_tuple
from altlas_core.backends.discover import discover
from altlas_core.backends.host import Host, torch_problem
from altlas_core.backends.machine import Machine
from altlas_core.backends.nvml import ask as nvml_ask
from altlas_core.config import load_config
from altlas_core.errors import DeviceError
from altlas_core.gpu_model.catalog import CATALOG
from altlas_core.model import GIB

HOST = Host(cores=8, memory_bytes=64 * GIB, cpu_name="A Processor 9000")


def find(*devices: str, environ: dict[str, str] | None = None, host: Host = HOST, **gpu: Any) -> Machine:
    """Discover with `devices` and settings below `gpu.` (`__` between levels)."""
    overrides = {f"gpu.{name.replace('__', '.')}": value for name, value in gpu.items()}
    settings = load_config(None, {"gpu.devices": list(devices), **overrides}, environ={})
    return discover(settings, environ=environ or {}, host=host)


def find_with(library: FakeNvml | None, *devices: str, **values: Any) -> Machine:
    with installed(library):
        return find(*devices, **values)


def refusal(library: FakeNvml | None, *devices: str, **values: Any) -> str:
    with pytest.raises(DeviceError) as caught:
        find_with(library, *devices, **values)
    return str(caught.value)


@pytest.fixture
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: Any) -> None:
        raise AssertionError("NVML was asked")

    monkeypatch.setattr(nvml_ask, "ask", asked)


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(pynvml, "CDLL", no_library)


# --- which backend ---


def test_auto_means_cuda_where_a_gpu_is_usable() -> None:
    machine = find_with(FakeNvml(gpus(2)))
    assert machine.backend == "cuda"
    assert [(spec.gpu_id, spec.kind, spec.index) for spec in machine.devices] == [(0, "cuda", 0), (1, "cuda", 1)]
    assert machine.driver_version == "550.54.14"
    assert machine.devices[0].driver_version == "550.54.14"
    assert len(machine.readings) == 2
    assert "found 2, usable 2" in machine.statements[0]


def test_auto_means_simulated_without_a_driver_and_says_what_was_looked_for(no_driver: None) -> None:
    machine = find_with(None)
    assert machine.backend == "simulated"
    assert [spec.name for spec in machine.devices] == ["A100-SXM4-80GB"] * 8
    assert "libnvidia-ml.so.1 is not there" in machine.statements[0]
    assert "8x A100-SXM4-80GB" in machine.statements[1]


def test_auto_means_simulated_where_no_gpu_is_usable_and_lists_those_left_out() -> None:
    machine = find_with(FakeNvml([FakeGpu(name=b"Tesla P100", capability=(6, 0))]))
    assert machine.backend == "simulated"
    assert [(item.name, item.index) for item in machine.excluded] == [("Tesla P100", 0)]
    assert "found 1, usable 0" in machine.statements[0]


def test_detection_switched_off_asks_nvml_nothing_and_auto_means_simulated(no_nvml: None) -> None:
    machine = find_with(FakeNvml(gpus(2)), detection__enabled=False)
    assert machine.backend == "simulated"
    assert "gpu.detection.enabled is false" in machine.statements[0]


def test_detection_switched_off_contradicts_a_cuda_device(no_nvml: None) -> None:
    for devices, backend in (((), "cuda"), (("cuda:0",), "auto")):
        assert "gpu.detection.enabled" in refusal(FakeNvml(), *devices, backend=backend, detection__enabled=False)


@pytest.mark.parametrize(("devices", "backend"), [(["T4"], "simulated"), (["cpu:2"], "cpu")])
def test_with_auto_the_devices_decide_and_nvml_is_not_asked(no_nvml: None, devices: list[str], backend: str) -> None:
    assert find_with(FakeNvml(gpus(2)), *devices).backend == backend


def test_with_auto_a_cuda_device_means_cuda() -> None:
    machine = find_with(FakeNvml(gpus(3)), "cuda:2", "cuda:0")
    assert machine.backend == "cuda"
    assert [(spec.gpu_id, spec.index) for spec in machine.devices] == [(0, 2), (1, 0)]


@pytest.mark.parametrize(
    ("backend", "device", "kind"),
    [
        ("simulated", "cpu:2", "cpu"),
        ("cpu", "T4", "simulated"),
        ("cuda", "cpu:1", "cpu"),
        ("simulated", "cuda", "cuda"),
    ],
)
def test_backend_and_devices_that_contradict_each_other_are_refused(backend: str, device: str, kind: str) -> None:
    message = refusal(FakeNvml(), device, backend=backend)
    assert "contradict" in message
    assert f"--backend {kind}" in message


@pytest.mark.parametrize("backend", ["simulated", "cpu", "cuda"])
def test_a_named_backend_contradicts_devices_of_several_kinds(backend: str) -> None:
    message = refusal(FakeNvml(), "cpu:1", "T4", backend=backend)
    assert f"gpu.backend is {backend}" in message
    assert "--backend auto" in message


# --- several kinds ---


def test_devices_of_several_kinds_make_one_machine_in_the_order_of_the_entries() -> None:
    machine = find_with(FakeNvml(gpus(2)), "cuda:1", "2x T4", "cpu:2", "A100")
    assert machine.backend == "mixed"
    assert machine.provenance == "mixed"
    assert [(spec.gpu_id, spec.kind, spec.index) for spec in machine.devices] == [
        (0, "cuda", 1),
        (1, "simulated", 0),
        (2, "simulated", 1),
        (3, "cpu", 0),
        (4, "cpu", 1),
        (5, "simulated", 2),
    ]
    assert [spec.cores for spec in machine.devices if spec.kind == "cpu"] == [4, 4]
    assert machine.driver_version == "550.54.14"
    assert [reading is not None for reading in machine.readings] == [True, False, False, False, False, False]
    assert machine.topology is None  # links between what is real and what is not mean nothing
    assert json.loads(json.dumps(machine.to_json()))["backend"] == "mixed"


def test_cpu_and_cuda_devices_together_are_all_measured() -> None:
    machine = find_with(FakeNvml(gpus(1)), "cpu:1", "cuda")
    assert (machine.backend, machine.provenance) == ("mixed", "measured")


def test_without_a_cuda_device_a_mixed_machine_asks_nvml_nothing(no_nvml: None) -> None:
    assert [spec.kind for spec in find("T4", "cpu:1").devices] == ["simulated", "cpu"]


def test_in_a_mixed_machine_simulated_gpus_under_the_minimum_are_left_out() -> None:
    machine = find("V100", "cpu:1", "2x T4", detection__min_compute_capability=7.5)
    assert [(spec.gpu_id, spec.name) for spec in machine.devices] == [(0, HOST.cpu_name), (1, "T4"), (2, "T4")]
    assert [item.name for item in machine.excluded] == ["V100-SXM2-16GB"]


def test_a_gpu_that_is_not_there_is_refused_in_a_mixed_machine_too() -> None:
    assert "cuda:3 is not there" in refusal(FakeNvml(gpus(1)), "2x T4", "cuda:3")


# --- cuda ---


def test_cuda_without_a_driver_says_what_was_looked_for_and_what_to_do(no_driver: None) -> None:
    for devices in ((), ("cuda",), ("cuda:0",)):
        message = refusal(None, *devices, backend="cuda")
        assert "libnvidia-ml.so.1" in message
        assert "--backend simulated" in message


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_UNKNOWN])
def test_cuda_with_a_failing_driver_is_refused_with_its_sentence(code: int) -> None:
    message = refusal(FakeNvml(errors={"nvmlInitWithFlags": code}), backend="cuda")
    assert "Looked for NVIDIA GPUs" in message


def test_a_gpu_that_is_not_there_is_refused_with_those_that_are() -> None:
    message = refusal(FakeNvml(gpus(2, name=b"NVIDIA L4")), "cuda:2")
    assert "cuda:2 is not there" in message
    assert "cuda:0 (NVIDIA L4), cuda:1 (NVIDIA L4)" in message


def test_a_named_gpu_that_is_left_out_is_refused_with_the_reason() -> None:
    devices = gpus(2)
    devices[1].capability = (6, 1)
    message = refusal(FakeNvml(devices), "cuda:1")
    assert "compute capability 6.1 is under" in message
    assert "cuda:0" in message


def test_one_lost_gpu_is_listed_and_the_others_keep_their_number() -> None:
    devices = gpus(3)
    devices[1].errors["nvmlDeviceGetHandleByIndex_v2"] = pynvml.NVML_ERROR_GPU_IS_LOST
    machine = find_with(FakeNvml(devices))
    assert [(spec.gpu_id, spec.index) for spec in machine.devices] == [(0, 0), (1, 2)]
    assert [(item.index, "lost" in item.reason) for item in machine.excluded] == [(1, True)]


def test_all_gpus_lost_is_no_usable_gpu() -> None:
    devices = gpus(2)
    for gpu in devices:
        gpu.errors["nvmlDeviceGetMemoryInfo_v2"] = pynvml.NVML_ERROR_GPU_IS_LOST
    message = refusal(FakeNvml(devices), backend="cuda")
    assert "lost" in message
    assert "found 2, usable 0" in message


def test_a_gpu_under_the_minimum_is_left_out_and_the_rest_renumbered() -> None:
    devices = gpus(3)
    devices[0].capability = (7, 0)
    machine = find_with(FakeNvml(devices), detection__min_compute_capability=7.5)
    assert [(spec.gpu_id, spec.index) for spec in machine.devices] == [(0, 1), (1, 2)]
    (left_out,) = machine.excluded
    assert left_out.index == 0
    assert left_out.reason.startswith("compute capability 7.0 is under")
    assert left_out.reason.endswith("7.5")


@pytest.mark.parametrize("changes", [{"total_mib": None}, {"mig": 1}])
def test_a_gpu_that_cannot_be_placed_on_is_left_out_with_a_reason(changes: dict[str, Any]) -> None:
    machine = find_with(FakeNvml([*gpus(1), FakeGpu(uuid=b"GPU-x", **changes)]))
    assert [spec.index for spec in machine.devices] == [0]
    assert machine.excluded[0].reason


def test_cuda_visible_devices_chooses_orders_and_hides() -> None:
    machine = find_with(FakeNvml(gpus(4)), environ={"CUDA_VISIBLE_DEVICES": "2,0"})
    uuids = [spec.uuid and spec.uuid[:12] for spec in machine.devices]
    assert uuids == ["GPU-00000002", "GPU-00000000"]
    assert [spec.index for spec in machine.devices] == [0, 1]
    assert [(item.index, "CUDA_VISIBLE_DEVICES='2,0'" in item.reason) for item in machine.excluded] == [
        (1, True),
        (3, True),
    ]


def test_all_gpus_hidden_is_no_usable_gpu_and_auto_means_simulated() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": ""}
    assert find_with(FakeNvml(gpus(2)), environ=environ).backend == "simulated"
    assert "hidden by CUDA_VISIBLE_DEVICES=''" in refusal(FakeNvml(gpus(2)), backend="cuda", environ=environ)


def test_numbers_of_unlike_gpus_are_said_to_follow_the_pci_bus() -> None:
    devices = gpus(2)
    devices[1].name = b"NVIDIA T4"
    said = find_with(FakeNvml(devices)).statements
    assert any("CUDA_DEVICE_ORDER=PCI_BUS_ID" in sentence for sentence in said)
    told = find_with(FakeNvml(devices), environ={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}).statements
    assert not any("CUDA_DEVICE_ORDER" in sentence for sentence in told)


# --- cpu ---


def test_cpu_devices_share_cores_and_memory() -> None:
    machine = find("cpu:2")
    assert [(spec.kind, spec.gpu_id, spec.uuid) for spec in machine.devices] == [
        ("cpu", 0, "CPU-0"),
        ("cpu", 1, "CPU-1"),
    ]
    assert {(spec.name, spec.memory_total_bytes, spec.cores) for spec in machine.devices} == {
        ("A Processor 9000", 32 * GIB, 4)
    }
    assert not any("Warning" in sentence for sentence in machine.statements)


@pytest.mark.parametrize(("cores", "count"), [(1, 1), (2, 2), (16, 2)])
def test_the_default_cpu_machine_has_two_devices_where_there_are_two_cores(cores: int, count: int) -> None:
    machine = find(backend="cpu", host=Host(cores, GIB, "CPU"))
    assert len(machine.devices) == count
    assert f"cpu:{count}" in machine.statements[0]


def test_more_cpu_devices_than_cores_is_said_and_each_keeps_one_core() -> None:
    machine = find("cpu:3", "cpu:1", host=Host(2, GIB, "CPU"))
    assert [spec.cores for spec in machine.devices] == [1] * 4
    assert any("Warning" in sentence and "shared cores" in sentence for sentence in machine.statements)


def test_each_cpu_device_has_cores_of_its_own_while_there_are_enough() -> None:
    host = Host(5, 8 * GIB, "CPU", cpu_ids=(0, 4, 1, 5, 2))  # hardware threads of one core side by side
    assert [spec.cpu_ids for spec in find("cpu:2", host=host).devices] == [(0, 4), (1, 5)]
    assert [spec.cpu_ids for spec in find("cpu:1", host=host).devices] == [(0, 1, 2, 4, 5)]


def test_more_cpu_devices_than_the_memory_allows_are_refused() -> None:
    with pytest.raises(DeviceError, match=r"40 CPU devices would have 0\.2 GiB each .* allowed here: at most 32\."):
        find("cpu:40", host=Host(64, 8 * GIB, "CPU"))


def test_more_cpu_devices_than_cores_take_them_by_turns() -> None:
    host = Host(2, 8 * GIB, "CPU", cpu_ids=(3, 7))
    assert [spec.cpu_ids for spec in find("cpu:3", host=host).devices] == [(3,), (7,), (3,)]


def test_cores_are_nobodys_to_choose_under_a_quota_of_cpu_time() -> None:
    assert [spec.cpu_ids for spec in find("cpu:2", host=HOST).devices] == [None, None]


# --- simulated ---


def test_simulated_devices_carry_the_figures_of_the_catalog_in_the_order_of_the_entries() -> None:
    machine = find("2x T4", "h100", "A100")
    assert [spec.name for spec in machine.devices] == ["T4", "T4", "H100-SXM5-80GB", "A100-SXM4-80GB"]
    assert [spec.gpu_id for spec in machine.devices] == [0, 1, 2, 3]
    for spec in machine.devices:
        board = CATALOG[spec.model]
        assert spec.memory_total_bytes == board.memory_total_bytes
        assert spec.compute_capability == board.compute_capability
        assert spec.power_limit_w == board.power_limit_w


def test_the_same_machine_has_the_same_identities_every_time() -> None:
    assert find("4x A100", "T4") == find("4x A100", "T4")


@settings(deadline=None)  # thousands of GPUs on a busy computer
@given(st.lists(st.tuples(st.integers(1, 2000), st.sampled_from(sorted(CATALOG))), min_size=1, max_size=4))
def test_ids_of_a_simulated_machine_are_unique(entries: list[tuple[int, str]]) -> None:
    devices = find(*(f"{count}x {name}" for count, name in entries)).devices
    assert [spec.gpu_id for spec in devices] == list(range(sum(count for count, _ in entries)))
    assert len({spec.uuid for spec in devices}) == len(devices)
    assert len({spec.pci_id for spec in devices}) == len(devices)


def test_simulated_gpus_under_the_minimum_are_left_out_and_the_rest_renumbered() -> None:
    machine = find("T4", "V100-SXM2-16GB", "B200", detection__min_compute_capability=7.5)
    assert [(spec.gpu_id, spec.index, spec.name) for spec in machine.devices] == [
        (0, 0, "T4"),
        (1, 2, "B200-SXM-180GB"),
    ]
    assert [(item.index, item.name) for item in machine.excluded] == [(1, "V100-SXM2-16GB")]


def test_nothing_left_of_a_simulated_machine_is_refused_with_the_reason() -> None:
    message = refusal(FakeNvml(), "1024x V100-SXM2-16GB", detection__min_compute_capability=9.0)
    assert "1024x" in message
    assert "compute capability 7.0" in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("value", "pair"), [(7.5, (7, 5)), (7, (7, 0)), (10.0, (10, 0)), (12.1, (12, 1)), (8.9, (8, 9)), (0.0, (0, 0))]
)
def test_a_capability_setting_is_compared_as_major_and_minor(value: float, pair: tuple[int, int]) -> None:
    assert capability_tuple(value) == pair


def test_capability_ten_is_more_than_nine() -> None:
    machine = find("B200", "H100", detection__min_compute_capability=9.5)
    assert [spec.name for spec in machine.devices] == ["B200-SXM-180GB"]


def test_everything_about_a_machine_can_be_written_as_json() -> None:
    real = find_with(FakeNvml(gpus(2, processes=[(5, 100)])))
    for machine in (real, find("4x T4", "A100"), find("cpu:2")):
        data = json.loads(json.dumps(machine.to_json(), allow_nan=False))
        assert len(data["devices"]) == len(machine.devices)
    plain = json.loads(json.dumps(real.to_json()))["devices"][0]
    assert plain["compute_capability"] == "8.0"
    assert plain["reading"]["processes"] == [{"pid": 5, "memory_bytes": 100 * 2**20}]


NO_CUDA = Host(8, GIB, "CPU", torch_problem="the torch installed here is a build without CUDA; install another")


def test_a_gpu_that_torch_cannot_use_leaves_auto_simulated_and_says_why() -> None:
    machine = find_with(FakeNvml([FakeGpu()]), host=NO_CUDA)
    assert machine.backend == "simulated"
    assert "usable 1" in machine.statements[0]
    assert "a build without CUDA" in machine.statements[0]


def test_cuda_with_a_torch_that_has_none_is_refused_before_anything_starts() -> None:
    assert "build without CUDA" in refusal(FakeNvml([FakeGpu()]), backend="cuda", host=NO_CUDA)


def test_what_torch_can_do_is_read_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('torch was imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for line, problem in (("cuda: Optional[str] = None", True), ("cuda: Optional[str] = '13.0'", False)):
        (package / "version.py").write_text(f"from typing import Optional\n{line}\nhip: Optional[str] = None\n")
        assert (torch_problem() is not None) == problem
