"""The heap of deadlines against a plain dict."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.core.timers import TimerKind, Timers
from tests.unit.orchestrator_core.core.settings import STEADY

KINDS = st.sampled_from((TimerKind.WALL, TimerKind.IDLE, TimerKind.FORGET))
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KINDS, st.sampled_from("abc"), st.integers(0, 30)),
        st.tuples(st.just("clear"), KINDS, st.sampled_from("abc"), st.just(0)),
        st.tuples(st.just("pop"), KINDS, st.just(""), st.integers(0, 30)),
    ),
    max_size=200,
)


@STEADY
@given(MOVES)
def test_it_behaves_like_a_dict_of_deadlines(
    moves: list[tuple[str, TimerKind, str, int]],
) -> None:
    """The earliest comes first, by time, kind and key; a moved or cleared deadline never comes."""
    naive: dict[tuple[TimerKind, str], int] = {}
    timers = Timers()

    for move, kind, key, at_ms in moves:
        if move == "set":
            timers.set(kind, key, at_ms)
            naive[(kind, key)] = at_ms
        elif move == "clear":
            timers.clear(kind, key)
            naive.pop((kind, key), None)
        else:
            first = min(((at, *who) for who, at in naive.items()), default=None)
            due = first[1:] if first is not None and first[0] <= at_ms else None
            assert timers.pop_due(at_ms) == due
            if due is not None:
                del naive[due]
        assert timers.next_ms() == min(naive.values(), default=None)


def test_a_deadline_that_moves_for_ever_does_not_fill_the_heap() -> None:
    """What was moved is swept out in time."""
    timers = Timers()

    for at_ms in range(10_000):
        timers.set(TimerKind.IDLE, "a", at_ms)

    assert len(timers._heap) < 100
    assert timers.pop_due(9_999) == (TimerKind.IDLE, "a")
    assert timers.next_ms() is None
