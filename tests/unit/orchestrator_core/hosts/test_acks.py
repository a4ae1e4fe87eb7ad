"""How old a report can be, told by the acknowledgement that it echoes."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.hosts.acks import ENTRIES_MAX, STEP_MS, SentAcks

OPENED_MS = 1_000


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(0, 70))
def test_a_report_is_never_taken_for_younger_than_it_may_be(
    waits_ms: list[int], echoed: int
) -> None:
    """The bound is the acknowledgement that was seen, or a little before. LO-203."""
    acks, now_ms, sent_ms = SentAcks(OPENED_MS), OPENED_MS, [OPENED_MS]
    for ack_id, wait_ms in enumerate(waits_ms, start=1):
        now_ms += wait_ms
        acks.sent(ack_id, now_ms)
        sent_ms.append(now_ms)

    as_of_ms = acks.as_of_ms(echoed)

    true_ms = sent_ms[min(echoed, len(waits_ms))]
    assert true_ms - STEP_MS < as_of_ms <= true_ms


def test_reports_that_were_stuck_in_the_network_are_as_old_as_they_are() -> None:
    """A burst of old reports does not push out what tells their age."""
    acks = SentAcks(0)
    acks.sent(1, 1_000)
    for ack_id in range(2, 5_000):
        acks.sent(ack_id, 60_000)

    assert acks.as_of_ms(1) == 1_000


def test_what_is_long_ago_counts_as_the_opening_of_the_stream() -> None:
    """The memory of a stream that lives for months is bounded, and errs on the safe side."""
    acks = SentAcks(7)
    for ack_id in range(1, 3 * ENTRIES_MAX):
        acks.sent(ack_id, ack_id * 1_000)

    assert acks.as_of_ms(0) == acks.as_of_ms(1) == 7
    assert acks.as_of_ms(2 * ENTRIES_MAX + 10) == (2 * ENTRIES_MAX + 10) * 1_000
    assert len(acks._sent_ms) == ENTRIES_MAX
