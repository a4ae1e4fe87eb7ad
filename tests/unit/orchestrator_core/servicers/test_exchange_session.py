"""What an Exchange stream sends, one rule at a time. LO-306, LO-302."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from llamaorch.orchestrator.v1 import events_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from orchestrator_core.core.events import OutputAcknowledged, SubscribersChanged
from orchestrator_core.core.states import JobState
from orchestrator_core.errors import RefusalError
from orchestrator_core.relay.reader import MESSAGE_BYTES
from orchestrator_core.servicers import subscription
from orchestrator_core.servicers.exchange_session import (
    SHARE_BYTES,
    ExchangeLimits,
)
from orchestrator_core.servicers.subscription import Places, Terms
from tests.unit.orchestrator_core.servicers.session_world import World, ack, event


async def test_a_wake_up_looks_only_at_what_is_ready() -> None:
    """Of many idle jobs none is touched when one has something to send."""
    world = World(jobs=500)
    for number in range(500):
        world.job_with("x", number=number)
        world.session.subscribe(f"job-{number}", Terms())
    world.drain()
    for number in range(1, 500):
        # Whoever looked at an idle job would break here.
        del world.runtime.jobs[f"job-{number}"].state

    world.finish("job-0")
    message = world.pump()

    assert message is not None
    assert [later.handle for later in message.events] == [1]
    assert world.pump() is None


async def test_many_jobs_share_a_message_and_none_fills_it() -> None:
    """A job with a long backlog leaves room for others; messages keep their bound."""
    world = World()
    piece = "y" * 1_000
    long = world.job_with(*[piece] * 200)
    short = world.job_with("short", number=1)
    first, second = (world.session.subscribe(job_id, Terms()) for job_id in (long, short))

    world.pump()
    shared = {first: len(world.text(first)), second: len(world.text(second))}
    world.drain()

    assert shared[second] == 5
    assert shared[first] <= SHARE_BYTES + len(piece)
    assert world.text(first) == piece.encode() * 200
    assert max(world.sizes) <= MESSAGE_BYTES + 2 * len(piece)


async def test_results_come_before_anything_of_their_handle() -> None:
    """Also when the results alone fill the message."""
    world = World()
    job_id = world.job_with("text")
    for number in range(40):
        error = pb.ExchangeResult(correlation_id=number + 1)
        error.error.message = "m" * 3_000
        world.session.answer(error)
    handle = world.session.subscribe(job_id, Terms())
    world.session.answer(pb.ExchangeResult(correlation_id=99, handle=handle))

    first = world.pump()
    before = world.text(handle)
    second = world.pump()

    assert first is not None
    assert second is not None
    assert before == b""
    assert second.results[-1].handle == handle
    assert world.text(handle) == b"text"


async def test_a_place_in_the_queue_is_not_told_before_the_output_it_follows() -> None:
    """A job that goes back to the queue: its output so far, then its place, in two messages."""
    world = World()
    job_id = world.job_with("so far")
    world.runtime.jobs[job_id].state = JobState.QUEUED
    world.session._audience.queued = (  # type: ignore[method-assign]
        lambda _: event(queued=events_pb2.Queued(queue_position=2))
    )
    handle = world.session.subscribe(job_id, Terms())

    world.drain()
    world.session.close()

    kinds = [told.WhichOneof("event") for told in world.got[handle]]
    assert kinds == ["tokens", "queued"]
    assert len(world.sizes) == 2


async def test_closing_counts_every_follower_as_left_once() -> None:
    """Observers never counted; an ended job left when its outcome was sent."""
    world = World()
    job_ids = [world.job_with("x", number=number) for number in range(3)]
    for job_id in job_ids:
        world.session.subscribe(job_id, Terms(observer=job_id == job_ids[2]))
    world.finish(job_ids[0])
    world.drain()

    world.session.close()
    world.session.close()

    counts = [told for told in world.runtime.told if isinstance(told, SubscribersChanged)]
    assert counts == [
        SubscribersChanged("job-0", 1),
        SubscribersChanged("job-1", 1),
        SubscribersChanged("job-0", 0),
        SubscribersChanged("job-1", 0),
    ]


@pytest.mark.parametrize("how", ["observer", "shared"])
async def test_output_is_not_let_go_while_others_may_need_it(how: str) -> None:
    """An observer gives nothing away, and neither does the first of two followers."""
    world = World()
    job_id = world.job_with("kept")
    first = world.session.subscribe(job_id, Terms(observer=how == "observer"))
    if how == "shared":
        world.session.subscribe(job_id, Terms(credit_bytes=0))
    world.finish(job_id)
    world.drain()

    world.session.acknowledge(ack(final_handles=[first]))
    kept = world.runtime.relay.bytes_held

    assert kept > 0
    assert OutputAcknowledged(job_id) not in world.runtime.told


async def test_a_late_acknowledgement_lets_go_of_nothing_of_another_job_of_that_id() -> None:
    """A client may use an id again once its job is forgotten; the stream may be older."""
    world = World()
    handle = world.session.subscribe(world.job_with("first"), Terms())
    world.finish("job-0")
    world.drain()
    world.runtime.relay.forget("job-0")
    world.job_with("second")
    world.finish("job-0")

    taken = world.session.acknowledge(ack(final_handles=[handle]))

    assert taken == 1
    assert world.runtime.relay.log("job-0").bytes_held > 0
    assert OutputAcknowledged("job-0") not in world.runtime.told


async def test_handles_awaiting_their_final_acknowledgement_are_bounded() -> None:
    """The oldest is forgotten; its output then stays until retention ends."""
    world = World(limits=ExchangeLimits(handles_max=2))
    handles = []
    for number in range(3):
        job_id = world.job_with("x", number=number)
        handles.append(world.session.subscribe(job_id, Terms()))
        world.finish(job_id)
        world.drain()

    taken = world.session.acknowledge(ack(final_handles=handles))

    assert taken == 2
    assert [t for t in world.runtime.told if isinstance(t, OutputAcknowledged)] == [
        OutputAcknowledged("job-1"),
        OutputAcknowledged("job-2"),
    ]


async def test_a_wrong_acknowledgement_changes_nothing() -> None:
    """All or nothing: one bad entry leaves the credit of the others as it was."""
    world = World()
    job_id = world.job_with("0123456789")
    handle = world.session.subscribe(job_id, Terms(credit_bytes=0))
    world.drain()

    with pytest.raises(RefusalError) as caught:
        world.session.acknowledge(ack(handles=[handle, 99], credit_bytes=[50, 50]))
    world.drain()

    assert caught.value.refusal.violations[0].field == "ack.handles"
    assert world.text(handle) == b""


async def test_metrics_are_told_once_and_only_the_latest() -> None:
    """What came between two messages is replaced; what was told is not told again."""
    world = World()
    job_id = world.job_with("x")
    log = world.runtime.relay.log(job_id)
    handle = world.session.subscribe(job_id, Terms())

    for depth in (1, 2):
        log.set_metrics(event(metrics=events_pb2.Metrics(queue_depth=depth)))
    world.drain()
    log.wake()
    world.drain()

    told = [e.metrics.queue_depth for e in world.got[handle] if e.HasField("metrics")]
    assert told == [2]


async def test_only_what_all_have_acknowledged_is_dropped_and_never_for_an_observer() -> None:
    """An observer that lags keeps output here, one that has read lets none go."""
    world = World()
    relay = world.runtime.relay
    job_id = world.job_with("0123", "4567")
    watcher = world.session.subscribe(job_id, Terms(observer=True))
    world.drain()
    held = relay.bytes_held

    world.session.acknowledge(ack(handles=[watcher], text_offsets=[8]))
    watched = relay.bytes_held
    first, second = (world.session.subscribe(job_id, Terms()) for _ in range(2))
    world.drain()
    world.session.acknowledge(ack(handles=[first], text_offsets=[8]))
    one = relay.bytes_held
    world.session.acknowledge(ack(handles=[second], text_offsets=[5]))

    assert watched == one == held
    assert relay.log(job_id).oldest_offset == 4
    assert 0 < relay.bytes_held < held


async def test_a_bug_met_by_one_job_ends_the_following_of_that_job_alone() -> None:
    """The others on the stream go on; the caller has an id for the report."""
    world = World()
    broken, whole = world.job_with("one", number=0), world.job_with("two", number=1)
    first = world.session.subscribe(broken, Terms())
    second = world.session.subscribe(whole, Terms())
    reader: Any = SimpleNamespace(lacks=False, offset=0)
    world.session._subscriptions[first].reader = reader

    with structlog.contextvars.bound_contextvars(correlation_id="c-1"), capture_logs() as lines:
        world.drain()

    assert [line["event"] for line in lines] == ["internal_error"]
    assert world.broken.keys() == {first}
    assert "c-1" in str(world.broken[first].error.details)
    assert world.text(second) == b"two"
    assert world.session.following == 1


async def test_places_of_jobs_that_were_left_do_not_pile_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They cost nothing to drop, so they do not count as told."""
    monkeypatch.setattr(subscription, "QUEUED_EVERY_S", 0.0)
    places, told = Places(), asyncio.Event()

    def followed(*, closed: bool) -> Any:
        job = SimpleNamespace(state=JobState.QUEUED)
        return SimpleNamespace(closed=closed, job=job, place_planned=False, wake=told.set)

    for _ in range(10 * subscription.PLACES_AT_ONCE):
        places.plan(followed(closed=True))
    places.plan(followed(closed=False))
    looks = 0
    look = places._look

    def counted() -> None:
        nonlocal looks
        looks += 1
        look()

    places._look = counted  # type: ignore[method-assign]
    places._look()
    async with asyncio.timeout(20):
        await told.wait()
    places.close()

    assert (looks, len(places._planned)) == (1, 0)
