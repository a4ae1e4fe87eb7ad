"""What an exchange tells the server about jobs that were read, or were left. LO-306."""

import asyncio
import hashlib
from types import SimpleNamespace

import pytest

from llamaorch.orchestrator.v1 import events_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from llamaorch_client.events import End
from llamaorch_client.exchange import Exchange
from llamaorch_client.exchange_job import ExchangeJob
from llamaorch_client.exchange_link import Asked, Followed, Link
from llamaorch_client.options import ClientOptions

ACCEPTED = pb.ExchangeResult(correlation_id=1, handle=7, enqueued=pb.EnqueueResponse(job_id="j1"))


def _followed() -> tuple[Link, ExchangeJob]:
    """A job under handle 7 whose output may begin."""
    link = Link(Followed({}, asyncio.Event(), lambda _job, _link: None, "c1", acknowledge=True))
    job = ExchangeJob("", 100, link.touch)
    link.asked[1] = Asked(pb.ExchangeRequest(correlation_id=1), None, job)
    link.take(pb.ExchangeResponse(results=[ACCEPTED]))
    return link, job


def _ended() -> tuple[Link, ExchangeJob]:
    """A job whose outcome was received and waits to be read."""
    link, job = _followed()
    end = pb.ExchangeJobEvent(handle=7, event=events_pb2.JobEvent(end=events_pb2.End()))
    link.take(pb.ExchangeResponse(events=[end]))
    return link, job


def _text(text_offset: int = 0) -> bytes:
    """One byte of text; only that at 0 has nothing before it."""
    nothing = int.from_bytes(hashlib.sha256().digest()[:8], "big")
    batch = events_pb2.TokenBatch(
        attempt=1, pieces=["a"], text_offset=text_offset, prefix_digest=nothing
    )
    return batch.SerializeToString()


async def test_an_outcome_is_acknowledged_once_it_was_read() -> None:
    """Only then nobody needs the text any more."""
    link, job = _ended()
    before = link.take_ack()

    event = await anext(job)

    after = link.take_ack()
    assert before is None
    assert isinstance(event, End)
    assert after is not None
    assert list(after.final_handles) == [7]


async def test_a_job_that_was_left_before_its_outcome_was_read_is_not_acknowledged() -> None:
    """Whoever left may come back for the rest of the text."""
    link, job = _ended()

    await job.aclose()

    assert link.take_ack() is None
    with pytest.raises(StopAsyncIteration):
        await anext(job)


async def test_leaving_a_job_of_a_former_stream_acknowledges_no_other() -> None:
    """On the next stream its handle is another's, whose text nobody has read yet. LO-306."""
    former, read = _ended()
    await anext(read)
    former.end()
    link, unread = _ended()
    read._changed = link.touch

    await read.aclose()

    assert link.take_ack() is None
    assert isinstance(await anext(unread), End)


@pytest.mark.parametrize(
    "breaks",
    [
        pb.ExchangeResponse(broken=[pb.ExchangeBroken(handle=7)]),
        pb.ExchangeResponse(tokens=pb.ExchangeTokens(handles=[7], chunks=[_text(text_offset=9)])),
    ],
    ids=["broken", "gap"],
)
async def test_leaving_a_job_that_broke_leaves_no_other(breaks: pb.ExchangeResponse) -> None:
    """On the next stream its handle is another's, which goes on."""
    former, broke = _followed()
    former.take(breaks)
    former.end()
    link, other = _followed()
    broke._changed = link.touch

    await broke.aclose()

    assert link.left == []
    link.take(pb.ExchangeResponse(tokens=pb.ExchangeTokens(handles=[7], chunks=[_text()])))
    assert other.text_offset == 1


class _Interrupted(Exchange):
    """Its caller is cancelled in the step in which the answer comes."""

    async def _ask(
        self, request: pb.ExchangeRequest, job: ExchangeJob | None = None
    ) -> pb.ExchangeResult:
        request.correlation_id = 1
        self._link.asked[1] = Asked(request, None, job)
        self._link.take(pb.ExchangeResponse(results=[ACCEPTED]))
        raise asyncio.CancelledError


async def test_an_answer_that_comes_after_the_next_one_takes_nothing_away() -> None:
    """Asked again after a timeout a job is followed by the answer that comes first."""
    followed: dict[ExchangeJob, None] = {}
    link = Link(Followed(followed, asyncio.Event(), lambda _job, _link: None, "c", True))
    job = ExchangeJob("", 100, link.touch)
    answers = [asyncio.get_running_loop().create_future() for _ in range(2)]
    for number, answer in enumerate(answers, 1):
        asked = pb.ExchangeRequest(correlation_id=number)
        link.asked[number] = Asked(asked, answer, job)
    answers[0].cancel()

    accepted = pb.EnqueueResponse(job_id="j1")
    for number in (2, 1):
        result = pb.ExchangeResult(correlation_id=number, handle=number, enqueued=accepted)
        link.take(pb.ExchangeResponse(results=[result]))

    assert list(followed) == [job]
    assert (job.handle, link.left) == (2, [1])


@pytest.mark.parametrize("method", ["run", "subscribe"])
async def test_a_job_that_nobody_got_is_left(method: str) -> None:
    """Else it was followed, and its output kept, for as long as the exchange is open."""
    transport = SimpleNamespace(options=ClientOptions())
    exchange = _Interrupted(transport)  # type: ignore[arg-type] # all that is asked of it here

    with pytest.raises(asyncio.CancelledError):
        await (
            exchange.run(model_id="m", prompt="p") if method == "run" else exchange.subscribe("j1")
        )

    assert exchange._link.left == [7]
    assert not exchange._open
