"""The thread that reads GPUs survives what nobody expected. ORCH-3038."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from structlog.testing import capture_logs

from pool_managerd.core.device import Device, DeviceKind
from pool_managerd.core.device_book import Reading
from pool_managerd.devices.nvml_calls import NvmlError
from pool_managerd.devices.nvml_reader import NvmlReader
from pool_managerd.devices.nvml_watch import THOROUGH_EVERY, Callbacks, Watch

INTERVAL_MS = 1
WAIT_S = 20.0


class OddReader(NvmlReader):
    """Reads a device whose free memory is the number of readings; some raise `error`."""

    def __init__(self, odd_readings: Callable[[int], bool], odd_events: bool = False) -> None:
        super().__init__()
        self.odd_readings, self.odd_events = odd_readings, odd_events
        self.number = self.waits = 0

    def open(self) -> None:
        """Nothing to open."""

    def close(self) -> None:
        """Nothing to close."""

    def driver_problem(self) -> None:
        """The driver is fine."""

    def read(self, *, thorough: bool) -> list[Reading]:
        """The next reading."""
        self.number += 1
        if self.odd_readings(self.number):
            raise AttributeError("no such field")
        facts = Device("GPU-a", DeviceKind.GPU, "RTX 3060", memory_free_bytes=self.number)
        return [Reading(facts, None, thorough)]

    def wait_event(self, timeout_ms: int) -> tuple[str, int] | None:
        """Nothing happens, or something that nobody expected."""
        self.waits += 1
        if self.odd_events:
            raise OverflowError("an odd event")
        return None


@contextmanager
def watching(reader: NvmlReader, interval_ms: int = INTERVAL_MS) -> Iterator["queue.Queue[object]"]:
    """Runs the thread; the queue gets what it tells: how it started, then free memory."""
    told: queue.Queue[object] = queue.Queue()
    stopping = threading.Event()

    def published(devices: tuple[Device, ...], _read_at_s: float) -> None:
        told.put([device.memory_free_bytes for device in devices])

    callbacks = Callbacks(told.put, published, lambda _device_id, _sentence: None)
    watch = Watch(interval_ms, stopping, reader)
    thread = threading.Thread(target=partial(watch.run, lambda work: work(), callbacks))
    thread.start()
    try:
        yield told
    finally:
        stopping.set()
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_readings_go_on_after_some_that_broke() -> None:
    """The thread says so, waits, and reads again: it never ends unseen."""
    with watching(OddReader(lambda number: number in (2, 3, 5))) as told:
        seen = [told.get(timeout=WAIT_S) for _ in range(4)]

    assert seen == [[1], None, [4], [6]]


def test_a_first_reading_that_breaks_refuses_the_start() -> None:
    """Whoever starts the thread is told why, and does not wait for it."""
    with watching(OddReader(lambda _number: True)) as told:
        error = told.get(timeout=WAIT_S)

    assert isinstance(error, NvmlError)
    assert "AttributeError: no such field" in str(error)


class StormyReader(OddReader):
    """Has `storm` critical XIDs, one at each wait, and then none.

    `storm_readings` is how many readings there were by its end.
    """

    def __init__(self, storm: int) -> None:
        super().__init__(lambda _number: False)
        self.storm = storm
        self.storm_readings = 0

    def wait_event(self, timeout_ms: int) -> tuple[str, int] | None:
        """The next XID."""
        self.waits += 1
        if self.waits > self.storm:
            return None
        self.storm_readings = self.number
        return ("GPU-a", 79)


def test_a_critical_error_is_told_at_once() -> None:
    """Without asking the driver: the next reading is far away."""
    reader = StormyReader(1)
    with watching(reader, interval_ms=60_000) as told:
        seen = [told.get(timeout=WAIT_S) for _ in range(3)]
        readings = reader.number

    assert seen == [[1], None, [None]], "unwell: nothing is told of its memory"
    assert readings == 1


def test_a_storm_of_critical_errors_does_not_put_readings_off() -> None:
    """The next reading comes when it was due: not once for each of them."""
    storm = 2_000
    reader = StormyReader(storm)
    with watching(reader, interval_ms=50) as told:
        while reader.waits <= storm or reader.number < reader.storm_readings + 2:
            told.get(timeout=WAIT_S)

    assert reader.storm_readings < storm / 10
    # Each interval has at most one slice of waiting and its rest, however many there were.
    assert reader.waits - storm <= 4 * (reader.number - reader.storm_readings + 1)


class TwoReader(StormyReader):
    """GPU-a errs at every wait, for ever; GPU-b is read beside it, with its temperature."""

    def __init__(self) -> None:
        super().__init__(1 << 62)

    def read(self, *, thorough: bool) -> list[Reading]:
        """GPU-b tells its number of the reading where the slow fields are read."""
        (first,) = super().read(thorough=thorough)
        facts = Device("GPU-b", DeviceKind.GPU, memory_free_bytes=self.number if thorough else 0)
        return [first, Reading(facts, None, thorough)]


def test_a_storm_on_one_gpu_leaves_the_others_their_slow_fields() -> None:
    """Their temperature, clocks and ECC are read on, and what they need of the driver."""
    slow = list[object]()
    reader = TwoReader()
    with watching(reader, interval_ms=10) as told:
        told.get(timeout=WAIT_S)
        while len(slow) < 3 and reader.number < 10 * THOROUGH_EVERY:
            free = told.get(timeout=WAIT_S)
            if isinstance(free, list) and free[1] and free[1] not in slow:
                slow.append(free[1])

    assert slow == [1, 1 + THOROUGH_EVERY, 1 + 2 * THOROUGH_EVERY]


def test_an_error_that_comes_again_and_again_is_logged_once_between_two_readings() -> None:
    """Another one beside it is logged too."""
    reader = StormyReader(100)
    with capture_logs() as logs, watching(reader, interval_ms=50) as told:
        while reader.waits <= reader.storm:
            told.get(timeout=WAIT_S)
        read = reader.number

    xids = [entry for entry in logs if entry["event"] == "device_xid"]
    assert 1 <= len(xids) <= read


def test_devices_are_read_on_where_events_are_odd() -> None:
    """Without events, XIDs go unseen, but facts do not."""
    reader = OddReader(lambda _number: False, odd_events=True)
    with watching(reader) as told:
        seen = [told.get(timeout=WAIT_S) for _ in range(4)]

    assert seen == [[1], None, [2], [3]]
    assert reader.waits == 1
