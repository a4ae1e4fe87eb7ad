"""The thread that reads NVIDIA GPUs, and what it does when they, NVML or itself fail.

ORCH-3038, ORCH-3040, ORCH-1103.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from pool_managerd.core.backoff import Backoff
from pool_managerd.core.clocks import SLOWDOWN, reason_names
from pool_managerd.core.device import Device
from pool_managerd.core.device_book import DeviceBook
from pool_managerd.core.xids import CRITICAL_XIDS
from pool_managerd.devices.nvml_calls import NvmlError
from pool_managerd.devices.nvml_reader import NvmlReader
from pool_managerd.devices.port import OnFault
from pool_managerd.telemetry import Metrics, log

THOROUGH_EVERY = 5
"""The slow fields are read with every fifth reading.

A device has to be quiet for as many after a critical XID, whatever the others do.
"""
EVENT_SLICE_MS = 200
"""Longest single wait for events, so that stopping is prompt."""
REOPEN_FIRST_INTERVALS = 2
REOPEN_LAST_INTERVALS = 60
"""Wait before NVML is opened anew for a device that is gone: doubles from the first to the last."""
XIDS_TOLD_MAX = 64
"""Different XIDs that are logged between two readings."""

Post = Callable[[Callable[[], None]], None]


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What the thread tells the event loop.

    `publish` gets the devices and the instant, of the monotonic clock in seconds, at which the
    latest reading began.
    """

    started: Callable[[NvmlError | None], None]
    publish: Callable[[tuple[Device, ...], float], None]
    on_fault: OnFault


class Watch:
    """What runs in the thread: reads, waits, and opens NVML anew when devices are gone."""

    def __init__(
        self,
        interval_ms: int,
        stopping: threading.Event,
        reader: NvmlReader | None = None,
        metrics: Metrics | None = None,
        expected: Iterable[str] = (),
    ) -> None:
        self._interval_ms = interval_ms
        self._stopping = stopping
        self._reader = reader or NvmlReader()
        self._metrics = metrics or Metrics()
        self._book = DeviceBook(expected, THOROUGH_EVERY)
        self._backoff = Backoff(
            REOPEN_FIRST_INTERVALS * interval_ms, REOPEN_LAST_INTERVALS * interval_ms
        )
        self._slowed: dict[str, int] = {}
        self._is_open = False
        self._reopened = 0
        self._reopen_at_s = 0.0
        self._read_at_s = 0.0
        self._broken = 0
        self._deaf = False
        self._readings = 0
        self._xids_told: set[tuple[str, int]] = set()

    def run(self, post: Post, callbacks: Callbacks) -> None:
        """Reads until told to stop, whatever goes wrong on the way."""
        try:
            self._reader.open()
            self._is_open = True
            self._read(thorough=True)
            self._tell(post, callbacks)
        except NvmlError as error:
            post(partial(callbacks.started, error))
            return
        except Exception as error:  # noqa: BLE001 - else the start would wait for a dead thread
            problem = f"the devices cannot be read: {type(error).__name__}: {error}"
            post(partial(callbacks.started, NvmlError(problem)))
            return
        post(partial(callbacks.started, None))
        self._go_on(post, callbacks)
        self._reader.close()

    def _go_on(self, post: Post, callbacks: Callbacks) -> None:
        failures, next_s = 0, time.monotonic()
        while not self._stopping.is_set():
            next_s = max(next_s + self._interval_ms / 1000, time.monotonic())
            while self._wait_until(next_s):
                # The driver is not asked for that: errors may come in storms.
                self._tell(post, callbacks)
            self._readings += 1
            self._xids_told.clear()
            try:
                self._look(thorough=self._readings % THOROUGH_EVERY == 0)
                self._tell(post, callbacks)
            except Exception as error:  # noqa: BLE001 - without readings, all devices go silent
                failures += 1
                self._broke(error, failures)
            else:
                failures = 0

    def _broke(self, error: Exception, failures: int) -> None:
        """Tells of an error that nobody expected, ever more rarely, and waits ever longer."""
        delay_ms = self._backoff.delay_ms(failures, 0.0)
        self._broken += 1
        if self._broken.bit_count() == 1:
            problem = f"{type(error).__name__}: {error}"
            log.error(
                "device_reading_failed",
                error=problem,
                failures=self._broken,
                retry_in_ms=delay_ms,
                human=f"The devices could not be read and are tried again: {problem}",
            )
        self._stopping.wait(delay_ms / 1000)

    def _tell(self, post: Post, callbacks: Callbacks) -> None:
        devices = self._book.devices()
        self._log_slowdowns(devices)
        post(partial(callbacks.publish, devices, self._read_at_s))
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
                log.warning(
                    "device_slowdown",
                    device_id=device.device_id,
                    reasons=reasons,
                    human=f"{device.device_id} lowers its clocks: {reasons}."
                    if reasons
                    else f"{device.device_id} runs at full clocks again.",
                )

    def _look(self, *, thorough: bool) -> None:
        if self._is_open:
            self._read(thorough=thorough)
        if self._book.all_well:
            self._reopened = 0
        elif self._book.needs_opening:
            self._reopen_when_due()

    def _read(self, *, thorough: bool) -> None:
        read_at_s = time.monotonic()
        readings = self._reader.read(thorough=thorough)
        self._metrics.device_read((time.monotonic() - read_at_s) * 1000, thorough=thorough)
        problem = self._reader.driver_problem()
        if problem is None:
            self._book.take(readings)
            self._read_at_s = read_at_s
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
        self._is_open, self._deaf = True, False
        self._read(thorough=True)
        self._close_if_useless()

    def _close_if_useless(self) -> None:
        if self._book.none_readable:
            self._close()

    def _close(self) -> None:
        self._reader.close()
        self._is_open = False

    def _wait_until(self, until_s: float) -> bool:
        """Passes the time until then; ends early, with True, when a device becomes unwell."""
        while not self._stopping.is_set():
            left_ms = int((until_s - time.monotonic()) * 1000)
            if left_ms <= 0:
                break
            began_s, slice_ms = time.monotonic(), min(left_ms, EVENT_SLICE_MS)
            event = self._event(slice_ms)
            if event is not None:
                self._on_xid(*event)
                if self._book.has_news:
                    return True
                continue
            # An error returned at once must not make the thread spin.
            self._stopping.wait(max(0.0, slice_ms / 1000 - (time.monotonic() - began_s)))
        return False

    def _event(self, timeout_ms: int) -> tuple[str, int] | None:
        """The next XID; none once waiting for one has failed: devices are then only read."""
        if not self._is_open or self._deaf:
            return None
        try:
            return self._reader.wait_event(timeout_ms)
        except Exception as error:  # noqa: BLE001 - readings matter more than events
            self._deaf = True
            log.error(
                "device_events_lost",
                error=f"{type(error).__name__}: {error}",
                human="XID errors are no longer heard of; the devices are still read.",
            )
            return None

    def _on_xid(self, device_id: str, xid: int) -> None:
        critical = xid in CRITICAL_XIDS
        self._metrics.xid(device_id, xid)
        self._book.xid(device_id, xid)
        # In a storm one is logged once between two readings.
        if (device_id, xid) in self._xids_told or len(self._xids_told) >= XIDS_TOLD_MAX:
            return
        self._xids_told.add((device_id, xid))
        log.warning(
            "device_xid",
            device_id=device_id,
            xid=xid,
            critical=critical,
            human=f"{device_id} reported XID {xid}"
            + (": its pools are stopped." if critical else ", which it may survive."),
        )
