"""Whether an engine fits, and the sentence when it does not. ORCH-3002, ORCH-3003, LO-204."""

from hypothesis import given
from hypothesis import strategies as st

from pool_managerd.core.fit import (
    HOST,
    Claim,
    Estimate,
    Need,
    Room,
    available_bytes,
    human_bytes,
    shortfalls,
)
from pool_managerd.core.ledger import Ledger

GIB = 1 << 30
SIZES = st.integers(min_value=0, max_value=1 << 40)
CLAIMS = st.lists(st.builds(Claim, SIZES, st.booleans()), max_size=4).map(tuple)


def room(total: int, free: int, memory: str = "GPU-a") -> Room:
    """A device with so many gibibytes."""
    return Room("GPU 0", memory, total * GIB, free * GIB)


@given(total=SIZES, free=SIZES, claims=CLAIMS)
def test_available_is_the_lower_of_ledger_and_driver(
    total: int, free: int, claims: tuple[Claim, ...]
) -> None:
    """Claims of engines that still load are taken off what is free, all claims off the total."""
    found = available_bytes(Room("d", "d", total, free), claims)

    by_ledger, by_driver = total, free
    for claim in claims:
        by_ledger -= claim.bytes
        by_driver -= claim.bytes if claim.loading else 0
    assert found == min(by_ledger, by_driver)


def test_a_memory_that_nobody_knows_is_not_judged() -> None:
    """What the hardware does not report is no reason to refuse, and one known figure is enough."""
    estimate = Estimate({"GPU-a": Need(weights=5)})

    assert available_bytes(Room("d", "d"), ()) is None
    assert available_bytes(Room("d", "d", total=4), ()) == 4
    assert not shortfalls(estimate, {"GPU-a": Room("GPU 0", "GPU-a")}, {})
    assert not shortfalls(estimate, {}, {})


def test_every_memory_that_is_too_small_is_named_with_numbers() -> None:
    """ORCH-3003: not the first one alone, and the sentence holds all that one needs to know."""
    estimate = Estimate(
        {
            "GPU-a": Need(weights=9 * GIB, kv=4 * GIB, graph=GIB // 2, context=GIB // 2),
            "GPU-b": Need(weights=2 * GIB),
            HOST: Need(weights=3 * GIB),
        }
    )
    rooms = {
        HOST: Room("the host", HOST, 8 * GIB, 2 * GIB),
        "GPU-a": Room("GPU 0 (RTX 3060)", "GPU-a", 12 * GIB, 12 * GIB),
        "GPU-b": Room("GPU 1 (RTX 3060)", "GPU-b", 12 * GIB, 2 * GIB),
    }
    claims = {"GPU-a": (Claim(2 * GIB, loading=False),)}

    found = shortfalls(estimate, rooms, claims)

    assert [shortfall.place for shortfall in found] == ["GPU-a", HOST]
    assert found[0].sentence("use another device") == (
        "GPU 0 (RTX 3060) lacks 4.0 GiB of memory: 14.0 GiB are needed (weights 9.0 GiB, keys and "
        "values 4.0 GiB, computation 512.0 MiB, the process itself 512.0 MiB) and 10.0 GiB of "
        "12.0 GiB are available (other pools of this host claim 2.0 GiB); use another device"
    )
    assert found[1].sentence("wait") == (
        "the host lacks 1.0 GiB of memory: 3.0 GiB are needed (weights 3.0 GiB) and 2.0 GiB of "
        "8.0 GiB are available; wait"
    )


def test_a_device_without_memory_of_its_own_uses_that_of_the_host() -> None:
    """On unified memory what the device and the host need has to fit together. ORCH-3003."""
    estimate = Estimate({"GPU-a": Need(weights=5 * GIB), HOST: Need(weights=4 * GIB)})
    rooms = {HOST: Room("the host", HOST, 16 * GIB, 8 * GIB), "GPU-a": room(16, 8, memory=HOST)}

    (found,) = shortfalls(estimate, rooms, {})

    assert (found.name, found.need.total) == ("the host", 9 * GIB)
    rooms[HOST] = Room("the host", HOST, 16 * GIB, 9 * GIB)
    assert not shortfalls(estimate, rooms, {})


def test_sizes_are_told_in_units_for_people() -> None:
    """One decimal, and the largest unit that gives at least 1."""
    sizes = (0, 1023, 1024, 3 << 19, 5 * GIB // 2)
    assert [human_bytes(size) for size in sizes] == [
        "0 bytes", "1023 bytes", "1.0 KiB", "1.5 MiB", "2.5 GiB",
    ]  # fmt: skip


def test_a_ledger_replaces_what_was_expected_by_what_was_taken() -> None:
    """ORCH-3039: an entry keeps both, and only what is known is replaced."""
    ledger = Ledger()

    ledger.claim("a", {"GPU-a": 10, HOST: 3})
    assert ledger.beside("b") == {
        "GPU-a": (Claim(10, loading=True),),
        HOST: (Claim(3, loading=True),),
    }
    assert ledger.loading_beside("b", frozenset({HOST}))
    assert not ledger.loading_beside("a", frozenset({HOST}))
    assert not ledger.loading_beside("b", frozenset({"GPU-b"}))
    ledger.settle("a", {"GPU-a": 12})

    assert ledger.claimed("GPU-a") == 12
    assert ledger.claimed(HOST) == 3
    assert ledger.entries("a")["GPU-a"].estimated == 10
    assert ledger.beside("b")["GPU-a"] == (Claim(12, loading=False),)
    assert ledger.beside("a") == {}
    assert not ledger.loading_beside("b", frozenset({HOST}))
    ledger.release("a")
    ledger.release("a")
    assert ledger.claimed("GPU-a") == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("cgr"), SIZES), max_size=12))
def test_a_ledger_adds_up(steps: list[tuple[str, str, int]]) -> None:
    """Against a table of the last word on each pool."""
    ledger, last = Ledger(), dict[str, int]()
    for pool_id, kind, size in steps:
        match kind:
            case "c":
                ledger.claim(pool_id, {"m": size})
                last[pool_id] = size
            case "g":
                ledger.settle(pool_id, {"m": size})
                last[pool_id] = size
            case _:
                ledger.release(pool_id)
                last.pop(pool_id, None)

    assert ledger.claimed("m") == sum(last.values())
