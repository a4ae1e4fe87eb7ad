"""The caps of the token store."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool_managerd.core.attempts import AttemptKey, AttemptLog, EndReason, Terminal
from pool_managerd.core.store import AppendOutcome, AttemptStore, StoreLimits

LIMITS = StoreLimits(held_bytes_per_job=1_000, held_bytes_total=2_500, held_attempts_max=4)


def held(store: AttemptStore, job_id: str, attempt: int = 1) -> AttemptLog:
    """A new log in `store`."""
    log = AttemptLog(AttemptKey(job_id, attempt), ("p", "p-1"))
    store.add(log)
    return log


operations = st.lists(
    st.tuples(
        st.sampled_from(("start", "append", "ack", "end", "release")),
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


def test_output_that_nobody_acknowledged_is_never_evicted() -> None:
    """Rather than losing unacknowledged output of others, the attempt that grows is refused."""
    store = AttemptStore(LIMITS)
    logs = [held(store, f"j{n}") for n in range(3)]
    for log in logs:
        assert store.append(log, "x" * 700, ()) is AppendOutcome.KEPT

    outcome = store.append(held(store, "j3"), "y" * 300, ())

    assert outcome is AppendOutcome.TOO_LARGE
    assert all(log.first_index == 0 for log in logs)


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
