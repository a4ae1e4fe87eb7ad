"""Device masks: by UUID, by index, by MIG id or place. ORCH-3011."""

from dataclasses import replace

import pytest

from pool_managerd.core.device import Device, DeviceKind
from pool_managerd.core.mask import mask_problems, selected

WHOLE = Device("GPU-w", DeviceKind.GPU, index=0)
OTHER = Device("GPU-o", DeviceKind.GPU, index=2)
SLICE = Device(
    "MIG-a", DeviceKind.MIG, index=1, parent_device_id="GPU-cut", slice_index=0, mig_enabled=True
)
SLICE_2 = replace(SLICE, device_id="MIG-b", slice_index=3)
DEVICES = (WHOLE, SLICE, SLICE_2, OTHER)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [("GPU-w", WHOLE), ("0", WHOLE), ("2", OTHER), ("MIG-b", SLICE_2), ("1:3", SLICE_2)],
)
def test_an_entry_names_one_device(entry: str, expected: Device) -> None:
    """Whole GPUs by UUID or index, slices by their id or as GPU:SLICE."""
    assert selected([entry], DEVICES) == (expected,)
    assert mask_problems([entry], DEVICES) == []


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["GPU-x"], "no device GPU-x; this host has: GPU-w (0), MIG-a (1:0), MIG-b (1:3), GPU-o"),
        (["1"], "GPU 1 is cut into MIG slices: name one of MIG-a (1:0), MIG-b (1:3)"),
        (["GPU-cut"], "GPU GPU-cut is cut into MIG slices: name one of MIG-a (1:0), MIG-b (1:3)"),
        (["1:1"], "no device 1:1"),
        (["MIG-a", "GPU-w"], "one MIG slice and nothing beside it: name one of MIG-a (1:0)"),
        ([], "a process can use one MIG slice"),
        (["0", "GPU-w"], "GPU-w is named twice"),
    ],
)
def test_what_is_wrong_with_a_mask_is_said(entries: list[str], said: str) -> None:
    """Each sentence names the device, and what may be named instead."""
    (problem,) = mask_problems(entries, DEVICES)
    assert said in problem


def test_a_host_without_slices_takes_an_empty_mask() -> None:
    """It means all GPUs of the host."""
    assert mask_problems([], (WHOLE, OTHER)) == []
    assert selected([], (WHOLE, OTHER)) == (WHOLE, OTHER)
