"""Which devices a pool uses. ORCH-3011, ORCH-3052."""

import pytest

from pool_managerd.config import PoolTable
from pool_managerd.core.device import Device, DeviceKind
from pool_managerd.snapshots import by_device_id, masked, unknown_in_mask

DEVICES = tuple(Device(f"GPU-{name}", DeviceKind.GPU, index=i) for i, name in enumerate("abc"))


def table(*mask: str) -> PoolTable:
    """A pool with a mask."""
    return PoolTable.model_validate({"pool_id": "p", "devices": mask, "engine": {"kind": "mock"}})


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ((), ["GPU-a", "GPU-b", "GPU-c"]),
        (("GPU-b",), ["GPU-b"]),
        (("2", "GPU-a"), ["GPU-a", "GPU-c"]),
    ],
)
def test_a_mask_names_devices_by_id_or_index(mask: tuple[str, ...], expected: list[str]) -> None:
    """An empty mask means all devices."""
    assert [device.device_id for device in masked(table(*mask), DEVICES)] == expected


def test_a_mask_is_passed_on_as_ids() -> None:
    """An engine never sees an index: it would count devices in another order."""
    assert by_device_id(table("1"), DEVICES).devices == ("GPU-b",)
    assert by_device_id(table(), DEVICES).devices == ()


def test_entries_that_name_nothing_are_found() -> None:
    """A device that is not there is named, not ignored."""
    assert unknown_in_mask(table("GPU-a", "GPU-x", "7"), DEVICES) == ["GPU-x", "7"]
