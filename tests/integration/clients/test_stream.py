"""Contract of following a job: verified output, resumed through any break."""

import grpc
import pytest

from llamaorch.orchestrator.v1 import events_pb2, job_pb2
from llamaorch_client import (
    AsyncClient,
    ClientOptions,
    End,
    Failed,
    FinishReason,
    IntegrityError,
    JobFailedError,
    JobState,
    Queued,
    Resumed,
    ResumeMode,
    Started,
    StreamOptions,
    Tokens,
    Usage,
)
from tests.integration.clients import scripted_server as wire
from tests.integration.clients.fake_time import FakeTime
from tests.integration.clients.scripted_server import Failure, Hang, ScriptedServer, Step

LOST = Failure(grpc.StatusCode.UNAVAILABLE, message="connection reset")


async def test_events_arrive_in_order_and_the_text_is_whole(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """ORCH-2002, ORCH-3029: queued, started, tokens, end, each as its own type."""
    server.on(
        "StreamTokens",
        [
            [wire.queued(3)],
            [wire.started()],
            [wire.tokens("", ["He", "llo"]), wire.tokens("Hello", [" Wörld"], 2)],
            [wire.end("Hello Wörld")],
        ],
    )

    events = [event async for event in client.stream("job-1")]

    assert [type(event) for event in events] == [Queued, Started, Tokens, Tokens, End]
    assert "".join(event.text for event in events if isinstance(event, Tokens)) == "Hello Wörld"
    assert events[-1] == End(
        state=JobState.FINISHED,
        finish_reason=FinishReason.EOS,
        usage=Usage(tokens_in=3, tokens_out=5, first_token_ms=20, decode_time_ms=100),
        text_bytes=12,
    )
    assert not server.made("StreamTokens")[0].request.HasField("resume_from")


async def test_a_wrong_digest_is_an_integrity_error(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """LO-301: a server that has other text before this batch is not believed."""
    server.on("StreamTokens", [[wire.tokens("", ["abc"])], [wire.tokens("xyz", ["def"], 1)]])

    with pytest.raises(IntegrityError, match="differs from the server's"):
        await client.stream("job-1").result()

    assert len(server.made("StreamTokens")) == 1


async def test_a_gap_is_an_integrity_error(server: ScriptedServer, client: AsyncClient) -> None:
    """LO-301: output that skips bytes is an error, not a shorter text."""
    server.on("StreamTokens", [[wire.tokens("", ["abc"])], [wire.tokens("abcdef", ["g"], 2)]])

    with pytest.raises(IntegrityError, match="3 bytes received, the next batch begins at 6"):
        await client.stream("job-1").result()


async def test_repeated_output_that_differs_is_an_integrity_error(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """LO-304: a repetition is compared, so two attempts' texts never mix."""
    server.on("StreamTokens", [[wire.tokens("", ["abc"])], [wire.tokens("", ["aXcd"], 0)]])

    with pytest.raises(IntegrityError, match="repeated output from byte 0 differs"):
        await client.stream("job-1").result()


@pytest.mark.parametrize(
    ("claimed", "told"),
    [
        ("abcd", "ended with 4 bytes of output, 3 were received"),
        ("ab", "ended with 2 bytes of output, 3 were received"),
        ("xyz", "the whole output differs"),
    ],
)
async def test_an_end_that_does_not_fit_the_text_is_an_integrity_error(
    server: ScriptedServer, client: AsyncClient, claimed: str, told: str
) -> None:
    """LO-301: the outcome proves the whole text by length and digest."""
    server.on("StreamTokens", [[wire.tokens("", ["abc"])], [wire.end(claimed)]])

    with pytest.raises(IntegrityError, match=told):
        await client.stream("job-1").result()


@pytest.mark.parametrize("apart", [True, False], ids=["own message", "same message"])
async def test_an_event_after_the_outcome_is_an_integrity_error(
    server: ScriptedServer, client: AsyncClient, apart: bool
) -> None:
    """ORCH-3026: nothing follows the terminal event, in its message or in a later one."""
    late = wire.tokens("", ["late"])
    steps: list[Step] = [[wire.end("")], [late]] if apart else [[wire.end(""), late]]
    server.on("StreamTokens", steps)

    stream = client.stream("job-1")
    first = await anext(stream)
    with pytest.raises(IntegrityError, match="`tokens` after the job's outcome"):
        await anext(stream)

    assert isinstance(first, End)


async def test_the_outcome_ends_the_stream_even_when_the_call_stays_open(
    server: ScriptedServer, clock: FakeTime
) -> None:
    """A server that is slow to close costs a bounded wait."""
    server.on("StreamTokens", [[wire.end("")], Hang()])
    options = ClientOptions(timing=clock.timing, stream=StreamOptions(close_wait_ms=20))

    async with AsyncClient(server.address, options=options) as client:
        events = [event async for event in client.stream("job-1")]

    assert [type(event) for event in events] == [End]


async def test_output_of_an_older_attempt_is_an_integrity_error(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """LO-304: attempts never mix."""
    server.on(
        "StreamTokens",
        [[wire.tokens("", ["a"], attempt=2)], [wire.tokens("a", ["b"], 1, attempt=1)]],
    )

    with pytest.raises(IntegrityError, match="attempt 1 sent new output after attempt 2"):
        await client.stream("job-1").result()


async def test_a_later_attempt_goes_on_and_is_announced_once(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """LO-304: after a failover and a reconnect the reader sees one `resumed` and one text."""
    resumed = events_pb2.JobEvent(
        resumed=events_pb2.Resumed(
            attempt=2, mode=events_pb2.RESUME_MODE_VERIFIED_REPLAY, text_offset=2
        )
    )
    server.on(
        "StreamTokens",
        [[wire.started(), wire.tokens("", ["ab"]), resumed, wire.tokens("ab", ["c"], 1, 2)], LOST],
        [[wire.started(), resumed, wire.tokens("abc", ["d"], 2, 2)], [wire.end("abcd")]],
    )

    events = [event async for event in client.stream("job-1")]

    assert [type(event) for event in events] == [Started, Tokens, Resumed, Tokens, Tokens, End]
    assert [e.mode for e in events if isinstance(e, Resumed)] == [ResumeMode.VERIFIED_REPLAY]
    assert server.made("StreamTokens")[1].request.resume_from.attempt == 2


async def test_an_attempt_that_takes_back_output_is_an_integrity_error(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """LO-304: what was delivered stands."""
    resumed = events_pb2.JobEvent(
        resumed=events_pb2.Resumed(attempt=2, mode=events_pb2.RESUME_MODE_CONTINUE, text_offset=1)
    )
    server.on("StreamTokens", [[wire.tokens("", ["ab"]), resumed]])

    with pytest.raises(IntegrityError, match="takes back output"):
        await client.stream("job-1").result()


async def test_unknown_events_are_ignored(server: ScriptedServer, client: AsyncClient) -> None:
    """An event of a newer server is skipped, its neighbours are not."""
    unknown = events_pb2.JobEvent()
    unknown.MergeFromString(bytes([0xFA, 0x06, 0x00]))
    server.on("StreamTokens", [[wire.tokens("", ["a"]), unknown, wire.end("a")]])

    result = await client.stream("job-1").result()

    assert result.text == "a"


async def test_a_failed_job_raises_its_outcome(server: ScriptedServer, client: AsyncClient) -> None:
    """The job's error is the stream's error, with reason and job."""
    outcome = Failure(grpc.StatusCode.ABORTED, "WORKER_RESET", "the engine died", {"pool_id": "p"})
    server.on("StreamTokens", [[wire.tokens("", ["a"])], [wire.failed(outcome)]])

    with pytest.raises(JobFailedError) as caught:
        await client.stream("job-1").result()

    assert (caught.value.reason, caught.value.job_id) == ("WORKER_RESET", "job-1")
    assert caught.value.metadata == {"pool_id": "p"}


async def test_a_failed_job_is_an_event_when_asked_for(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """Callers that treat failure as data get it as data."""
    outcome = Failure(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE")
    server.on("StreamTokens", [[wire.failed(outcome)]])

    events = [event async for event in client.stream("job-1", failures_as_events=True)]

    assert [e.error.reason for e in events if isinstance(e, Failed)] == ["DEADLINE"]
    assert len(events) == 1


async def test_a_cancelled_job_ends_regularly(server: ScriptedServer, client: AsyncClient) -> None:
    """ORCH-3026: a cancel is an outcome, not an error."""
    server.on(
        "StreamTokens",
        [[wire.tokens("", ["a"])], [wire.end("a", job_pb2.JOB_STATE_CANCELLED)]],
    )

    result = await client.stream("job-1").result()

    assert (result.text, result.end.state) == ("a", JobState.CANCELLED)


async def test_a_stream_gives_its_result_once(server: ScriptedServer, client: AsyncClient) -> None:
    """A second reading says so instead of giving an empty text."""
    server.on("StreamTokens", [[wire.end("")]])
    stream = client.stream("job-1")
    await stream.result()

    with pytest.raises(RuntimeError, match="already read"):
        await stream.result()


async def test_leaving_early_ends_the_call_and_not_the_job(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """Detaching closes the call; nothing is cancelled."""
    server.on("StreamTokens", [[wire.started()], Hang()])

    async with client.stream("job-1") as stream:
        first = await anext(stream)

    await server.client_left.wait()
    assert isinstance(first, Started)
    assert [call.method for call in server.calls] == ["StreamTokens"]
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
