"""The GPU catalog: names, aliases, families, plausible figures with their source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from altlas_core.errors import DeviceError
from altlas_core.gpu_model.catalog import CATALOG, find_model, model_of_nvml_name
from altlas_core.gpu_model.catalog_data import SOURCES

SPECS = Path(__file__).parents[2] / "shared" / "data" / "gpu_specs.yaml"

NAMES = [
    "T4",
    "L4",
    "A10",
    "L40S",
    "RTX-4060-8GB",
    "RTX-4090-24GB",
    "V100-SXM2-16GB",
    "A100-SXM4-40GB",
    "A100-SXM4-80GB",
    "H100-SXM5-80GB",
    "H200-SXM5-141GB",
    "B200-SXM-180GB",
]


def test_the_names_of_the_contract_are_there() -> None:
    assert set(NAMES) <= set(CATALOG)


@pytest.mark.parametrize("name", CATALOG)
def test_a_name_in_any_case_finds_its_board(name: str) -> None:
    for text in (name, name.lower(), f"  {name.upper()}\t", name.replace("-", " "), name.replace("-", "_")):
        assert find_model(text).name == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"),
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4060", "RTX-4060-8GB"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090-24GB"),
        ("Tesla V100-SXM2-16GB", "V100-SXM2-16GB"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM5-80GB"),
        ("NVIDIA H200", "H200-SXM5-141GB"),
        ("NVIDIA B200", "B200-SXM-180GB"),
    ],
)
def test_the_names_nvml_reports_are_aliases(text: str, name: str) -> None:
    assert find_model(text).name == name
    found = model_of_nvml_name(text)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("A100", "A100-SXM4-80GB"),
        ("a100-sxm4", "A100-SXM4-80GB"),
        ("A100-SXM4-4", "A100-SXM4-40GB"),
        ("H100", "H100-SXM5-80GB"),
        ("h200", "H200-SXM5-141GB"),
        ("B200", "B200-SXM-180GB"),
        ("V100", "V100-SXM2-16GB"),
        ("rtx 4090", "RTX-4090-24GB"),
        ("RTX-40 60", None),
        ("A10", "A10"),
        ("L4", "L4"),
    ],
)
def test_a_prefix_of_one_family_means_its_largest(prefix: str, name: str | None) -> None:
    if name is None:
        with pytest.raises(DeviceError):
            find_model(prefix)
    else:
        assert find_model(prefix).name == name


@pytest.mark.parametrize(
    ("prefix", "families"), [("H", ("H100", "H200")), ("A1", ("A10", "A100")), ("RTX", ("RTX-4060", "RTX-4090"))]
)
def test_a_prefix_of_several_families_is_refused_with_their_names(prefix: str, families: tuple[str, ...]) -> None:
    with pytest.raises(DeviceError) as caught:
        find_model(prefix)
    for family in families:
        assert family in str(caught.value)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("A1000-SXM4-80GB", "A100-SXM4-80GB"),
        ("RTX 4060 Ti", "RTX 4060"),
        ("RTX-4080-24GB", "RTX-4090-24GB"),
        ("H1OO", None),
        ("", None),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_and_all_names(name: str, nearest: str | None) -> None:
    with pytest.raises(DeviceError, match="unknown GPU name") as caught:
        find_model(name)
    assert all(known in str(caught.value) for known in NAMES)
    assert nearest is None or f"Did you mean '{nearest}'?" in str(caught.value)


def test_an_nvml_name_is_never_guessed() -> None:
    assert model_of_nvml_name("NVIDIA L40") is None
    assert model_of_nvml_name("NVIDIA A100-PCIE-40GB") is None
    assert model_of_nvml_name("NVIDIA A100") is None


def test_no_alias_belongs_to_two_boards() -> None:
    names = [alias.casefold() for gpu in CATALOG.values() for alias in (gpu.name, *gpu.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", CATALOG)
def test_figures_are_plausible_and_have_a_source(name: str) -> None:
    gpu = CATALOG[name]
    assert 7 * 2**30 < gpu.memory_total_bytes < 200 * 2**30
    assert 200e9 < gpu.memory_bandwidth_bytes_per_s < 10e12
    assert 8e12 <= gpu.peak_flops["fp32"] <= gpu.peak_flops["fp16"] < 3e15
    assert 7 <= gpu.compute_capability[0] <= 12
    assert 0 < gpu.idle_w_or_estimate < 0.3 * gpu.power_limit_w
    assert 85 <= gpu.slowdown_c_or_estimate <= 95
    assert 20 <= gpu.sm_count <= 200
    assert 1000 < gpu.boost_mhz < 3000
    assert set(gpu.sources.values()) <= set(SOURCES)
    for field in (
        "memory_total_bytes",
        "memory_bandwidth_bytes_per_s",
        "power_limit_w",
        "sm_count",
        "boost_mhz",
        "fp32",
    ):
        assert gpu.source(field) == SOURCES[gpu.sources[field]]


def test_fp32_peak_agrees_with_cores_times_clock() -> None:
    """FLOP/s = 2 x cores x clock; 64 FP32 cores per SM on T4, V100 and A100, 128 on the others."""
    for gpu in CATALOG.values():
        cores = gpu.sm_count * (64 if gpu.compute_capability in ((7, 0), (7, 5), (8, 0)) else 128)
        assert gpu.peak_flops["fp32"] == pytest.approx(2 * cores * gpu.boost_mhz * 1e6, rel=0.1), gpu.name


def test_what_has_no_source_is_none_and_its_estimate_says_so() -> None:
    gpu = CATALOG["RTX-4060-8GB"]
    assert (gpu.idle_w, gpu.slowdown_c, gpu.nvlink_bytes_per_s) == (None, None, None)
    assert set(gpu.estimates) == {"idle_w", "slowdown_c"}
    assert gpu.source("idle_w").startswith("estimate: ")
    assert gpu.source("nvlink_bytes_per_s") == "no source"
    assert CATALOG["A100-SXM4-80GB"].estimates == {}
    assert CATALOG["A100-SXM4-80GB"].idle_w_or_estimate == 59.0
    assert "bf16" not in CATALOG["T4"].peak_flops
    assert "tf32" not in CATALOG["A10"].peak_flops


def _spec_key(name: str) -> str:
    special = {"RTX-4060-8GB": "RTX_4060_8GB", "RTX-4090-24GB": "RTX_4090", "V100-SXM2-16GB": "V100_SXM2"}
    if name in special or "-" not in name:
        return special.get(name, name)
    chip, socket, size = name.split("-")
    return f"{chip}_{size}_{socket}"


@pytest.mark.skipif(not SPECS.is_file(), reason=f"the collected facts are not here: {SPECS.name} beside the checkout")
@pytest.mark.parametrize("name", NAMES)
def test_figures_and_sources_are_those_of_the_collected_facts(name: str) -> None:
    facts: dict[str, Any] = yaml.safe_load(SPECS.read_text())["gpus"][_spec_key(name)]
    gpu = CATALOG[name]

    def same(field: str, key: str, factor: float = 1.0) -> None:
        value = getattr(gpu, field) if hasattr(gpu, field) else gpu.peak_flops.get(field)
        if key not in facts:
            assert value is None, field
            return
        fact = facts[key]["value"]
        fact = fact["16GB"] if isinstance(fact, dict) else sum(fact) / 2 if isinstance(fact, list) else fact
        assert value == pytest.approx(fact * factor), field
        assert gpu.sources[field] == facts[key]["source"], field

    same("memory_total_bytes", "nvml_total_mib", 2**20)
    same("memory_reserved_bytes", "nvml_reserved_mib", 2**20)
    same("memory_bandwidth_bytes_per_s", "mem_bw_gbs", 1e9)
    same("fp32", "fp32_tflops", 1e12)
    for rate in ("tf32", "fp16", "bf16"):
        same(rate, f"{rate}_dense_tflops", 1e12)
    same("power_limit_w", "tdp_w")
    same("nvlink_bytes_per_s", "nvlink_gbs_bidir", 1e9)
    same("l2_bytes", "l2_mb", 2**20)
    same("memory_clock_mhz", "mem_clock_mhz")
    same("memory_max_c", "mem_max_c")
    for field in [
        "power_limit_min_w",
        "idle_w",
        "sm_count",
        "boost_mhz",
        "base_mhz",
        "tensor_clock_mhz",
        "slowdown_c",
        "shutdown_c",
        "max_operating_c",
    ]:
        same(field, field)
    assert ".".join(map(str, gpu.compute_capability)) == facts["compute_capability"]["value"]
    assert gpu.pcie == facts["pcie"]["value"]
