"""NVIDIA GPUs through NVML (`pynvml`, distributed as nvidia-ml-py).

ORCH-3038, ORCH-3040, ORCH-1103.

One thread makes every NVML call: they serialise on a driver lock and may take milliseconds. Each
query gives a value or nothing; what a device does not support is absent from its facts. Memory and
utilisation are read each second, what costs more each ten seconds. Between reads the thread waits
for XID events.

Source: /usr/include/nvml.h for the constants, NVIDIA's XID catalogue for `CRITICAL_XIDS`.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import psutil
import pynvml

from pool_managerd.core.device import Device, DeviceKind
from pool_managerd.devices.port import OnFault
from pool_managerd.errors import DevicesUnavailableError
from pool_managerd.telemetry import log

FAST_INTERVAL_MS = 1_000
SLOW_EVERY = 10
"""Slow fields are read with every tenth fast reading."""
EVENT_SLICE_MS = 100
"""Longest single wait for events, so that stopping is prompt."""
START_TIMEOUT_MS = 30_000

CRITICAL_XIDS = frozenset({48, 62, 64, 74, 79, 95, 119, 120})
"""Double-bit ECC, halted controller, row remapping, NVLink, off the bus, uncontained ECC, GSP."""

_INTEGRATED = ("GB10", "Thor", "Orin")
"""Devices that share the host's memory.

