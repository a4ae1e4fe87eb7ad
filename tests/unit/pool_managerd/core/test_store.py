"""The caps of the token store."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool_managerd.core.attempts import AttemptKey, AttemptLog, EndReason, Prefix, Terminal
from pool_managerd.core.store import AppendOutcome, AttemptStore, StoreLimits

LIMITS = StoreLimits(held_bytes_per_job=1_000, held_bytes_total=2_500, held_attempts_max=4)


def held(store: AttemptStore, job_id: str, attempt: int = 1) -> AttemptLog:
    """A new log in `store`."""
    log = AttemptLog(AttemptKey(job_id, attempt), ("p", "p-1"))
    store.add(log)
    return log


operations = st.lists(
    st.tuples(
        st.sampled_from(("start", "continue", "append", "ack", "end", "release")),
        st.integers(0, 5),
        st.integers(0, 300),
    ),
    max_size=120,
)


@given(operations)
def test_the_caps_hold_whatever_happens(steps: list[tuple[str, int, int]]) -> None:
    """A piece that is KEPT leaves every cap intact, and the sum is that of the logs. LO-302."""
    store = AttemptStore(LIMITS)
    for action, number, size in steps:
        key = AttemptKey(f"j{number % 3}", number)
        log = store.get(key)
        if action == "start" and log is None and not store.full:
            store.add(AttemptLog(key, ("p", "p-1")))
        elif action == "continue" and log is None and not store.full:
            # What is continued is held, and what exceeds a cap is evicted.
            added = AttemptLog(key, ("p", "p-1"), prefix=Prefix(("x" * size, "y" * size)))
            store.add(added)
            assert (added.text_bytes, added.next_index) == (2 * size, 2)
            others = [o for o in store if o.key.job_id == key.job_id and o is not added]
            room = LIMITS.held_bytes_per_job - sum(o.held_bytes for o in others)
            assert added.held_bytes <= max(0, room) or not size
        elif log is not None and action == "append" and log.terminal is None:
            if store.append(log, "x" * size, ()) is AppendOutcome.KEPT:
                assert store.held_bytes <= LIMITS.held_bytes_total
                same_job = [o.held_bytes for o in store if o.key.job_id == key.job_id]
                assert sum(same_job) <= LIMITS.held_bytes_per_job
            else:
                log.end(Terminal(EndReason.LENGTH))
                store.note_ended(key)
        elif log is not None and action == "ack":
            log.ack(size)
        elif log is not None and action == "end":
            log.end(Terminal(EndReason.EOS))
            store.note_ended(key)
        elif action == "release":
            store.release(key)
        assert store.held_bytes == sum(log.held_bytes for log in store)
        assert len(store) <= LIMITS.held_attempts_max


def test_acknowledged_output_of_ended_attempts_goes_first() -> None:
    """The attempt that ended first gives way first; a running one keeps its output if it can."""
    store = AttemptStore(LIMITS)
    logs = [held(store, f"j{n}") for n in range(3)]
    for log in logs:
        store.append(log, "x" * 700, ())
        log.ack(700)
    for number in (1, 0):
        logs[number].end(Terminal(EndReason.EOS))
        store.note_ended(logs[number].key)
    grown = held(store, "j3")

    outcome = store.append(grown, "y" * 100, ())

    assert outcome is AppendOutcome.KEPT
    assert [log.first_index for log in logs] == [0, 1, 0]


def test_a_cap_evicts_the_oldest_and_no_more_than_a_quarter() -> None:
    """After a crash of the orchestrator its readers resume from what is held here. LO-301."""
    store = AttemptStore(StoreLimits(100_000, 1_000_000, 4))
    log = held(store, "j0")
    while not log.first_index:
        assert store.append(log, "word ", (1,)) is AppendOutcome.KEPT
        log.ack(log.text_bytes)

    assert 74_000 < log.held_bytes <= 75_000
    assert log.read_from(log.first_index, 10, 1_000) is not None


def test_an_attempt_that_goes_on_is_not_refused_for_what_an_earlier_one_holds() -> None:
    """What the reader has of the earlier one gives way, and the rest of the job is generated."""
    store = AttemptStore(LIMITS)
    first = held(store, "j0", 1)
    store.append(first, "x" * 700, ())
    first.ack(700)
    first.end(Terminal(EndReason.EOS))
    store.note_ended(first.key)
    second = held(store, "j0", 2)

    outcomes = {store.append(second, "y" * 100, ()) for _ in range(4)}

    assert outcomes == {AppendOutcome.KEPT}
    assert (first.held_bytes, second.first_index) == (0, 0)


def test_running_attempts_give_the_same_share() -> None:
    """No stream is left without anything to resume from while another keeps all."""
    store = AttemptStore(StoreLimits(1_000_000, 300_000, 4))
    logs = [held(store, f"j{n}") for n in range(3)]
    for _ in range(900):
        for log in logs:
            assert store.append(log, "word ", ()) is AppendOutcome.KEPT
            log.ack(log.text_bytes)
    before = [log.held_bytes for log in logs]

    while not any(log.first_index for log in logs):
        store.append(logs[0], "word ", ())
        logs[0].ack(logs[0].text_bytes)

    kept = [log.held_bytes / size for log, size in zip(logs, before, strict=True)]
    assert all(0.7 < share < 0.9 for share in kept[1:])
    assert store.held_bytes <= 225_000


def test_output_that_nobody_acknowledged_is_never_evicted() -> None:
    """Rather than losing unacknowledged output of others, the attempt that grows is refused."""
    store = AttemptStore(LIMITS)
    logs = [held(store, f"j{n}") for n in range(3)]
    for log in logs:
        assert store.append(log, "x" * 700, ()) is AppendOutcome.KEPT

    outcome = store.append(held(store, "j3"), "y" * 300, ())

    assert outcome is AppendOutcome.TOO_LARGE
    assert all(log.first_index == 0 for log in logs)


def test_room_is_sought_where_running_attempts_have_nothing_yet() -> None:
    """Output of ended attempts that nobody acknowledged fills the host; a new one is refused."""
    store = AttemptStore(StoreLimits(10_000, 1_000, 4))
    log = held(store, "j0")
    held(store, "j1")
    assert store.append(log, "x" * 905, ()) is AppendOutcome.TOO_LARGE
    log.end(Terminal(EndReason.EOS))
    store.note_ended(log.key)

    assert store.full
    assert log.first_index == 0


def test_releasing_makes_room() -> None:
    """A full store takes attempts again after a release."""
    store = AttemptStore(LIMITS)
    for number in range(4):
        held(store, f"j{number}")
    assert store.full

    store.release(AttemptKey("j0", 1))

    assert not store.full
    assert store.get(AttemptKey("j0", 1)) is None


def test_unbounded_limits_are_refused() -> None:
    """A limit that is not positive is no limit."""
    with pytest.raises(ValueError, match="positive"):
        StoreLimits(1, 0, 1)
