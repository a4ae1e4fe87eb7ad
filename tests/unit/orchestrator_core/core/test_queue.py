"""The queue against a plain list. LO-101, OC-CORE-1003, ORCH-3004, ORCH-3008."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.core.job import Job
from orchestrator_core.core.queue import Queue
from orchestrator_core.core.spec import Priority, Shape
from tests.unit.orchestrator_core.core.build import job
from tests.unit.orchestrator_core.core.settings import STEADY

MOVES = st.lists(
    st.tuples(
        st.sampled_from(("add", "add", "retry", "remove")),
        st.booleans(),
        st.sampled_from("mn"),
        st.integers(0, 1_000),
    ),
    max_size=80,
)


def assert_equal(queue: Queue, naive: list[Job]) -> None:
    """Every answer of the queue is that of a list in order of arrival."""
    assert len(queue) == len(naive)
    for priority in Priority:
        mine = [j for j in naive if j.spec.priority is priority]
        untried = [j for j in mine if not j.attempts_made]
        assert queue.depth(priority) == len(mine)
        assert queue.snapshot(priority) == tuple(j.job_id for j in mine)
        assert list(queue.waiting(priority)) == mine
        assert queue.last(priority) is (mine[-1] if mine else None)
        assert queue.oldest(priority) is (untried[0] if untried else None)
        assert queue.newest(priority) is (untried[-1] if untried else None)
    for waiting in naive:
        ahead = [
            j
            for j in naive
            if j.spec.needs == waiting.spec.needs
            and (j.spec.priority, j.seq) < (waiting.spec.priority, waiting.seq)
        ]
        assert queue.position(waiting) == len(ahead) + 1
        assert queue.job(waiting.seq) is waiting
    lanes = {(j.spec.priority, j.spec.needs) for j in naive}
    assert {(lane.priority, lane.needs) for lane in queue.lanes} == lanes
    assert all(queue.has_lane(j.spec) for j in naive)
    assert not queue.has_lane(job(0, model="never asked for").spec)
    for model in "mn":
        mine = [j for j in naive if j.spec.needs.model_id == model]
        assert queue.waiting_for_model(model) == len(mine)
        if mine:
            mean = queue.mean_shape(model)
            assert mean is not None
            assert mean.output_tokens == sum(j.shape.output_tokens for j in mine) / len(mine)
            assert mean.prompt_tokens == sum(j.shape.prompt_tokens for j in mine) / len(mine)
        for waiting in mine:
            before = (waiting.spec.priority, waiting.seq)
            ahead = [j for j in mine if (j.spec.priority, j.seq) < before]
            assert queue.place_in_line(waiting.spec, waiting.seq) == len(ahead) + 1


@STEADY
@given(MOVES)
def test_it_behaves_like_a_list_in_order_of_arrival(
    moves: list[tuple[str, bool, str, int]],
) -> None:
    """A retry comes back at its old place and is passed by when somebody must go."""
    queue, naive, away = Queue(), list[Job](), list[Job]()

    for seq, (move, batch, model, pick) in enumerate(moves):
        if move == "add":
            newcomer = job(seq, batch=batch, model=model)
            newcomer.shape = Shape(float(pick), float(3 * pick))
            queue.add(newcomer)
            naive.append(newcomer)
        elif move == "retry" and away:
            back = away.pop(pick % len(away))
            back.attempts_made += 1
            queue.add(back)
            naive = sorted([*naive, back], key=lambda j: j.seq)
        elif move == "remove" and naive:
            gone = naive.pop(pick % len(naive))
            queue.remove(gone)
            away.append(gone)
        assert_equal(queue, naive)


def test_who_does_not_wait_cannot_be_removed() -> None:
    """Taking a job out twice is a bug of the caller."""
    queue = Queue()
    waiting = job(1)
    queue.add(waiting)
    queue.remove(waiting)

    with pytest.raises(KeyError):
        queue.remove(waiting)


@STEADY
@given(st.lists(st.tuples(st.booleans(), st.sampled_from(("m", "n"))), max_size=30))
def test_the_position_of_a_newcomer_is_the_one_that_it_gets(added: list[tuple[bool, str]]) -> None:
    """What is foretold before a job is let in holds the moment it is."""
    queue = Queue()
    for seq, (batch, model) in enumerate(added):
        newcomer = job(seq, batch=batch, model=model)
        foretold = queue.position_of_newcomer(newcomer.spec)

        queue.add(newcomer)

        assert queue.position(newcomer) == foretold
