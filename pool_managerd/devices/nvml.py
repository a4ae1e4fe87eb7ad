"""NVIDIA GPUs through NVML (`pynvml`, distributed as nvidia-ml-py).

ORCH-3038, ORCH-3040, ORCH-1103.

One thread makes every NVML call: they serialise on a driver lock and may take milliseconds. Memory
and utilisation are read each second, what costs more each five seconds (`nvml_reader`). Between
readings the thread waits for XID events. docs/devices.md tells what becomes of each failure.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pool_managerd.core.backoff import Backoff
from pool_managerd.core.clocks import SLOWDOWN, reason_names
from pool_managerd.core.device import Device, DeviceHealth
from pool_managerd.core.device_book import DeviceBook
from pool_managerd.core.xids import CRITICAL_XIDS
from pool_managerd.devices.nvml_calls import NvmlError
from pool_managerd.devices.nvml_reader import NvmlReader
from pool_managerd.devices.port import OnChange, OnFault
from pool_managerd.errors import DevicesUnavailableError
from pool_managerd.telemetry import Metrics, log

INTERVAL_MS = 1_000
THOROUGH_EVERY = 5
"""The slow fields are read with every fifth reading."""
EVENT_SLICE_MS = 200
"""Longest single wait for events, so that stopping is prompt."""
REOPEN_FIRST_INTERVALS = 2
REOPEN_LAST_INTERVALS = 60
"""Wait before NVML is opened anew for a device that is gone: doubles from the first to the last."""
STALE_INTERVALS = 10
STALE_MIN_MS = 2_000
"""Facts older than both are no longer told: the driver hangs."""
START_TIMEOUT_MS = 30_000
STOP_TIMEOUT_S = 5.0

Post = Callable[[Callable[[], None]], None]


@dataclass(frozen=True, slots=True)
class _Callbacks:
    """What the thread tells the event loop."""

    started: Callable[[NvmlError | None], None]
    publish: Callable[[tuple[Device, ...]], None]
    on_fault: OnFault


class NvmlDevices:
    """All GPUs of the host, MIG slices in place of a GPU that is cut into some."""

    def __init__(self, interval_ms: int = INTERVAL_MS, metrics: Metrics | None = None) -> None:
        if interval_ms <= 0:
            raise ValueError("interval_ms is positive")
        self._interval_ms = interval_ms
        self._metrics = metrics or Metrics()
        self._devices: tuple[Device, ...] = ()
        self._published_s = 0.0
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

        def publish(devices: tuple[Device, ...]) -> None:
            changed = devices != self._devices
            self._publish(devices)
            if changed:
                on_change()

        watch = _Watch(self._interval_ms, self._stopping, self._metrics)
        callbacks = _Callbacks(started, publish, on_fault)
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

    async def stop(self) -> None:
        """Ends the thread. One that hangs in the driver is left behind."""
        self._stopping.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.to_thread(thread.join, STOP_TIMEOUT_S)

    def _publish(self, devices: tuple[Device, ...]) -> None:
        self._devices, self._published_s = devices, time.monotonic()


class _Watch:
    """What runs in the thread: reads, waits, and opens NVML anew when devices are gone."""

    def __init__(self, interval_ms: int, stopping: threading.Event, metrics: Metrics) -> None:
        self._interval_ms = interval_ms
        self._stopping = stopping
        self._metrics = metrics
        self._reader = NvmlReader()
        self._book = DeviceBook()
        self._backoff = Backoff(
            REOPEN_FIRST_INTERVALS * interval_ms, REOPEN_LAST_INTERVALS * interval_ms
        )
        self._slowed: dict[str, int] = {}
        self._is_open = False
        self._reopened = 0
        self._reopen_at_s = 0.0

    def run(self, post: Post, callbacks: _Callbacks) -> None:
        """Reads until told to stop."""
        try:
            self._reader.open()
        except NvmlError as error:
            post(partial(callbacks.started, error))
            return
        self._is_open = True
        self._read(thorough=True)
        self._tell(post, callbacks)
        post(partial(callbacks.started, None))
        count, next_s = 0, time.monotonic()
        while not self._stopping.is_set():
            next_s = max(next_s + self._interval_ms / 1000, time.monotonic())
            # A device that reported a critical error has to be quiet for a while to count as well.
            count = 1 if self._wait_until(next_s) else count + 1
            self._look(thorough=count % THOROUGH_EVERY == 0)
            self._tell(post, callbacks)
        self._reader.close()

    def _tell(self, post: Post, callbacks: _Callbacks) -> None:
        devices = self._book.devices()
        self._log_slowdowns(devices)
        post(partial(callbacks.publish, devices))
        for device_id, sentence in self._book.take_news():
            if sentence:
                log.error("device_unwell", device_id=device_id, human=f"{device_id}: {sentence}")
            else:
                log.info("device_well", device_id=device_id, human=f"{device_id} is well again.")
            post(partial(callbacks.on_fault, device_id, sentence))

    def _log_slowdowns(self, devices: tuple[Device, ...]) -> None:
        for device in devices:
            mask = (device.clock_event_reasons or 0) & SLOWDOWN
            if mask != self._slowed.get(device.device_id, 0):
                self._slowed[device.device_id] = mask
                reasons = ", ".join(reason_names(mask))
                log.warning("device_slowdown", device_id=device.device_id, reasons=reasons)

    def _look(self, *, thorough: bool) -> None:
        if self._is_open:
            self._read(thorough=thorough)
        if self._book.all_well:
            self._reopened = 0
        elif self._book.needs_opening:
            self._reopen_when_due()

    def _read(self, *, thorough: bool) -> None:
        began_s = time.monotonic()
        readings = self._reader.read(thorough=thorough)
        took_ms = (time.monotonic() - began_s) * 1000
        self._metrics.device_read(took_ms, thorough=thorough)
        problem = self._reader.driver_problem()
        if problem is None:
            self._book.take(readings)
        else:
            self._book.driver_gone(problem)

    def _reopen_when_due(self) -> None:
        now_s = time.monotonic()
        if self._reopened == 0:
            self._reopened, self._reopen_at_s = 1, now_s + self._backoff.delay_ms(1, 0.0) / 1000
            # A reset of the GPU and a reload of the driver need that nobody holds it open.
            self._close_if_useless()
        elif now_s >= self._reopen_at_s:
            self._reopen()
            self._reopened += 1
            delay_ms = self._backoff.delay_ms(self._reopened, 0.0)
            self._reopen_at_s = time.monotonic() + delay_ms / 1000

    def _reopen(self) -> None:
        self._close()
        try:
            self._reader.open()
        except NvmlError as error:
            self._book.driver_gone(str(error))
            return
        self._is_open = True
        self._read(thorough=True)
        self._close_if_useless()

    def _close_if_useless(self) -> None:
        if self._book.none_readable:
            self._close()

    def _close(self) -> None:
        self._reader.close()
        self._is_open = False

    def _wait_until(self, until_s: float) -> bool:
        """Passes the time until then; ends early, with True, when a critical XID comes."""
        while not self._stopping.is_set():
            left_ms = int((until_s - time.monotonic()) * 1000)
            if left_ms <= 0:
                break
            began_s, slice_ms = time.monotonic(), min(left_ms, EVENT_SLICE_MS)
            event = self._reader.wait_event(slice_ms) if self._is_open else None
            if event is not None:
                self._on_xid(*event)
                if event[1] in CRITICAL_XIDS:
                    return True
                continue
            # An error returned at once must not make the thread spin.
            self._stopping.wait(max(0.0, slice_ms / 1000 - (time.monotonic() - began_s)))
        return False

    def _on_xid(self, device_id: str, xid: int) -> None:
        log.warning("device_xid", device_id=device_id, xid=xid, critical=xid in CRITICAL_XIDS)
        self._metrics.xid(device_id, xid)
        self._book.xid(device_id, xid)
