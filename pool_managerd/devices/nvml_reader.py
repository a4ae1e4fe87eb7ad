"""Reads the GPUs of a host through NVML. ORCH-1103, ORCH-3011.

Memory and utilisation are the fast fields; what costs more, or hardly changes, is only read in a
thorough reading. Fan speed and process lists are never read: they cost a hundred times as much.
A GPU that is cut into MIG slices is shown as its slices, with what the GPU alone can tell (clocks,
temperature, power, ECC) on each of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pynvml

from pool_managerd.core import nvml_codes as codes
from pool_managerd.core.device import Device, DeviceHealth, DeviceKind
from pool_managerd.core.device_book import Problem, Reading
from pool_managerd.core.plausible import capability_text, plausible, possible
from pool_managerd.devices.host_memory import host_memory
from pool_managerd.devices.nvml_calls import NvmlCalls, NvmlError, text_or_none
from pool_managerd.telemetry import log

INTEGRATED = ("GB10", "Thor", "Orin", "Xavier", "Tegra")
"""Names of devices that have no memory of their own but share the host's.

Only for these does the host's available memory stand in where NVML reports none.
"""

FAILURES_MAX = 3
"""So many readings in a row in which memory could not be read, of a device where it could before.

Then it counts as lost: some drivers answer UNKNOWN rather than GPU_IS_LOST.
"""


@dataclass(slots=True)
class _Part:
    """What is shown: a GPU or a slice of one. `facts` never change."""

    handle: Any
    facts: Device
    had_memory: bool = False
    failures: int = 0


@dataclass(slots=True)
class _Gpu:
    """A GPU, the parts it is shown as (itself, or its slices) and what is read rarely."""

    handle: Any
    facts: Device
    parts: list[_Part] = field(default_factory=list)
    slow: dict[str, Any] = field(default_factory=dict)
    recovery_action: int | None = None
    newly_cut: bool = False


class NvmlReader:
    """Opens NVML, reads devices and waits for XID events. One thread uses it."""

    def __init__(self) -> None:
        self._calls = NvmlCalls()
        self._gpus: list[_Gpu] = []
        self._events: Any = None

    def open(self) -> None:
        """Opens NVML and looks for devices.

        Raises:
            NvmlError: saying what to do, also when there is no GPU.
        """
        self._calls.open()
        self._gpus = list(self._enumerate())
        if not self._gpus:
            problem = self._why_none()
            self._calls.close()
            raise NvmlError(problem)
        self._register_events()

    def close(self) -> None:
        """Closes NVML. Idempotent."""
        if self._events is not None:
            self._calls.ask("", "nvmlEventSetFree", self._events)
        self._gpus, self._events = [], None
        self._calls.close()

    def driver_problem(self) -> str | None:
        """Why the driver as a whole cannot be read any more, as of the last reading; else None."""
        for code in self._calls.failed.values():
            if code in codes.DRIVER_GONE:
                return codes.open_problem(code, "")
        return None

    def read(self, *, thorough: bool) -> list[Reading]:
        """Reads all devices, the slow fields too if `thorough`."""
        self._calls.begin_reading()
        readings: list[Reading] = []
        for gpu in self._gpus:
            if thorough:
                gpu.slow, gpu.recovery_action = self._slow(gpu), self._recovery_action(gpu)
                gpu.newly_cut = gpu.facts.mig_enabled is False and self._cut_now(gpu)
            readings.extend(self._read(gpu, part, thorough) for part in gpu.parts)
        return readings

    def wait_event(self, timeout_ms: int) -> tuple[str, int] | None:
        """Waits for an XID and returns the GPU's id and the number; None after the timeout.

        Returns sooner when NVML cannot wait: the caller passes the rest of the time.
        """
        if self._events is None:
            return None
        event = self._calls.ask("", "nvmlEventSetWait_v2", self._events, timeout_ms)
        if event is None:
            return None
        device_id = text_or_none(self._calls.ask("", "nvmlDeviceGetUUID", event.device))
        xid = int(event.eventData)
        return None if device_id is None or not possible("last_xid", xid) else (device_id, xid)

    def _why_none(self) -> str:
        codes_seen = list(self._calls.failed.values())
        return codes.open_problem(codes_seen[-1], "") if codes_seen else codes.NO_GPU

    def _enumerate(self) -> Iterable[_Gpu]:
        ask = self._calls.ask
        driver = text_or_none(ask("", "nvmlSystemGetDriverVersion"))
        cuda = ask("", "nvmlSystemGetCudaDriverVersion_v2")
        cuda_text = f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None
        for index in range(ask("", "nvmlDeviceGetCount") or 0):
            handle = ask("", "nvmlDeviceGetHandleByIndex", index)
            device_id = text_or_none(ask("", "nvmlDeviceGetUUID", handle)) if handle else None
            if device_id is None:
                reason = codes.open_problem(self._calls.failed.get("", codes.UNKNOWN), "")
                log.warning(
                    "gpu_skipped", human=f"GPU {index} is left out.", index=index, reason=reason
                )
                continue
            facts = replace(
                self._identity(handle, device_id),
                index=index,
                driver_version=driver,
                cuda_driver_version=cuda_text,
            )
            gpu = _Gpu(handle, facts)
            gpu.parts = self._slices(gpu) or [_Part(handle, facts)]
            yield gpu

    def _identity(self, handle: Any, device_id: str) -> Device:
        ask = self._calls.ask
        capability = ask(device_id, "nvmlDeviceGetCudaComputeCapability", handle)
        return Device(
            device_id=device_id,
            kind=DeviceKind.GPU,
            name=text_or_none(ask(device_id, "nvmlDeviceGetName", handle)),
            compute_capability=capability_text(capability) if capability else None,
            max_sm_clock_mhz=ask(
                device_id, "nvmlDeviceGetMaxClockInfo", handle, pynvml.NVML_CLOCK_SM
            ),
            mig_enabled=self._mig_enabled(handle, device_id),
        )

    def _cut_now(self, gpu: _Gpu) -> bool:
        return self._mig_enabled(gpu.handle, gpu.facts.device_id) is True

    def _mig_enabled(self, handle: Any, device_id: str) -> bool | None:
        mode = self._calls.ask(device_id, "nvmlDeviceGetMigMode", handle)
        return bool(mode[0]) if mode else None

    def _slices(self, gpu: _Gpu) -> list[_Part]:
        if not gpu.facts.mig_enabled:
            return []
        ask, found = self._calls.ask, []
        gpu_id = gpu.facts.device_id
        for place in range(ask(gpu_id, "nvmlDeviceGetMaxMigDeviceCount", gpu.handle) or 0):
            # An index without a slice is an error that says nothing about the GPU.
            handle = ask("", "nvmlDeviceGetMigDeviceHandleByIndex", gpu.handle, place)
            slice_id = text_or_none(ask("", "nvmlDeviceGetUUID", handle)) if handle else None
            if slice_id is None:
                continue
            name = text_or_none(ask(slice_id, "nvmlDeviceGetName", handle))
            facts = replace(
                gpu.facts,
                device_id=slice_id,
                kind=DeviceKind.MIG,
                name=name or gpu.facts.name,
                parent_device_id=gpu_id,
                slice_index=place,
            )
            found.append(_Part(handle, facts))
        return found

    def _register_events(self) -> None:
        self._events = self._calls.ask("", "nvmlEventSetCreate")
        if self._events is None:
            return
        wanted = pynvml.nvmlEventTypeXidCriticalError
        for gpu in self._gpus:
            self._calls.ask(
                gpu.facts.device_id, "nvmlDeviceRegisterEvents", gpu.handle, wanted, self._events
            )

    def _read(self, gpu: _Gpu, part: _Part, thorough: bool) -> Reading:
        device_id = part.facts.device_id
        told = {**gpu.slow, **self._memory_fields(part)}
        rates = self._calls.ask(device_id, "nvmlDeviceGetUtilizationRates", part.handle)
        if rates is not None:
            told["utilization_ratio"] = rates.gpu / 100
        facts = plausible(replace(part.facts, **told))
        if facts.memory_total_bytes is None and _integrated(facts):
            facts = replace(facts, **_host_memory())
        return Reading(facts, self._problem(gpu, part), thorough)

    def _memory_fields(self, part: _Part) -> dict[str, Any]:
        memory = self._memory(part)
        if memory is None:
            part.failures += part.had_memory
            return {}
        part.had_memory, part.failures = True, 0
        return {
            "memory_total_bytes": memory.total,
            "memory_free_bytes": memory.free,
            "memory_used_bytes": memory.used,
            "memory_reserved_bytes": getattr(memory, "reserved", None),
            "memory_is_host_memory": _integrated(part.facts) or None,
        }

    def _memory(self, part: _Part) -> Any:
        ask, device_id = self._calls.ask, part.facts.device_id
        version = getattr(pynvml, "nvmlMemory_v2", None)
        if version is not None:
            memory = ask(device_id, "nvmlDeviceGetMemoryInfo", part.handle, version=version)
            if memory is not None:
                return memory
        # An error that is no lack of support would only come again.
        if device_id in self._calls.failed:
            return None
        return ask(device_id, "nvmlDeviceGetMemoryInfo", part.handle)

    def _problem(self, gpu: _Gpu, part: _Part) -> Problem | None:
        for device_id in (part.facts.device_id, gpu.facts.device_id):
            code = self._calls.failed.get(device_id)
            is_slice = device_id == part.facts.device_id and part.facts.kind is DeviceKind.MIG
            problem = None if code is None else codes.device_problem(code, is_slice)
            if problem is not None:
                return problem
        if gpu.newly_cut:
            return DeviceHealth.LOST, codes.CUT
        recovery = codes.recovery_problem(gpu.recovery_action)
        if recovery is not None:
            return DeviceHealth.RESET_REQUIRED, recovery
        if part.failures >= FAILURES_MAX:
            return DeviceHealth.LOST, codes.LOST
        return None

    def _slow(self, gpu: _Gpu) -> dict[str, Any]:
        """Fields of `Device` that are the GPU's own, also where it is shown as slices."""
        return {
            "temperature_celsius": self._ask(
                gpu, "nvmlDeviceGetTemperatureV", pynvml.NVML_TEMPERATURE_GPU
            )
            or self._ask(gpu, "nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
            "power_milliwatts": self._ask(gpu, "nvmlDeviceGetPowerUsage"),
            "sm_clock_mhz": self._ask(gpu, "nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM),
            "memory_clock_mhz": self._ask(gpu, "nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_MEM),
            "clock_event_reasons": self._reasons(gpu),
            "ecc_uncorrected_total": self._ecc(gpu, pynvml.NVML_VOLATILE_ECC),
            "ecc_uncorrected_aggregate": self._ecc(gpu, pynvml.NVML_AGGREGATE_ECC),
        }

    def _ask(self, gpu: _Gpu, name: str, *args: Any) -> Any:
        return self._calls.ask(gpu.facts.device_id, name, gpu.handle, *args)

    def _reasons(self, gpu: _Gpu) -> Any:
        # The present name of what older drivers call throttle reasons. 0 is an answer.
        mask = self._ask(gpu, "nvmlDeviceGetCurrentClocksEventReasons")
        if mask is None:
            return self._ask(gpu, "nvmlDeviceGetCurrentClocksThrottleReasons")
        return mask

    def _ecc(self, gpu: _Gpu, counter: int) -> Any:
        kind = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
        # Both counters are one function of the driver: one that is not supported ends the other.
        return self._ask(gpu, "nvmlDeviceGetTotalEccErrors", kind, counter)

    def _recovery_action(self, gpu: _Gpu) -> int | None:
        field_id = getattr(pynvml, "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION", None)
        if field_id is None:
            return None
        values = self._ask(gpu, "nvmlDeviceGetFieldValues", [field_id])
        if values is None or values[0].nvmlReturn != pynvml.NVML_SUCCESS:
            return None
        return int(values[0].value.uiVal)


def _integrated(facts: Device) -> bool:
    return any(word in (facts.name or "") for word in INTEGRATED)


def _host_memory() -> dict[str, Any]:
    # Available, not free: what the page cache holds can be had.
    host = host_memory()
    return {
        "memory_total_bytes": host.total,
        "memory_free_bytes": host.free,
        "memory_used_bytes": host.total - host.free,
        "memory_is_host_memory": True,
    }
