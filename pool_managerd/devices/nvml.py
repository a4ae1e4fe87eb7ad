"""NVIDIA GPUs through NVML (`pynvml`, distributed as nvidia-ml-py).

ORCH-3038, ORCH-3040, ORCH-1103.

One thread makes every NVML call: they serialise on a driver lock and may take milliseconds. Memory
and utilisation are read each second, what costs more each five seconds (`nvml_reader`). Between
readings the thread waits for XID events. docs/devices.md tells what becomes of each failure.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable

from pool_managerd.core.device import Device, DeviceHealth
from pool_managerd.devices.nvml_calls import NvmlError
from pool_managerd.devices.nvml_watch import Callbacks, Watch
from pool_managerd.devices.port import OnChange, OnFault
from pool_managerd.errors import DevicesUnavailableError
from pool_managerd.telemetry import Metrics

INTERVAL_MS = 1_000
STALE_INTERVALS = 10
STALE_MIN_MS = 2_000
"""Facts older than both are no longer told: the driver hangs."""
START_TIMEOUT_MS = 30_000
STOP_TIMEOUT_S = 5.0


class NvmlDevices:
    """All GPUs of the host, MIG slices in place of a GPU that is cut into some.

    Those that are `expected`, by their ids, are told as lost while they are not there.
    """

    def __init__(
        self,
        interval_ms: int = INTERVAL_MS,
        metrics: Metrics | None = None,
        expected: Iterable[str] = (),
    ) -> None:
        if interval_ms <= 0:
            raise ValueError("interval_ms is positive")
        self._interval_ms = interval_ms
        self._metrics = metrics or Metrics()
        self._expected = tuple(expected)
        self._devices: tuple[Device, ...] = ()
        self._published_s = 0.0
        self._read_at_s = 0.0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    async def start(self, on_fault: OnFault, on_change: OnChange) -> None:
        """Opens NVML, reads every device once and starts the thread.

        Raises:
            DevicesUnavailableError: naming what to install or to do.
        """
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def started(error: NvmlError | None) -> None:
            if ready.done():
                return
            if error is None:
                ready.set_result(None)
            else:
                ready.set_exception(DevicesUnavailableError(str(error)))

        def post(work: Callable[[], None]) -> None:
            # The loop may be closed already when the last reading ends.
            if not self._stopping.is_set():
                loop.call_soon_threadsafe(work)

        def publish(devices: tuple[Device, ...], read_at_s: float) -> None:
            changed = devices != self._devices
            self._publish(devices, read_at_s)
            if changed:
                on_change()

        watch = Watch(
            self._interval_ms, self._stopping, metrics=self._metrics, expected=self._expected
        )
        callbacks = Callbacks(started, publish, on_fault)
        self._thread = threading.Thread(
            target=watch.run, args=(post, callbacks), name="nvml", daemon=True
        )
        self._thread.start()
        try:
            async with asyncio.timeout(START_TIMEOUT_MS / 1000):
                await ready
        except TimeoutError:
            raise DevicesUnavailableError(
                f"NVML did not answer within {START_TIMEOUT_MS} ms: look at the kernel log (dmesg)"
            ) from None

    def devices(self) -> tuple[Device, ...]:
        """The latest facts; when the driver has hung for a while, only what cannot change."""
        silent_s = time.monotonic() - self._published_s
        if silent_s * 1000 < max(self._interval_ms * STALE_INTERVALS, STALE_MIN_MS):
            return self._devices
        detail = f"the driver has not answered for {silent_s:.0f} s: look at the kernel log (dmesg)"
        return tuple(device.unwell(DeviceHealth.NO_ANSWER, detail) for device in self._devices)

    def read_at_ms(self) -> int:
        """When the latest facts were read. See `port.DeviceSource.read_at_ms`."""
        return int(self._read_at_s * 1000)

    async def stop(self) -> None:
        """Ends the thread. One that hangs in the driver is left behind."""
        self._stopping.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.to_thread(thread.join, STOP_TIMEOUT_S)

    def _publish(self, devices: tuple[Device, ...], read_at_s: float) -> None:
        self._devices, self._published_s = devices, time.monotonic()
        self._read_at_s = read_at_s
