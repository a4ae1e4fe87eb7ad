"""One Exchange stream over logs of jobs, without a server."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any, cast

from llamaorch.orchestrator.v1 import events_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.core.states import JobState
from orchestrator_core.errors import RefusalError
from orchestrator_core.relay.relay import Relay, RelayLimits
from orchestrator_core.servicers.exchange_session import (
    ExchangeLimits,
    ExchangeSession,
)
from orchestrator_core.servicers.follow import Audience
from orchestrator_core.wire.frames import encode_event
from tests.unit.orchestrator_core.relay.logs import frames

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
        self.session = ExchangeSession(runtime, Audience(runtime), self._wake, limits)
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
