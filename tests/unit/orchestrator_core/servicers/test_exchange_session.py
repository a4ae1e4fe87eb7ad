"""What an Exchange stream sends, against a plain list of what each job told. LO-306, LO-302."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from llamaorch.orchestrator.v1 import events_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from orchestrator_core.core.events import OutputAcknowledged, SubscribersChanged
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.core.states import JobState
from orchestrator_core.errors import RefusalError
from orchestrator_core.relay.items import Frame
from orchestrator_core.relay.reader import MESSAGE_BYTES
from orchestrator_core.relay.relay import Relay, RelayLimits
from orchestrator_core.servicers import subscription
from orchestrator_core.servicers.exchange_session import (
    SHARE_BYTES,
    ExchangeLimits,
    ExchangeSession,
)
from orchestrator_core.servicers.follow import Followers
from orchestrator_core.servicers.subscription import Places, Terms
from orchestrator_core.wire.frames import encode_event
from tests.unit.orchestrator_core.relay.test_log import digest, frames

JOBS = 3


def event(**fields: Any) -> bytes:
    """An encoded entry."""
    return encode_event(events_pb2.JobEvent(**fields))


class FakeRuntime:
    """What a session uses of the runtime; keeps what the core would be told."""

    def __init__(self, jobs: int) -> None:
        self.relay = Relay(RelayLimits())
        self.jobs = {
            f"job-{n}": SimpleNamespace(job_id=f"job-{n}", state=JobState.RUNNING)
            for n in range(jobs)
        }
        self.told: list[object] = []

    def job(self, job_id: str) -> object:
        """As the runtime."""
        if job_id not in self.jobs:
            raise RefusalError(Refusal(Reason.NOT_FOUND, "unknown", resource=job_id))
        return self.jobs[job_id]

    async def settled(self, job_id: str) -> None:
        """Everything is durable."""

    def submit(self, told: object) -> None:
        """Records an event of the core."""
        self.told.append(told)


class World:
    """A session, and a client that applies each message as the contract says."""

    def __init__(self, jobs: int = JOBS, limits: ExchangeLimits | None = None) -> None:
        self.runtime = FakeRuntime(jobs)
        self.wakes = 0
        runtime = cast("Any", self.runtime)
        self.session = ExchangeSession(runtime, Followers(runtime), self._wake, limits)
        self.got: dict[int, list[events_pb2.JobEvent]] = defaultdict(list)
        self.broken: dict[int, pb.ExchangeBroken] = {}
        self.sizes: list[int] = []

    def _wake(self, *, urgent: bool) -> None:
        self.wakes += 1

    def pump(self) -> pb.ExchangeResponse | None:
        """Takes one message; None when there is none."""
        data = self.session.next_message()
        if not data:
            return None
        self.sizes.append(len(data))
        message = pb.ExchangeResponse.FromString(data)
        for begun in message.begun:
            self.got[begun.handle].append(begun.event)
        columns = message.tokens
        for handle, index, chunk in zip(
            columns.handles, columns.first_indexes, columns.chunks, strict=True
        ):
            batch = events_pb2.TokenBatch.FromString(chunk)
            assert batch.first_index == index
            self.got[handle].append(events_pb2.JobEvent(tokens=batch))
        for later in message.events:
            self.got[later.handle].append(later.event)
        for broken in message.broken:
            self.broken[broken.handle] = broken
        return message

    def drain(self) -> None:
        """Takes all that can be taken now."""
        while self.pump() is not None or self.session.has_more:
            pass

    def text(self, handle: int) -> bytes:
        """Output that a handle brought."""
        return b"".join(text_of(event) for event in self.got[handle])

    def job_with(self, *texts: str, number: int = 0) -> str:
        """A job with so much output; returns its id."""
        job_id = f"job-{number}"
        self.runtime.relay.log(job_id).begin_attempt(1)
        for frame in frames([[text] for text in texts]):
            assert self.runtime.relay.append_text(job_id, frame)
        return job_id

    def finish(self, job_id: str) -> None:
        """The job ends after what it produced."""
        offset = self.runtime.relay.log(job_id).next_offset
        self.runtime.jobs[job_id].state = JobState.FINISHED
        self.runtime.relay.finish(job_id, event(end=events_pb2.End(text_bytes=offset)), offset)


def text_of(told: events_pb2.JobEvent) -> bytes:
    """Text of an event."""
    return "".join(told.tokens.pieces).encode()


def ack(**columns: Any) -> pb.ExchangeAck:
    """An acknowledgement."""
    return pb.ExchangeAck(**columns)


Told = tuple[str, int, int, bytes]
"""Kind, attempt, text before it in bytes, its text."""


def told_of(raw: events_pb2.JobEvent, offset: int) -> Told:
    """An event as the model writes it."""
    kind = raw.WhichOneof("event") or ""
    attempt = raw.started.attempt or raw.resumed.attempt
    return kind, attempt, offset, text_of(raw)


@dataclass
class Script:
    """One job: what its host will send, how much of it was sent, and the whole truth about it."""

    job_id: str
    steps: list[Frame | bytes]
    truth: list[Told]
    done: int = 0

    @classmethod
    def of(cls, job_id: str, batches: list[list[str]], breaks_at: int) -> "Script":
        """Output in one attempt, or in two with a replay from one batch on."""
        steps: list[Frame | bytes] = [event(started=events_pb2.Started(attempt=1))]
        truth: list[Told] = [("started", 1, 0, b"")]
        offset = 0
        for number, frame in enumerate(frames(batches)):
            attempt = 1 if number < breaks_at else 2
            if number == breaks_at and number:
                steps.append(event(resumed=events_pb2.Resumed(attempt=2)))
                truth.append(("resumed", 2, offset, b""))
            steps.append(replace(frame, attempt=attempt if number else 1))
            text = "".join(batches[number]).encode()
            truth.append(("tokens", 0, offset, text))
            offset += len(text)
        truth.append(("end", 0, offset, b""))
        return cls(job_id, steps, truth)


@dataclass
class Model:
    """What a follower may expect, said the plain way."""

    script: Script
    since: int
    attempt: int
    limit: float
    observer: bool
    left: bool = False
    acked: int = 0
    seen: int = 0
    offset: int = field(init=False)

    def __post_init__(self) -> None:
        self.offset = self.acked = self.since

    def expected(self) -> list[Told]:
        """Everything of the job that lies behind where it began."""
        return [
            told
            for told in self.script.truth
            if told[2] + len(told[3]) > self.since
            or told[0] == "end"
            or (not told[3] and told[2] == self.since and told[1] > self.attempt)
        ]


class Play:
    """Random orders of what hosts and clients do, checked at each message."""

    def __init__(self, data: st.DataObject, scripts: list[Script]) -> None:
        self.data = data
        self.world = World()
        self.scripts = scripts
        self.models: dict[int, Model] = {}
        self.dropped: dict[str, int] = defaultdict(int)

    def pick(self, low: int, high: int) -> int:
        """A number that hypothesis chooses."""
        return self.data.draw(st.integers(low, high))

    def host(self, script: Script) -> None:
        """A host sends the next thing of a job."""
        relay = self.world.runtime.relay
        if script.done < len(script.steps):
            step = script.steps[script.done]
            if isinstance(step, Frame):
                relay.log(script.job_id).begin_attempt(step.attempt)
                assert relay.append_text(script.job_id, step)
            else:
                attempt = 1 if script.done == 0 else 2
                relay.log(script.job_id).begin_attempt(attempt)
                relay.append_event(script.job_id, step)
        elif script.done == len(script.steps):
            self.world.finish(script.job_id)
        script.done += 1

    def subscribe(self, script: Script) -> None:
        """A client follows from the beginning or from a batch that it has."""
        log = self.world.runtime.relay.log(script.job_id)
        here = [told for told in script.truth if told[0] == "tokens"]
        since, attempt, resume = 0, -1, None
        if here and self.pick(0, 1):
            told = here[self.pick(0, len(here) - 1)]
            since, text = told[2] + len(told[3]), b"".join(t[3] for t in here)
            if since > log.next_offset:
                return
            attempt = self.attempt_of(script, told)
            resume = events_pb2.ResumePoint(
                attempt=attempt, text_offset=since, prefix_digest=digest(text[:since])
            )
        credit = self.pick(0, 20) if self.pick(0, 1) else None
        observer = bool(self.pick(0, 1))
        terms = Terms(resume, credit, observer)
        if since < log.oldest_offset:
            # Its host has to send it again, which is played elsewhere.
            assert log.oldest_offset <= self.dropped[script.job_id]
            return
        handle = self.world.session.subscribe(script.job_id, terms)
        limit = float("inf") if credit is None else since + credit
        self.models[handle] = Model(script, since, attempt, limit, observer)

    @staticmethod
    def attempt_of(script: Script, told: Told) -> int:
        """Attempt of a batch."""
        before = script.truth[: script.truth.index(told)]
        return 2 if any(kind == "resumed" for kind, *_ in before) else 1

    def client(self) -> None:
        """A client acknowledges, gives credit or leaves."""
        open_now = [h for h, m in self.models.items() if not m.left and not self.over(h)]
        if not open_now:
            return
        handle = open_now[self.pick(0, len(open_now) - 1)]
        model = self.models[handle]
        if self.pick(0, 5) == 0:
            self.world.session.unsubscribe(handle)
            model.left = True
            return
        offset, credit = self.pick(0, model.offset), self.pick(0, 9)
        self.world.session.acknowledge(
            ack(handles=[handle], text_offsets=[offset], credit_bytes=[credit])
        )
        model.limit += credit
        moved = offset > model.acked
        model.acked = max(model.acked, offset)
        if moved and not model.observer:
            peers = [self.models[h] for h in open_now if self.models[h].script is model.script]
            least = min(peer.acked for peer in peers)
            job_id = model.script.job_id
            self.dropped[job_id] = max(self.dropped[job_id], least)

    def over(self, handle: int) -> bool:
        """The job's outcome was received."""
        return any(told.WhichOneof("event") == "end" for told in self.world.got[handle])

    def read(self) -> bool:
        """The client reads one message; each job's part must be what comes next."""
        message = self.world.pump()
        for handle, model in self.models.items():
            for raw in self.world.got[handle][model.seen :]:
                model.seen += 1
                kind = raw.WhichOneof("event")
                if kind == "metrics":
                    continue
                assert not model.left, "nothing comes after leaving"
                if kind == "tokens":
                    assert model.offset < model.limit, "output without credit"
                    model.offset = raw.tokens.text_offset + len(text_of(raw))
        return message is not None

    def finish(self) -> None:
        """Everything comes to its end, and everybody has got exactly what was theirs."""
        for script in self.scripts:
            while script.done <= len(script.steps):
                self.host(script)
        credit = self.pick(0, 1)
        for handle, model in self.models.items():
            model.limit = float("inf")
            if credit and not model.left and not self.over(handle):
                self.world.session.acknowledge(ack(handles=[handle], credit_bytes=[1_000]))
        if not credit:
            self.world.session.lift_credit()
        while self.read() or self.world.session.has_more:
            pass
        for handle, model in self.models.items():
            assert handle not in self.world.broken
            got = self.got(handle)
            assert got == model.expected()[: len(got)] if model.left else model.expected()
            assert model.left or got[-1][0] == "end"

    def got(self, handle: int) -> list[Told]:
        """What a handle brought, as the model writes it."""
        model, told = self.models[handle], []
        offset = model.since
        for raw in self.world.got[handle]:
            if raw.WhichOneof("event") == "metrics":
                continue
            told.append(told_of(raw, offset))
            offset += len(text_of(raw))
        return told


