"""What is known of every device of a host, and which of them are unwell. ORCH-3038, ORCH-3040."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pool_managerd.core.device import Device, DeviceHealth, DeviceKind
from pool_managerd.core.nvml_codes import CUT, LOST, SLICE_GONE, absent
from pool_managerd.core.xids import CRITICAL_XIDS, xid_sentence

Problem = tuple[DeviceHealth, str]
"""What is wrong with a device, and a sentence for people."""

News = tuple[str, str]
"""A device id and what is wrong with it; empty: it is well again."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a device. `thorough`: the slow fields too, so that it proves the device well."""

    facts: Device
    problem: Problem | None = None
    thorough: bool = False


class DeviceBook:
    """Every device ever seen, with its latest facts and its health.

    A device that reported a critical XID is well again once a thorough reading finds nothing wrong,
    `quiet_readings` or more after the last of them; any other after the next good reading. One that
    is no longer read is lost, and so is one that is `expected`, by its id, and was never read.
    """

    def __init__(self, expected: Iterable[str] = (), quiet_readings: int = 1) -> None:
        self._known = {id_: Device(id_, _kind_of(id_)) for id_ in expected}
        self._awaited = set(self._known)
        self._unwell: dict[str, Problem] = {}
        self._last_xid: dict[str, int] = {}
        self._quiet_readings = quiet_readings
        self._readings = 0
        self._critical_at: dict[str, int] = {}
        self._news: list[News] = []

    @property
    def all_well(self) -> bool:
        """True when no device is unwell."""
        return not self._unwell

    @property
    def has_news(self) -> bool:
        """True when `take_news` would give some."""
        return bool(self._news)

    @property
    def none_readable(self) -> bool:
        """True when every device has left or its driver has: nothing is lost by closing NVML."""
        gone = (DeviceHealth.LOST, DeviceHealth.DRIVER_UNAVAILABLE, DeviceHealth.RESET_REQUIRED)
        return all(id_ in self._unwell and self._unwell[id_][0] in gone for id_ in self._known)

    @property
    def needs_opening(self) -> bool:
        """True when a device is gone that only comes back when NVML is opened anew."""
        return any(health is not DeviceHealth.CRITICAL_ERROR for health, _ in self._unwell.values())

    def take(self, readings: Iterable[Reading]) -> None:
        """Takes a reading of all devices over. O(devices)."""
        self._readings += 1
        seen: set[str] = set()
        cut: set[str] = set()
        for reading in readings:
            device_id = reading.facts.device_id
            seen.add(device_id)
            if reading.facts.parent_device_id is not None:
                cut.add(reading.facts.parent_device_id)
            if reading.problem is not None:
                if device_id not in self._known or device_id in self._awaited:
                    self._known[device_id] = reading.facts
                self._set(device_id, reading.problem)
                continue
            self._known[device_id] = reading.facts
            if self._health(device_id) is not DeviceHealth.CRITICAL_ERROR or self._proves(reading):
                self._clear(device_id)
        self._awaited -= seen
        for device_id in sorted(self._known.keys() - seen):
            # One that needs a reset may refuse its handle, which makes it no less there.
            if self._health(device_id) is not DeviceHealth.RESET_REQUIRED:
                self._set(device_id, (DeviceHealth.LOST, self._why_gone(device_id, seen, cut)))

    def _proves(self, reading: Reading) -> bool:
        """Whether a good reading proves a device well that reported a critical XID."""
        quiet = self._readings - self._critical_at.get(reading.facts.device_id, 0)
        return reading.thorough and quiet >= self._quiet_readings

    def _why_gone(self, device_id: str, seen: set[str], cut: set[str]) -> str:
        """Of a device that is not read any more; `cut` are GPUs whose slices were read."""
        if device_id in cut:
            return CUT
        if device_id in self._awaited:
            return absent(device_id, seen)
        known = self._known[device_id]
        its_gpu_is_there = known.parent_device_id in seen | cut
        return SLICE_GONE if known.kind is DeviceKind.MIG and its_gpu_is_there else LOST

    def xid(self, device_id: str, xid: int) -> None:
        """Notes an XID of a GPU, for its slices too; a critical one makes them unwell."""
        for known in list(self._known.values()):
            if device_id not in (known.device_id, known.parent_device_id):
                continue
            self._last_xid[known.device_id] = xid
            if xid not in CRITICAL_XIDS:
                continue
            self._critical_at[known.device_id] = self._readings
            # The first of a storm is told: what follows is no news.
            if self._health(known.device_id) is not DeviceHealth.CRITICAL_ERROR:
                self._set(known.device_id, (DeviceHealth.CRITICAL_ERROR, xid_sentence(xid)))

    def driver_gone(self, sentence: str) -> None:
        """No device can be read any more."""
        for device_id in self._known:
            self._set(device_id, (DeviceHealth.DRIVER_UNAVAILABLE, sentence))

    def devices(self) -> tuple[Device, ...]:
        """The latest facts by index and slice; of an unwell device only what is still true."""
        ordered = sorted(self._known.values(), key=_place)
        return tuple(self._shown(device) for device in ordered)

    def take_news(self) -> list[News]:
        """What changed in the health of devices since the last call, in order."""
        news, self._news = self._news, []
        return news

    def _health(self, device_id: str) -> DeviceHealth:
        return self._unwell.get(device_id, (DeviceHealth.OK, ""))[0]

    def _shown(self, device: Device) -> Device:
        last_xid = self._last_xid.get(device.device_id)
        shown = device if last_xid is None else replace(device, last_xid=last_xid)
        problem = self._unwell.get(device.device_id)
        return shown if problem is None else shown.unwell(*problem)

    def _set(self, device_id: str, problem: Problem) -> None:
        if self._unwell.get(device_id) != problem:
            self._unwell[device_id] = problem
            self._news.append((device_id, problem[1]))

    def _clear(self, device_id: str) -> None:
        if self._unwell.pop(device_id, None) is not None:
            self._news.append((device_id, ""))


def _kind_of(device_id: str) -> DeviceKind:
    return DeviceKind.MIG if device_id.startswith("MIG-") else DeviceKind.GPU


def _place(device: Device) -> tuple[int, int, str]:
    last = 1 << 30
    index = last if device.index is None else device.index
    return index, device.slice_index or 0, device.device_id
