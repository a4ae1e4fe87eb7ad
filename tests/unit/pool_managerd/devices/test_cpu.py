"""The processor as a device, where the system does not always tell of its memory. LO-203."""

import asyncio

import psutil
import pytest

from pool_managerd.devices.cpu import CpuDevices


async def test_readings_go_on_after_some_that_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container /proc may come from a program that is restarted."""
    real, broken, again = psutil.virtual_memory, 0, asyncio.Event()

    def virtual_memory() -> object:
        nonlocal broken
        if broken < 3:
            broken += 1
            raise OSError("transport endpoint is not connected")
        again.set()
        return real()

    devices = CpuDevices(interval_ms=1)
    await devices.start(lambda _device_id, _sentence: None, lambda: None)
    first = devices.read_at_ms()

    monkeypatch.setattr(psutil, "virtual_memory", virtual_memory)
    async with asyncio.timeout(20):
        await again.wait()
    await devices.stop()

    (cpu,) = devices.devices()
    assert broken == 3
    assert devices.read_at_ms() > first
    assert cpu.memory_total_bytes == real().total
