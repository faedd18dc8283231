"""`altlas gpus`: the table, what was left out, the links; it fits 100 columns and shows N/A for what is not known."""

from __future__ import annotations

import json

import pynvml
import pytest
from fake_nvml import FakeGpu, FakeNvml, gpus, installed

from altlas_core.backends.discover import discover
from altlas_core.backends.gpus_table import WIDTH, render
from altlas_core.backends.host import Host
from altlas_core.backends.machine import Machine
from altlas_core.backends.topology import assumed_topology, link_between, ranges_text
from altlas_core.config import load_config
from altlas_core.model import GIB


def machine(*devices: str, minimum: float = 7.0) -> Machine:
    overrides = {"gpu.devices": list(devices), "gpu.detection.min_compute_capability": minimum}
    host = Host(cores=8, memory_bytes=64 * GIB, cpu_name="A Processor 9000")
    return discover(load_config(None, overrides, environ={}), environ={}, host=host)


def real(devices: list[FakeGpu]) -> Machine:
    with installed(FakeNvml(devices)):
        return machine("cuda")


def test_a_real_gpu_is_shown_with_its_readings() -> None:
    text = render(real([FakeGpu(used_mib=2048, utilization=37, temperature=54, power_mw=312_400)]))
    row, health = [line for line in text.splitlines() if line.startswith("0 ")]
    for cell in ("NVIDIA A100-SXM4-80GB", "8.0", "2.0/80.0 GiB", "37 %", "54 C", "312/400 W", "00000000:01:00.0"):
        assert cell in row
    assert health.split() == ["0", "1410", "MHz", "1593", "MHz", "0/0", "nothing"]
    assert "driver 550.54.14, CUDA 12.4" in text


def test_clocks_that_are_held_down_errors_and_what_the_driver_asks_for_are_shown() -> None:
    devices = gpus(2)
    devices[1].throttle, devices[1].ecc, devices[1].recovery = 0x04 | 0x40, (7, 2), 1
    text = render(real(devices))
    assert "7/2  sw_power_cap, hw_thermal_slowdown" in text
    assert "GPU 1: the driver asks for a reset of the GPU." in text


def test_where_nothing_is_told_of_clocks_and_errors_there_is_no_table_of_them() -> None:
    text = render(real([FakeGpu(sm_clock=None, memory_clock=None, throttle=None, ecc=None)]))
    assert "SM clock" not in text
    assert "SM clock" in render(real([FakeGpu(sm_clock=None, memory_clock=None, throttle=None)]))
    assert "SM clock" not in render(machine("2x A100"))


def test_the_parts_of_a_gpu_are_told_apart_and_its_card_is_shown_once() -> None:
    with installed(FakeNvml(gpus(2, used_mib=4096))):
        text = render(machine("cuda:1/4", "cuda:0"))
    assert "NVIDIA A100-SXM4-80GB 1/4" in text
    assert " 20.0 GiB " in text
    assert " 4.0/80.0 GiB " in text
    lines = text.splitlines()
    cards = lines[next(i for i, line in enumerate(lines) if "SM clock" in line) + 1 :][:2]
    assert [line.split()[0] for line in cards] == ["0-3", "4"]


def test_a_machine_of_several_kinds_has_a_table_for_each() -> None:
    with installed(FakeNvml(gpus(1))):
        text = render(machine("cuda:0", "2x A100", "cpu:2/2"))
    assert text.startswith("1 CUDA, 2 simulated and 4 CPU devices (driver 550.54.14")
    assert [line.split()[0] for line in text.splitlines() if line[:1].isdigit()][1:] == list("01234560")
    assert "A Processor 9000 2/2" in text


def test_what_is_not_known_is_shown_as_not_available_and_never_as_zero() -> None:
    gpu = FakeGpu(utilization=None, temperature=None, power_mw=None, limit_mw=None, ecc=None)
    gpu.errors["nvmlDeviceGetPciInfo_v3"] = pynvml.NVML_ERROR_NOT_SUPPORTED
    row, health = [line for line in render(real([gpu])).splitlines() if line.startswith("0 ")]
    assert row.split()[-4:] == ["N/A"] * 4
    assert health.split()[-2:] == ["N/A", "nothing"]


def test_what_was_left_out_is_shown_with_its_reason() -> None:
    devices = gpus(3)
    devices[1].errors["nvmlDeviceGetName"] = pynvml.NVML_ERROR_GPU_IS_LOST
    text = render(real(devices))
    assert "Left out: 1" in text
    assert "index 1, GPU 1 (name not readable): it is lost" in text


@pytest.mark.parametrize(
    "devices", [("8x A100",), ("1000x H100", "24x V100-SXM2-16GB", "T4"), ("cpu:3",), ("RTX-4090-24GB",) * 40]
)
def test_every_line_fits_the_width(devices: tuple[str, ...]) -> None:
    lines = render(machine(*devices, minimum=7.5)).splitlines()
    assert max(len(line) for line in lines) <= WIDTH
    assert len(lines) < 60
    assert not any(line != line.rstrip() for line in lines)


def test_a_long_name_and_large_figures_fit_the_width() -> None:
    gpu = FakeGpu(name=b"NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", used_mib=80000, utilization=100)
    gpu.throttle, gpu.ecc = 0xFC, (10**9, 10**6)
    assert max(len(line) for line in render(real([gpu, *gpus(11)[1:]])).splitlines()) <= WIDTH


def test_a_large_machine_is_shown_in_groups() -> None:
    lines = render(machine("1000x H100", "24x T4")).splitlines()
    assert any(line.startswith("0-999 ") and line.endswith(" 1000") for line in lines)
    assert any(line.startswith("1000-1023 ") and line.endswith(" 24") for line in lines)


# --- topology ---


def test_gpus_of_one_model_with_nvlink_are_linked_in_nodes_of_eight_and_meet_others_over_pcie() -> None:
    topology = machine("10x A100", "2x T4").topology
    assert topology is not None
    assert topology["assumed"] is True
    assert link_between(topology, 0, 7) == "NVLink"
    assert link_between(topology, 8, 9) == "NVLink"
    assert link_between(topology, 7, 8) == "PCIe"  # another node
    assert link_between(topology, 10, 11) == "PCIe"  # a T4 has no NVLink
    assert link_between(topology, 0, 10) == "PCIe"
    assert link_between(topology, 3, 3) == "same"


def test_models_that_alternate_are_still_linked_among_themselves() -> None:
    topology = machine("A100", "T4", "2x A100").topology
    assert topology is not None
    assert link_between(topology, 0, 3) == "NVLink"
    assert topology["groups"][0]["gpu_ids"] == "0,2-3"


def test_links_are_the_same_both_ways() -> None:
    topology = machine("9x H100", "3x L4").topology
    assert topology is not None
    for first in range(12):
        for second in range(12):
            assert link_between(topology, first, second) == link_between(topology, second, first)


def test_the_topology_of_a_thousand_gpus_is_small() -> None:
    assert len(json.dumps(machine("1024x H100").topology)) < 1000
    assert assumed_topology((), {})["groups"] == []


def test_only_simulated_machines_have_an_assumed_topology() -> None:
    assert machine("cpu:1").topology is None
    assert real(gpus(2)).topology is None


def test_numbers_are_written_as_ranges() -> None:
    assert ranges_text([3, 0, 1, 2, 9, 5, 6]) == "0-3,5-6,9"
