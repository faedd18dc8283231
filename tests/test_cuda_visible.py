"""CUDA_VISIBLE_DEVICES is read as CUDA reads it."""

from __future__ import annotations

import pytest

from altlas_core.backends.cuda_visible import select_visible, worker_environment
from altlas_core.model import DeviceSpec

UUIDS = ("GPU-aa10", "GPU-aa20", "GPU-bb30", None)


@pytest.mark.parametrize(
    ("value", "positions"),
    [
        (None, [0, 1, 2, 3]),  # unset
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 2 , 0 ", [2, 0]),
        ("1,-1,0", [1]),  # -1 ends the list
        ("1,9,0", [1]),  # so does one that is not there
        ("1,,0", [1]),
        ("1x,2", [1, 2]),  # the leading digits count
        ("1,1", []),  # twice empties it
        ("GPU-bb30,GPU-aa20", [2, 1]),
        ("GPU-b", [2]),  # a beginning that fits one
        ("GPU-a", []),  # a beginning that fits several
        ("GPU-aa10,GPU-zz,GPU-bb30", [0]),
        ("GPU-aa10,GPU-aa1", []),
        ("GPU-aa10,1", [0]),  # numbers do not mix with UUIDs
        ("1,GPU-aa10", [1]),
        ("MIG-1234", []),
        ("0,MIG-1234", [0]),
    ],
)
def test_which_gpus_are_visible(value: str | None, positions: list[int]) -> None:
    assert select_visible(UUIDS, value)[0] == positions


@pytest.mark.parametrize(
    ("value", "word"), [("1,9", "'9'"), ("1,1", "twice"), ("MIG-1234", "MIG"), ("0,MIG-1", "MIG"), ("GPU-a", "GPU-a")]
)
def test_an_entry_that_ends_or_empties_the_list_is_named(value: str, word: str) -> None:
    remark = select_visible(UUIDS, value)[1]
    assert remark is not None
    assert word in remark
    assert f"CUDA_VISIBLE_DEVICES='{value}'" in remark


@pytest.mark.parametrize("value", [None, "", "-1", "0,1,-1", "2,0"])
def test_what_is_meant_so_needs_no_remark(value: str | None) -> None:
    assert select_visible(UUIDS, value)[1] is None


def test_a_worker_sees_its_own_gpu_only_by_uuid_where_there_is_one() -> None:
    spec = DeviceSpec(0, "cuda", "NVIDIA T4", 1, index=3, uuid="GPU-abc")
    assert worker_environment(spec) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "GPU-abc"}
    spec = DeviceSpec(0, "cuda", "NVIDIA T4", 1, index=3)
    assert worker_environment(spec)["CUDA_VISIBLE_DEVICES"] == "3"
