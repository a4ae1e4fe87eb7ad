"""Health of devices: a property test against a naive model, and the rules one by one."""

from hypothesis import given
from hypothesis import strategies as st

from pool_managerd.core.device import Device, DeviceHealth, DeviceKind
from pool_managerd.core.device_book import DeviceBook, Reading
from pool_managerd.core.nvml_codes import LOST
from pool_managerd.core.xids import CRITICAL_XIDS

IDS = ("GPU-a", "GPU-b", "GPU-c")
RESET = (DeviceHealth.RESET_REQUIRED, "it needs a reset")
GONE = (DeviceHealth.LOST, "it is lost")


def facts(device_id: str) -> Device:
    """A device with some memory in use."""
    index = IDS.index(device_id)
    return Device(device_id, DeviceKind.GPU, index=index, memory_total_bytes=9, memory_free_bytes=4)


def reading(device_id: str, outcome: str) -> Reading:
    """A reading with one of the outcomes of the property test."""
    problem = {"reset": RESET, "lost": GONE}.get(outcome)
    return Reading(facts(device_id), problem, thorough=outcome == "thorough")


STEPS = st.lists(
    st.one_of(
        st.dictionaries(
            st.sampled_from(IDS), st.sampled_from(("quick", "thorough", "reset", "lost"))
        ),
        st.tuples(st.sampled_from(IDS), st.sampled_from((31, 48, 79))),
        st.just("driver"),
    ),
    max_size=30,
)


class Naive:
    """The health of each device, worked out anew for each case."""

    def __init__(self) -> None:
        self.health: dict[str, str] = {}

    def take(self, outcomes: dict[str, str]) -> None:
        """A reading of the devices in `outcomes`."""
        for device_id, outcome in outcomes.items():
            was = self.health.get(device_id, "ok")
            if outcome == "reset":
                self.health[device_id] = "reset_required"
            elif outcome == "lost":
                self.health[device_id] = "lost"
            elif was != "critical_error" or outcome == "thorough":
                self.health[device_id] = "ok"
        for device_id, was in self.health.items():
            if device_id not in outcomes and was != "reset_required":
                self.health[device_id] = "lost"


@given(STEPS)
def test_health_follows_what_was_seen_last(steps: list[object]) -> None:
    """As the naive model says; facts of unwell devices are not told; news add up to the state."""
    book, naive, told = DeviceBook(), Naive(), dict[str, str]()
    for step in steps:
        match step:
            case dict():
                book.take([reading(device_id, outcome) for device_id, outcome in step.items()])
                naive.take(step)
            case (str(device_id), int(xid)):
                book.xid(device_id, xid)
                if device_id in naive.health and xid in CRITICAL_XIDS:
                    naive.health[device_id] = "critical_error"
            case _:
                book.driver_gone("no driver")
                naive.health = dict.fromkeys(naive.health, "driver_unavailable")

        devices = {device.device_id: device for device in book.devices()}
        assert {i: d.health.value for i, d in devices.items()} == naive.health
        for device in devices.values():
            well = device.health is DeviceHealth.OK
            assert (device.memory_free_bytes is not None) == well
            assert bool(device.health_detail) != well
        told.update(book.take_news())
        assert {i: told.get(i, "") for i in devices} == {
            i: d.health_detail for i, d in devices.items()
        }
        assert book.all_well == all(h == "ok" for h in naive.health.values())


def test_devices_that_are_expected_are_unwell_until_they_are_seen() -> None:
    """Then they are like any other: what is wrong later is told as such."""
    book = DeviceBook(["GPU-b", "MIG-x"])

    book.take([reading("GPU-a", "quick")])
    absent = {d.device_id: (d.kind, d.health, d.health_detail) for d in book.devices()}
    book.take([reading("GPU-a", "quick"), reading("GPU-b", "quick")])
    news = book.take_news()
    book.take([reading("GPU-a", "quick")])

    said = "there is no device {} here now: it is lost, or its id is wrong; this host has: GPU-a"
    assert absent == {
        "GPU-a": (DeviceKind.GPU, DeviceHealth.OK, ""),
        "GPU-b": (DeviceKind.GPU, DeviceHealth.LOST, said.format("GPU-b")),
        "MIG-x": (DeviceKind.MIG, DeviceHealth.LOST, said.format("MIG-x")),
    }
    assert ("GPU-b", "") in news
    assert [d.health_detail for d in book.devices() if d.device_id == "GPU-b"] == [LOST]


def test_an_expected_device_that_is_unwell_at_first_is_told_with_what_it_is() -> None:
    """Its name, place and memory are no secret of a device that needs a reset."""
    expected, other = DeviceBook(["GPU-a"]), DeviceBook()

    for book in (expected, other):
        book.take([reading("GPU-a", "reset")])

    assert expected.devices() == other.devices()
    assert expected.devices()[0].memory_total_bytes == 9


def test_a_critical_error_alone_needs_no_reopening() -> None:
    """The driver answers; what is gone only comes back when NVML is opened anew."""
    book = DeviceBook()
    book.take([reading("GPU-a", "quick"), reading("GPU-b", "quick")])

    book.xid("GPU-a", 48)
    after_xid = (book.needs_opening, book.none_readable)
    book.take([reading("GPU-a", "lost"), reading("GPU-b", "quick")])
    one_lost = (book.needs_opening, book.none_readable)
    book.driver_gone("no driver")

    assert after_xid == (False, False)
    assert one_lost == (True, False)
    assert (book.needs_opening, book.none_readable) == (True, True)


def test_the_last_xid_is_told_of_an_unwell_device_too() -> None:
    """It says why."""
    book = DeviceBook()
    book.take([reading("GPU-a", "quick")])
    book.xid("GPU-a", 79)

    (device,) = book.devices()

    assert (device.last_xid, device.memory_total_bytes) == (79, 9)
    assert "XID 79 (the GPU fell off the bus)" in device.health_detail


def test_a_device_is_quiet_for_a_while_before_it_is_well_whatever_the_others_do() -> None:
    """A GPU that errs again and again keeps no other one's pool from coming back."""
    book = DeviceBook(quiet_readings=3)
    book.take([reading("GPU-a", "quick"), reading("GPU-b", "quick")])
    book.xid("GPU-b", 48)
    health = []

    for _ in range(4):
        book.xid("GPU-a", 48)
        book.take([reading("GPU-a", "thorough"), reading("GPU-b", "thorough")])
        health.append([device.health.value for device in book.devices()])

    assert health == [["critical_error"] * 2] * 2 + [["critical_error", "ok"]] * 2


def test_critical_errors_that_alternate_are_told_once() -> None:
    """Each of a storm would be a line of the log and news for every pool."""
    book = DeviceBook()
    book.take([reading("GPU-a", "quick")])

    for xid in (48, 79) * 50:
        book.xid("GPU-a", xid)

    assert len(book.take_news()) == 1
    assert book.devices()[0].last_xid == 79
