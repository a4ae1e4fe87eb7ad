"""Which devices a pool uses. ORCH-3011, ORCH-3052."""

import pytest
from pydantic import ValidationError

from pool_managerd.config.schema import PoolTable
from pool_managerd.core.device import Device, DeviceKind
from pool_managerd.snapshots import by_device_id, masked, split_weights

DEVICES = tuple(Device(f"GPU-{name}", DeviceKind.GPU, index=i) for i, name in enumerate("abc"))


def table(*mask: str, split: tuple[int, ...] = ()) -> PoolTable:
    """A pool with a mask, and weights for it."""
    return PoolTable.model_validate(
        {"pool_id": "p", "devices": mask, "tensor_split": split, "engine": {"kind": "mock"}}
    )


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
    assert by_device_id(table(), DEVICES).devices == ("GPU-a", "GPU-b", "GPU-c")


def test_weights_of_a_split_stay_with_their_devices() -> None:
    """ORCH-3052: whatever the order of the mask, and whether it names ids or indexes."""
    stated = table("2", "GPU-a", split=(3, 1))

    by_id = by_device_id(stated, DEVICES)

    assert (by_id.devices, by_id.tensor_split) == (("GPU-a", "GPU-c"), (1, 3))
    assert split_weights(by_id, masked(by_id, DEVICES)) == {"GPU-a": 1, "GPU-c": 3}
    assert split_weights(table("GPU-b"), masked(table("GPU-b"), DEVICES)) == {}


@pytest.mark.parametrize(
    ("split", "said"), [((1,), "1 weights for 2 devices"), ((0, 0), "be 0 on")]
)
def test_a_split_that_fits_no_devices_is_refused(split: tuple[int, ...], said: str) -> None:
    """One weight for each named device, and not zero on all of them."""
    with pytest.raises(ValidationError, match=said):
        table("GPU-a", "GPU-b", split=split)
