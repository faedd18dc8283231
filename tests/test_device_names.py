"""Device specs as users type them."""

from __future__ import annotations

import pytest

from altlas_core.device_names import DeviceRequest, parse_devices
from altlas_core.errors import DeviceError


def simulated(count: int, model: str) -> DeviceRequest:
    return DeviceRequest("simulated", model=model, count=count)


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("8x A100-SXM4-80GB", simulated(8, "A100-SXM4-80GB")),
        ("8xA100", simulated(8, "A100-SXM4-80GB")),
        (" 8 X  a100-sxm4-40gb ", simulated(8, "A100-SXM4-40GB")),
        ("8× T4", simulated(8, "T4")),
        ("8 * T4", simulated(8, "T4")),
        ("A100", simulated(1, "A100-SXM4-80GB")),
        ("NVIDIA GeForce RTX 4090", simulated(1, "RTX-4090-24GB")),
        ("2x Tesla T4", simulated(2, "T4")),
        ("65536x T4", simulated(65536, "T4")),
        ("cpu", DeviceRequest("cpu", count=1)),
        ("cpu:2", DeviceRequest("cpu", count=2)),
        ("CPU : 2", DeviceRequest("cpu", count=2)),
        ("cpu:2/2", DeviceRequest("cpu", count=2, split=2)),
        ("cpu / 3", DeviceRequest("cpu", count=1, split=3)),
        ("cuda", DeviceRequest("cuda")),
        ("cuda:0", DeviceRequest("cuda", index=0)),
        ("Cuda:7", DeviceRequest("cuda", index=7)),
        ("cuda:0/4", DeviceRequest("cuda", index=0, split=4)),
        ("cuda/2", DeviceRequest("cuda", split=2)),
    ],
)
def test_a_spec_is_understood_and_its_own_text_means_the_same(text: str, request_: DeviceRequest) -> None:
    assert parse_devices([text]) == [request_]
    assert parse_devices(str(request_)) == [request_]


def test_several_entries_make_one_machine_in_that_order() -> None:
    requests = parse_devices(["2x H100", "T4", "2x H100"])
    assert [(request.model, request.count) for request in requests] == [
        ("H100-SXM5-80GB", 2),
        ("T4", 1),
        ("H100-SXM5-80GB", 2),
    ]
    assert parse_devices([]) == []
    assert len(parse_devices(["cpu:2", "cpu:2", "cuda:0", "cuda:1"])) == 4


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("0x A100", "count '0'; allowed: a whole number from 1 to 65536"),
        ("-1x A100", "count '-1'"),
        ("1.5x A100", "count '1.5'"),
        ("65537x A100", "count '65537'"),
        ("99999999999999999999x A100", "count '99999999999999999999'"),
        ("cpu:0", "count '0'"),
        ("cpu:-1", "count '-1'"),
        ("cpu:two", "count 'two'"),
        ("cpu:", "count ''"),
        ("cpu:1000000", "count '1000000'"),
        ("cuda:-1", "index '-1'; allowed: a whole number from 0"),
        ("cuda:x", "index 'x'"),
        ("cuda:0/0", "split '0'; allowed: a whole number from 1 to 1024"),
        ("cuda:0/", "split ''"),
        ("cpu:2/1.5", "split '1.5'"),
        ("cpu:2/2/2", "'2/2/2'"),
        ("T4/2", "only cpu and cuda can be split"),
        ("/2", "the name is missing"),
        ("/x", "split 'x'"),
        ("2x cpu", "allowed: 'cpu:2'"),
        ("8x", "the name is missing"),
        ("8x A1000-SXM4-80GB", "Did you mean 'A100-SXM4-80GB'?"),
        ("RTX 5090", "unknown GPU name 'RTX 5090'"),
        ("gpu:0", "'cuda:0'"),
        ("H", "H100, H200"),
        ("", "no device spec"),
        ("   ", "no device spec"),
        ("x", "unknown GPU name"),
        ("8x A100; rm", "unknown GPU name"),
        ("cpu:2\ncpu:2", "count"),
    ],
)
def test_a_bad_spec_is_refused_with_its_text_and_what_is_allowed(text: str, part: str) -> None:
    with pytest.raises(DeviceError) as caught:
        parse_devices([text])
    assert str(caught.value).startswith(f"device {text!r}: ")
    assert part in str(caught.value)


@pytest.mark.parametrize("entry", [None, 3, ["cpu:2"], b"cpu:2"])
def test_what_is_no_text_is_refused(entry: object) -> None:
    with pytest.raises(DeviceError, match="no device spec"):
        parse_devices([entry])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "entries", [["cuda:0", "cuda:0"], ["cuda", "cuda"], ["cuda", "cuda:1"], ["cuda:0/2", "cuda:0"]]
)
def test_a_real_gpu_named_twice_is_refused(entries: list[str]) -> None:
    with pytest.raises(DeviceError, match="named twice"):
        parse_devices(entries)


def test_a_machine_that_is_absurdly_large_in_all_is_refused() -> None:
    with pytest.raises(DeviceError, match="80000 devices are too many; allowed: at most 65536"):
        parse_devices(["40000x T4", "40000x T4"])
