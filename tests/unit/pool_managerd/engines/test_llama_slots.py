"""Which slot a generation gets."""

import pytest

from pool_managerd.engines.llama_slots import SlotLease, SlotTable


def leased(table: SlotTable, request_id: str, prompt: str) -> SlotLease:
    """Returns the lease, which there is."""
    lease = table.acquire(request_id, prompt)
    assert lease is not None
    return lease


def test_no_more_leases_than_slots() -> None:
    """The table is full until a slot comes back, and giving it back twice changes nothing."""
    table = SlotTable(2)
    one, two = leased(table, "a", ""), leased(table, "b", "")
    assert {one.slot, two.slot} == {0, 1}
    assert table.acquire("c", "") is None

    table.release(one)
    table.release(one)

    assert leased(table, "c", "").slot == one.slot
    assert table.acquire("d", "") is None
    assert table.lease_of("b") is two
    assert table.lease_of("a") is None


def test_a_session_gets_the_slot_that_still_knows_it() -> None:
    """The slot with the longest common beginning wins over the longest unused one."""
    table = SlotTable(3)
    session = "system prompt " * 20
    first, other = leased(table, "a", session), leased(table, "b", "x" * 500)
    table.release(first)
    table.release(other)

    assert leased(table, "c", session + "next turn").slot == first.slot


def test_without_a_warm_slot_the_longest_unused_one_is_taken() -> None:
    """Other sessions' caches live as long as possible."""
    table = SlotTable(2)
    for request_id in ("a", "b"):
        table.release(leased(table, request_id, request_id * 500))
    last = leased(table, "c", "c" * 500)

    assert leased(table, "d", "d" * 500).slot != last.slot


@pytest.mark.parametrize("slots", [0, -1])
def test_an_engine_without_slots_is_refused(slots: int) -> None:
    """A table needs a slot."""
    with pytest.raises(ValueError, match="at least one slot"):
        SlotTable(slots)