texts = st.lists(st.text("abcé", min_size=1, max_size=6), min_size=1, max_size=2)


@settings(deadline=None)
@given(
    st.data(),
    st.lists(
        st.tuples(st.lists(texts, max_size=5), st.integers(1, 5)), min_size=JOBS, max_size=JOBS
    ),
)
def test_any_order_of_frames_credit_and_acks_gives_each_follower_its_events(
    data: st.DataObject, jobs: list[tuple[list[list[str]], int]]
) -> None:
    """In order, once, within credit, and nothing is dropped that somebody still needs."""
    scripts = [Script.of(f"job-{n}", *job) for n, job in enumerate(jobs)]
    play = Play(data, scripts)

    for _ in range(play.pick(0, 40)):
        match play.pick(0, 5):
            case 0 | 1:
                play.host(scripts[play.pick(0, JOBS - 1)])
            case 2:
                play.subscribe(scripts[play.pick(0, JOBS - 1)])
            case 3:
                play.client()
            case 4:
                play.world.runtime.relay.log(f"job-{play.pick(0, 2)}").set_metrics(
                    event(metrics=events_pb2.Metrics(queue_depth=1))
                )
            case _:
                play.read()

    play.finish()


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
    world.session._followers.queued = (  # type: ignore[method-assign]
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
    async with asyncio.timeout(5):
        await told.wait()
    places.close()

    assert (looks, len(places._planned)) == (1, 0)
