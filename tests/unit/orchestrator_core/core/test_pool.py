"""A pool's account of slots and memory. LO-203, LO-204."""

from orchestrator_core.core.job import Attempt
from tests.unit.orchestrator_core.core.build import pool, snapshot


def attempt(job_id: str, est_kv_bytes: int = 0) -> Attempt:
    """An attempt on the first incarnation."""
    return Attempt(job_id, 1, "p", "p#1", "h", 0, est_kv_bytes=est_kv_bytes)


def test_occupancy_is_the_union_of_own_and_reported() -> None:
    """An attempt that both know counts once; slots that others use count too."""
    known = pool(slots_total=6, slots_free=3, running=(("a", 1), ("x", 1)))
    known.own = {("a", 1): attempt("a"), ("b", 1): attempt("b")}

    assert known.occupied() == 4
    assert known.slots_free() == 2


def test_a_release_is_not_counted_twice() -> None:
    """A report from before the end of an attempt does not bring its slot back into use."""
    known = pool(slots_total=2, slots_free=2)
    known.own[("a", 1)] = attempt("a")
    before_end = snapshot(
        version=2, slots_total=2, slots_free=1, running=(("a", 1),), emitted_frame_seq=4
    )

    known.forget(("a", 1), frame_seq=5)
    known.apply(before_end, 10)

    assert known.slots_free() == 2
    known.apply(snapshot(version=3, slots_total=2, slots_free=2, emitted_frame_seq=5), 20)
    assert known.ended_at_frame == {}


def test_memory_is_the_lower_of_both_accounts() -> None:
    """The host counts what is used so far, the own ledger what was estimated."""
    known = pool(slots_total=4, slots_free=4, kv_free_bytes=10)
    known.own = {("a", 1): attempt("a", 8)}
    assert known.kv_room_bytes() == 2

    known.apply(
        snapshot(version=2, slots_total=4, slots_free=3, running=(("a", 1),), kv_free_bytes=9), 10
    )
    assert known.kv_room_bytes() == 2, "the attempt has used one byte of its eight"

    known.apply(
        snapshot(version=3, slots_total=4, slots_free=3, running=(("a", 1),), kv_free_bytes=1), 20
    )
    assert known.kv_room_bytes() == 1, "somebody else uses memory too"
    assert known.could_make_room(10)
    assert not known.could_make_room(11)


def test_memory_that_is_not_reported_does_not_restrict() -> None:
    """No ledger without a host that knows what it has."""
    known = pool()
    known.own = {("a", 1): attempt("a", 8)}

    assert known.kv_room_bytes() is None
    assert known.could_make_room(10**12)


def test_a_new_incarnation_starts_afresh() -> None:
    """Refusals and the idle memory belonged to the former one, which is remembered by its name."""
    known = pool(kv_free_bytes=10)
    known.refusals, known.closed_until_ms = 3, 99

    for boot in range(2, 9):
        known.apply(snapshot(replica_id=f"p#{boot}", slots_free=0, kv_free_bytes=4), 1)

    assert (known.refusals, known.closed_until_ms, known.room_idle_bytes) == (0, 0, None)
    assert known.former_replica_ids == ("p#4", "p#5", "p#6", "p#7")


def test_a_late_duplicate_does_not_make_a_pool_older() -> None:
    """What was known to be true at an instant stays known."""
    known = pool(as_of_ms=100)

    known.apply(snapshot(), 50)

    assert known.fresh(150, 50)
    assert not known.fresh(151, 50)
    known.connected = False
    assert not known.fresh(100, 50)


def test_memory_of_attempts_that_the_host_has_not_seen_is_taken() -> None:
    """LO-204: also on a pool that was busy from the start, so that no idle room is known."""
    known = pool(slots_total=4, slots_free=3, kv_free_bytes=10)
    known.own = {("a", 1): attempt("a", 4), ("b", 1): attempt("b", 5)}

    assert known.room_idle_bytes is None
    assert known.kv_room_bytes() == 1


def test_free_memory_says_nothing_where_slots_have_theirs_already() -> None:
    """LO-201: a full device with preallocated slots takes jobs as long as a slot is free."""
    full = {"slots_total": 2, "slots_free": 2, "vram_free_bytes": 1, "kv_preallocated": True}

    assert pool(**full).kv_room_bytes() is None
    assert pool(**full, kv_free_bytes=20).kv_room_bytes() == 20
    assert pool(**{**full, "kv_preallocated": False}).kv_room_bytes() == 1
