"""Device masks: which devices a pool names. ORCH-3011, ORCH-3052.

An entry is a device id (the UUID of a GPU or of a MIG slice), the index of a whole GPU ("1"), or
the place of a slice ("0:2": slice 2 of GPU 0, as nvidia-smi counts). Engines are told ids alone:
CUDA counts devices in an order of its own.
"""

from collections.abc import Sequence

from pool_managerd.core.device import Device, DeviceKind


def names(entry: str, device: Device) -> bool:
    """True when `entry` means `device`."""
    return entry in (device.device_id, _place(device))


def named_ids(entries: Sequence[str]) -> tuple[str, ...]:
    """The entries that are ids of GPUs and slices: they mean the same whatever else is there."""
    return tuple(entry for entry in entries if entry.startswith(("GPU-", "MIG-")))


def selected(entries: Sequence[str], devices: Sequence[Device]) -> tuple[Device, ...]:
    """The devices that `entries` name, in the order of `devices`; all of them for no entries.

    O(devices), and without making texts where all entries are ids: snapshots are made of it.
    """
    if not entries:
        return tuple(devices)
    wanted = set(entries)
    by_id = tuple(device for device in devices if device.device_id in wanted)
    if len(by_id) == len(wanted):
        return by_id
    return tuple(d for d in devices if d.device_id in wanted or _place(d) in wanted)


def mask_problems(entries: Sequence[str], devices: Sequence[Device]) -> list[str]:
    """What is wrong with a mask on a host with these devices, a sentence each."""
    problems = [
        _unknown(entry, devices)
        for entry in entries
        if not any(names(entry, device) for device in devices)
    ]
    mine = selected(entries, devices)
    twice = [d.device_id for d in mine if sum(names(entry, d) for entry in entries) > 1]
    problems.extend(f"{device_id} is named twice" for device_id in twice)
    if len(mine) > 1 and any(device.kind is DeviceKind.MIG for device in mine):
        problems.append(
            "a process can use one MIG slice and nothing beside it: name one of "
            + _listed([device for device in mine if device.kind is DeviceKind.MIG])
        )
    return problems


def _place(device: Device) -> str | None:
    if device.index is None:
        return None
    return f"{device.index}:{device.slice_index}" if _is_slice(device) else str(device.index)


def _is_slice(device: Device) -> bool:
    return device.kind is DeviceKind.MIG


def _unknown(entry: str, devices: Sequence[Device]) -> str:
    slices = [d for d in devices if _is_slice(d) and entry in (d.parent_device_id, str(d.index))]
    if slices:
        return f"GPU {entry} is cut into MIG slices: name one of {_listed(slices)}"
    return f"no device {entry}; this host has: {_listed(devices) or 'none'}"


def _listed(devices: Sequence[Device]) -> str:
    return ", ".join(f"{d.device_id} ({_place(d)})" if _place(d) else d.device_id for d in devices)
