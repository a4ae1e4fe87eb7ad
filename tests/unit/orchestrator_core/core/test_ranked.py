"""The sorted set against a plain sorted list. OC-CORE-1003."""

from bisect import bisect_left, bisect_right, insort

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.core.ranked import RUN_MAX, RankedSet
from tests.unit.orchestrator_core.core.settings import STEADY

MANY = 3 * RUN_MAX
VALUES = st.integers(-5, 4 * MANY)
MOVES = st.lists(st.tuples(st.sampled_from(("add", "remove", "drain")), VALUES), max_size=60)


def assert_equal(ranked: RankedSet, naive: list[int], probes: list[int]) -> None:
    """Every answer of the set is that of the list."""
    assert list(ranked) == naive
    assert len(ranked) == len(naive)
    if naive:
        assert (ranked.first(), ranked.last()) == (naive[0], naive[-1])
    for value in probes:
        assert (value in ranked) == (value in naive)
        assert ranked.rank(value) == bisect_left(naive, value)
        place = bisect_right(naive, value)
        assert ranked.above(value) == (naive[place] if place < len(naive) else None)


@STEADY
@given(
    order=st.sampled_from((1, -1, 7, 5)),
    moves=MOVES,
    probes=st.lists(VALUES, max_size=12),
)
def test_it_behaves_like_a_sorted_list(
    order: int, moves: list[tuple[str, int]], probes: list[int]
) -> None:
    """With more members than one run holds, added in any order and removed again."""
    naive: list[int] = []
    ranked = RankedSet()
    for step in range(MANY):
        value = (step * order) % (4 * MANY) if order > 0 else 4 * MANY - step
        if value not in ranked:
            ranked.add(value)
            insort(naive, value)

    for move, value in moves:
        if move == "drain":
            victims = naive[:RUN_MAX] if value % 2 else naive[-RUN_MAX:]
        elif move == "add" and value not in naive:
            ranked.add(value)
            insort(naive, value)
            continue
        else:
            victims = [value] if value in naive else []
        for victim in victims:
            ranked.remove(victim)
            naive.remove(victim)

    assert_equal(ranked, naive, [*probes, *(value for _, value in moves)])


def test_misuse_is_an_error_and_changes_nothing() -> None:
    """A member is added once and removed once; an empty set has no ends."""
    ranked = RankedSet()
    with pytest.raises(IndexError):
        ranked.first()
    with pytest.raises(KeyError):
        ranked.remove(1)
    ranked.add(1)

    with pytest.raises(ValueError, match="1 is in the set"):
        ranked.add(1)

    assert_equal(ranked, [1], [0, 1, 2])
