"""The host's processor and memory as one device, for machines without a GPU. Chosen explicitly."""

import asyncio
import contextlib
import platform
import time

import psutil

from pool_managerd.core.device import Device, DeviceKind
from pool_managerd.devices.host_memory import host_memory
from pool_managerd.devices.port import OnChange, OnFault
from pool_managerd.telemetry import log

DEVICE_ID = "cpu"


class CpuDevices:
    """One device named "cpu". Its memory is the host's: free means available without swapping."""

    def __init__(self, interval_ms: int = 1000) -> None:
        if interval_ms <= 0:
            raise ValueError("interval_ms is positive")
        self._interval_ms = interval_ms
        self._devices: tuple[Device, ...] = ()
        self._read_at_ms = 0
        self._task: asyncio.Task[None] | None = None

    async def start(self, on_fault: OnFault, on_change: OnChange) -> None:
        """Reads once and then every second. What changes is not news: no pool depends on it."""
        psutil.cpu_percent(interval=None)
        self._read()
        self._task = asyncio.create_task(self._refresh())

    def devices(self) -> tuple[Device, ...]:
        """The latest facts."""
        return self._devices

    def read_at_ms(self) -> int:
        """When the latest facts were read. See `port.DeviceSource.read_at_ms`."""
        return self._read_at_ms

    async def stop(self) -> None:
        """Stops reading."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _refresh(self) -> None:
        # psutil reads two files of /proc in well under a millisecond: no thread is needed.
        told = False
        while True:
            await asyncio.sleep(self._interval_ms / 1000)
            try:
                self._read()
            except Exception as error:  # noqa: BLE001 - without readings, all stays as it was
                if not told:
                    problem = f"{type(error).__name__}: {error}"
                    human = f"The host's memory could not be read and is tried again: {problem}"
                    log.error("device_reading_failed", error=problem, human=human)
                told = True
            else:
                told = False

    def _read(self) -> None:
        read_at_ms = time.monotonic_ns() // 1_000_000
        self._devices = (_read(),)
        self._read_at_ms = read_at_ms


def _read() -> Device:
    memory = host_memory()
    return Device(
        device_id=DEVICE_ID,
        kind=DeviceKind.CPU,
        name=platform.processor() or platform.machine() or None,
        memory_total_bytes=memory.total,
        memory_free_bytes=memory.free,
        memory_used_bytes=memory.total - memory.free,
        utilization_ratio=psutil.cpu_percent(interval=None) / 100,
    )