Where NVML reports none, the host's available memory counts.
"""

_INSTALL_HINT = (
    "install the NVIDIA driver, which brings libnvidia-ml.so.1, "
    'or set devices = "cpu" to run without a GPU'
)


@dataclass(frozen=True, slots=True)
class _Gpu:
    """A handle and what never changes. `parent` is the GPU of a MIG slice."""

    handle: Any
    facts: Device
    parent: Any = None


class NvmlDevices:
    """All GPUs of the host, MIG slices in place of a GPU that is cut into some."""

    def __init__(
        self, binding: ModuleType | Any = pynvml, interval_ms: int = FAST_INTERVAL_MS
    ) -> None:
        if interval_ms <= 0:
            raise ValueError("interval_ms is positive")
        self._nvml: Any = binding
        self._interval_ms = interval_ms
        self._devices: tuple[Device, ...] = ()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    async def start(self, on_fault: OnFault) -> None:
        """Initialises NVML, reads every device once and starts the thread.

        Raises:
            DevicesUnavailableError: naming what to install when library, driver or GPU is missing.
        """
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def post(work: Callable[[], None]) -> None:
            # The loop may be closed already when the last reading ends.
            if not self._stopping.is_set():
                loop.call_soon_threadsafe(work)

        reader = _Reader(self._nvml, self._interval_ms, self._stopping)
        self._thread = threading.Thread(
            target=reader.run,
            args=(post, _Callbacks(ready, self._publish, on_fault)),
            name="nvml",
            daemon=True,
        )
        self._thread.start()
        try:
            async with asyncio.timeout(START_TIMEOUT_MS / 1000):
                await ready
        except TimeoutError:
            raise DevicesUnavailableError(
                f"NVML did not answer within {START_TIMEOUT_MS} ms: look at the driver's log"
            ) from None

    def devices(self) -> tuple[Device, ...]:
        """The latest facts."""
        return self._devices

    async def stop(self) -> None:
        """Ends the thread."""
        self._stopping.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.to_thread(thread.join, 5.0)

    def _publish(self, devices: tuple[Device, ...]) -> None:
        self._devices = devices


@dataclass(frozen=True, slots=True)
class _Callbacks:
    ready: asyncio.Future[None]
    publish: Callable[[tuple[Device, ...]], None]
    on_fault: OnFault


class _Reader:
    """Everything that runs in the thread."""

    def __init__(self, nvml: Any, interval_ms: int, stopping: threading.Event) -> None:
        self._nvml = nvml
        self._interval_ms = interval_ms
        self._stopping = stopping
        self._missing: set[str] = set()
        self._last_xid: dict[str, int] = {}
        self._lost: set[str] = set()

    def run(self, post: Callable[[Callable[[], None]], None], callbacks: _Callbacks) -> None:
        """Reads until told to stop."""
        try:
            gpus = self._open()
            facts = tuple(self._fast(gpu) for gpu in gpus)
        except Exception as error:  # noqa: BLE001 - whatever broke, start() says so
            unavailable = DevicesUnavailableError(f"NVML cannot be used ({error}): {_INSTALL_HINT}")
            post(lambda: _fail(callbacks.ready, unavailable))
            return
        # Published first: the waiter resumes later, and must not overwrite a younger reading.
        post(partial(callbacks.publish, facts))
        post(partial(_succeed, callbacks.ready))
        self._loop(gpus, post, callbacks)

    def _open(self) -> list[_Gpu]:
        self._nvml.nvmlInit()
        gpus = [self._with_slow(gpu) for gpu in self._enumerate()]
        if not gpus:
            raise DevicesUnavailableError("it sees no GPU")
        return gpus

    def _loop(
        self,
        gpus: list[_Gpu],
        post: Callable[[Callable[[], None]], None],
        callbacks: _Callbacks,
    ) -> None:
        events = self._register_events(gpus)
        count = 0
        while not self._stopping.is_set():
            for device_id, sentence in self._wait(events, gpus):
                post(partial(callbacks.on_fault, device_id, sentence))
            count += 1
            if count % SLOW_EVERY == 0:
                gpus = [self._with_slow(gpu) for gpu in gpus]
            post(partial(callbacks.publish, tuple(self._fast(gpu) for gpu in gpus)))
        self._query("nvmlShutdown")

    def _query(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """The value, or None when this device, driver or binding does not have it."""
        function = getattr(self._nvml, name, None)
        if function is None:
            return None
        try:
            return function(*args, **kwargs)
        except self._nvml.NVMLError as error:
            if name not in self._missing:
                self._missing.add(name)
                log.debug("nvml_query_unavailable", query=name, error=str(error))
            return None
        except Exception as error:  # noqa: BLE001 - one odd field must not end the readings
            # Some integrated devices report success with bytes that are not what was asked for.
            log.debug("nvml_query_malformed", query=name, error=type(error).__name__)
            return None

    def _enumerate(self) -> list[_Gpu]:
        driver = _text(self._query("nvmlSystemGetDriverVersion"))
        gpus: list[_Gpu] = []
        for index in range(self._query("nvmlDeviceGetCount") or 0):
            handle = self._query("nvmlDeviceGetHandleByIndex", index)
            device_id = _text(self._query("nvmlDeviceGetUUID", handle)) if handle else None
            if device_id is None:
                log.warning("gpu_skipped", index=index, reason="it has no handle or no UUID")
                continue
            facts = self._identity(handle, device_id, index, driver)
            slices = self._slices(handle, facts) if facts.mig_enabled else []
            gpus.extend(slices or [_Gpu(handle, facts)])
        return gpus

    def _identity(self, handle: Any, device_id: str, index: int, driver: str | None) -> Device:
        capability = self._query("nvmlDeviceGetCudaComputeCapability", handle)
        mig = self._query("nvmlDeviceGetMigMode", handle)
        return Device(
            device_id=device_id,
            kind=DeviceKind.GPU,
            name=_text(self._query("nvmlDeviceGetName", handle)),
            index=index,
            compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
            driver_version=driver,
            mig_enabled=bool(mig[0]) if mig else None,
        )

    def _slices(self, parent: Any, facts: Device) -> list[_Gpu]:
        found: list[_Gpu] = []
        for index in range(self._query("nvmlDeviceGetMaxMigDeviceCount", parent) or 0):
            handle = self._query("nvmlDeviceGetMigDeviceHandleByIndex", parent, index)
            device_id = _text(self._query("nvmlDeviceGetUUID", handle)) if handle else None
            if device_id is not None:
                slice_facts = replace(facts, device_id=device_id, kind=DeviceKind.MIG, index=None)
                found.append(_Gpu(handle, slice_facts, parent))
        return found

    def _fast(self, gpu: _Gpu) -> Device:
        facts = replace(gpu.facts, last_xid=self._last_xid.get(gpu.facts.device_id))
        memory = self._memory(gpu.handle)
        if memory is not None:
            facts = replace(
                facts,
                memory_total_bytes=memory.total,
                memory_free_bytes=memory.free,
                memory_used_bytes=memory.used,
                memory_reserved_bytes=getattr(memory, "reserved", None),
            )
        elif any(word in (facts.name or "") for word in _INTEGRATED):
            host = psutil.virtual_memory()
            facts = replace(facts, memory_total_bytes=host.total, memory_free_bytes=host.available)
        rates = self._query("nvmlDeviceGetUtilizationRates", gpu.handle)
        return replace(facts, utilization_ratio=rates.gpu / 100 if rates else None)

    def _memory(self, handle: Any) -> Any:
        version = getattr(self._nvml, "nvmlMemory_v2", None)
        if version is not None:
            memory = self._query("nvmlDeviceGetMemoryInfo", handle, version=version)
            if memory is not None:
                return memory
        return self._query("nvmlDeviceGetMemoryInfo", handle)

    def _with_slow(self, gpu: _Gpu) -> _Gpu:
        nvml, handle = self._nvml, gpu.parent or gpu.handle
        # "Event reasons" is the present name of what older bindings call "throttle reasons".
        reasons = self._query("nvmlDeviceGetCurrentClocksEventReasons", handle)
        if reasons is None:
            reasons = self._query("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        return replace(
            gpu,
            facts=replace(
                gpu.facts,
                temperature_celsius=self._query(
                    "nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU
                ),
                power_milliwatts=self._query("nvmlDeviceGetPowerUsage", handle),
                sm_clock_mhz=self._query("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM),
                memory_clock_mhz=self._query("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_MEM),
                clock_event_reasons=reasons,
                ecc_uncorrected_total=self._query(
                    "nvmlDeviceGetTotalEccErrors",
                    handle,
                    nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                    nvml.NVML_VOLATILE_ECC,
                ),
            ),
        )

    def _register_events(self, gpus: list[_Gpu]) -> Any:
        events = self._query("nvmlEventSetCreate")
        if events is None:
            return None
        wanted = self._nvml.nvmlEventTypeXidCriticalError
        for gpu in gpus:
            self._query("nvmlDeviceRegisterEvents", gpu.parent or gpu.handle, wanted, events)
        return events

    def _wait(self, events: Any, gpus: list[_Gpu]) -> list[tuple[str, str]]:
        """Passes one interval and returns the faults (device id, sentence) that came in it."""
        faults: list[tuple[str, str]] = self._lost_devices(gpus)
        until_s = time.monotonic() + self._interval_ms / 1000
        while not faults and not self._stopping.is_set():
            left_ms = int((until_s - time.monotonic()) * 1000)
            if left_ms <= 0:
                break
            faults.extend(self._wait_slice(events, gpus, min(left_ms, EVENT_SLICE_MS)))
        return faults

    def _wait_slice(self, events: Any, gpus: list[_Gpu], slice_ms: int) -> list[tuple[str, str]]:
        if events is None:
            self._stopping.wait(slice_ms / 1000)
            return []
        began_s = time.monotonic()
        event = self._query("nvmlEventSetWait_v2", events, slice_ms)
        if event is not None:
            return self._on_xid(event, gpus)
        # A timeout has passed the time; an error returned at once, and must not make the thread
        # spin.
        self._stopping.wait(max(0.0, slice_ms / 1000 - (time.monotonic() - began_s)))
        return []

    def _on_xid(self, event: Any, gpus: list[_Gpu]) -> list[tuple[str, str]]:
        xid = int(event.eventData)
        device_id = _text(self._query("nvmlDeviceGetUUID", event.device))
        faults: list[tuple[str, str]] = []
        for gpu in gpus:
            owner = _text(self._query("nvmlDeviceGetUUID", gpu.parent)) if gpu.parent else None
            if device_id in (gpu.facts.device_id, owner):
                self._last_xid[gpu.facts.device_id] = xid
                if xid in CRITICAL_XIDS:
                    faults.append((gpu.facts.device_id, f"the GPU reported XID {xid}"))
        return faults

    def _lost_devices(self, gpus: list[_Gpu]) -> list[tuple[str, str]]:
        faults: list[tuple[str, str]] = []
        for gpu in gpus:
            device_id = gpu.facts.device_id
            try:
                self._nvml.nvmlDeviceGetUUID(gpu.handle)
            except self._nvml.NVMLError as error:
                code = getattr(error, "value", None)
                lost = code in (self._nvml.NVML_ERROR_GPU_IS_LOST, _RESET_REQUIRED)
                if lost and device_id not in self._lost:
                    self._lost.add(device_id)
                    faults.append((device_id, f"the GPU is lost or needs a reset ({error})"))
            else:
                self._lost.discard(device_id)
        return faults


_RESET_REQUIRED = 16


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) and value else None


def _fail(ready: asyncio.Future[None], error: DevicesUnavailableError) -> None:
    if not ready.done():
        ready.set_exception(error)


def _succeed(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
