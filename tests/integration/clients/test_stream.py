"""Contract of following a job: verified output, resumed through any break."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    NotFoundError,
    Queued,
    Resumed,
    ResumeMode,
    ResumePoint,
    ResumeWindowError,
    RetryOptions,
    Started,
    StreamOptions,
    Tokens,
    UnavailableError,
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


def _holder(
    pieces: Sequence[str], cuts: Sequence[tuple[int, int]], breaks: Sequence[Failure | None]
) -> Callable[[Any], Sequence[Step]]:
    """A server that holds `pieces`; its n-th call sends what the n-th cut says, then breaks.

    A cut is (pieces sent again, pieces sent anew). It checks that the client proves what it has.
    """
    text = "".join(pieces)
    left = list(zip(cuts, breaks, strict=True))

    def reply(request: Any) -> Sequence[Step]:
        have = request.resume_from.text_offset
        before = text.encode()[:have].decode()
        assert not have or request.resume_from.prefix_digest == wire.digest(before)
        begin = 0
        while len("".join(pieces[:begin]).encode()) < have:
            begin += 1
        if not left:
            rest = [
                [wire.tokens("".join(pieces[:i]), [pieces[i]], i)]
                for i in range(begin, len(pieces))
            ]
            return [[wire.started()], *rest, [wire.end(text)]]
        (again, anew), how = left.pop(0)
        first = max(0, begin - again)
        batch = pieces[first : begin + anew]
        steps: list[Step] = [[wire.started()]]
        if batch:
            steps.append([wire.tokens("".join(pieces[:first]), batch, first)])
        return [*steps, *([how] if how is not None else [])]

    return reply


PIECES = st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=12)
CUTS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=6)


@given(pieces=PIECES, cuts=CUTS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_text_is_exact_through_any_breaks_chunkings_and_repetitions(
    pieces: list[str], cuts: list[tuple[int, int]], data: st.DataObject
) -> None:
    """LO-301: wherever the stream is cut and whatever is repeated, no byte is lost or doubled."""
    breaks = [data.draw(st.sampled_from([LOST, None])) for _ in cuts]

    async def scenario() -> tuple[str, list[int], list[str]]:
        async with ScriptedServer() as server:
            server.on("StreamTokens", _holder(pieces, cuts, breaks))
            options = ClientOptions(timing=FakeTime().timing)
            async with AsyncClient(server.address, options=options) as client:
                events = [event async for event in client.stream("job-1")]
            batches = [event for event in events if isinstance(event, Tokens)]
            ends = [event for event in events if isinstance(event, End)]
            assert len(ends) == 1
            assert events[-1] is ends[0]
            indexes = [event.first_index for event in batches]
            return (
                "".join(event.text for event in batches),
                indexes,
                [piece for event in batches for piece in event.pieces],
            )

    text, indexes, received = asyncio.run(scenario())

    assert text == "".join(pieces)
    assert received == pieces
    assert indexes == sorted(set(indexes))


async def test_a_break_at_every_byte_of_a_message_is_resumed_from_there(
    server: ScriptedServer, client: AsyncClient, clock: FakeTime
) -> None:
    """LO-301: one break after each piece; every resume names offset and digest in bytes."""
    pieces = ["a", "ß", "€", "𝄞", "z"]
    server.on("StreamTokens", _holder(pieces, [(0, 1)] * 5, [LOST] * 5))

    result = await client.stream("job-1").result()

    assert result.text == "aß€𝄞z"
    points = [call.request.resume_from for call in server.made("StreamTokens")]
    assert [point.text_offset for point in points] == [0, 1, 3, 6, 10, 11]
    assert [point.prefix_digest for point in points[1:]] == [
        wire.digest("aß€𝄞z"[:count]) for count in range(1, 6)
    ]
    assert len(clock.sleeps_ms) == 5


async def test_a_repetition_that_cuts_a_piece_keeps_the_rest_of_it(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """LO-301: another chunking after a resume is trimmed by bytes, not by pieces."""
    server.on(
        "StreamTokens",
        [[wire.tokens("", ["abc"])], LOST],
        [[wire.tokens("a", ["bcde", "f"], 1)], [wire.end("abcdef")]],
    )

    events = [event async for event in client.stream("job-1")]

    batches = [event for event in events if isinstance(event, Tokens)]
    assert [event.pieces for event in batches] == [("abc",), ("de", "f")]


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


async def test_a_reader_goes_on_from_text_it_kept(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """LO-301: another process resumes with the text, and the chain of digests goes on from it."""
    server.on("StreamTokens", [[wire.tokens("für", [" Elise"], 4, 2)], [wire.end("für Elise")]])

    result = await client.stream(
        "job-1", ResumePoint(attempt=2, text="für"), observer=True
    ).result()

    assert result.text == "für Elise"
    request = server.made("StreamTokens")[0].request
    assert (request.resume_from.attempt, request.resume_from.text_offset) == (2, 4)
    assert request.resume_from.prefix_digest == wire.digest("für")
    assert request.observer


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (Failure(grpc.StatusCode.NOT_FOUND, "NOT_FOUND", "no such job"), NotFoundError),
        (
            Failure(
                grpc.StatusCode.OUT_OF_RANGE,
                "RESUME_WINDOW",
                "no longer held",
                {"oldest_offset": "70"},
            ),
            ResumeWindowError,
        ),
    ],
)
async def test_a_refused_stream_is_not_resumed(
    server: ScriptedServer, client: AsyncClient, failure: Failure, kind: type[Exception]
) -> None:
    """What cannot succeed later is raised at once."""
    server.on("StreamTokens", failure)

    with pytest.raises(kind) as caught:
        await client.stream("job-1").result()

    assert len(server.made("StreamTokens")) == 1
    if isinstance(caught.value, ResumeWindowError):
        assert caught.value.oldest_offset == 70


async def test_resumes_without_progress_are_bounded(
    server: ScriptedServer, clock: FakeTime
) -> None:
    """A server that only breaks is given up after the stated number of calls."""
    server.on("StreamTokens", LOST)
    retry = RetryOptions(attempts_max=4)
    options = ClientOptions(timing=clock.timing, stream=StreamOptions(retry=retry))

    async with AsyncClient(server.address, options=options) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.stream("job-1").result()

    assert (len(server.made("StreamTokens")), caught.value.attempts) == (4, 4)
    assert clock.sleeps_ms == [50, 100, 200]


async def test_a_server_that_keeps_closing_is_given_up_by_time(
    server: ScriptedServer, clock: FakeTime
) -> None:
    """Closes without an outcome count as breaks; the time without progress is bounded too."""
    server.on("StreamTokens", [[]])
    retry = RetryOptions(attempts_max=1000, time_max_ms=1_000, backoff_max_ms=400)
    options = ClientOptions(timing=clock.timing, stream=StreamOptions(retry=retry))

    async with AsyncClient(server.address, options=options) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.stream("job-1").result()

    assert caught.value.reason == "STREAM_CLOSED"
    assert 0 < sum(clock.sleeps_ms) <= 1_000


async def test_progress_begins_a_new_row_of_resumes_and_the_total_is_bounded(
    server: ScriptedServer, clock: FakeTime
) -> None:
    """A long job may break often; a server that sends a byte per call cannot go on for ever."""
    text = "x" * 100
    server.on("StreamTokens", _holder(list(text), [(0, 1)] * 50, [LOST] * 50))
    retry = RetryOptions(attempts_max=2)
    options = ClientOptions(timing=clock.timing, stream=StreamOptions(retry=retry, resumes_max=10))

    async with AsyncClient(server.address, options=options) as client:
        stream = client.stream("job-1")
        with pytest.raises(UnavailableError):
            await stream.result()

    assert (stream.text_offset, stream.resumes) == (11, 11)


async def test_a_long_silence_before_a_break_does_not_use_up_the_time_for_resuming(
    server: ScriptedServer, client: AsyncClient, clock: FakeTime
) -> None:
    """LO-301: a job that waited an hour without news is resumed as any other."""

    def silent(request: Any) -> Sequence[Step]:
        clock.pass_ms(3_600_000)
        return [LOST]

    server.on("StreamTokens", silent, silent, [[wire.end("")]])

    result = await client.stream("job-1").result()

    assert (result.text, len(clock.sleeps_ms)) == ("", 2)


async def test_an_unreachable_server_is_reported_under_the_callers_id(
    unused_address: str, clock: FakeTime
) -> None:
    """HME-030: where no server answered, the id that was sent is the one to look for."""
    retry = RetryOptions(attempts_max=2)
    options = ClientOptions(timing=clock.timing, stream=StreamOptions(retry=retry))

    async with AsyncClient(unused_address, options=options) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.stream("job-1", correlation_id="mine-2").result()

    assert caught.value.correlation_id == "mine-2"


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


async def test_a_stream_that_the_server_sheds_is_resumed(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """A CANCELLED that the caller did not ask for is a break, not the caller's cancellation."""
    shed = Failure(grpc.StatusCode.CANCELLED, message="shed")
    server.on("StreamTokens", shed, [[wire.end("")]])

    result = await client.stream("job-1").result()

    assert result.text == ""


async def test_a_server_that_restarts_is_found_again(server: ScriptedServer) -> None:
    """LO-305: the connection dies with the server; its successor is asked to go on."""
    server.on("StreamTokens", [[wire.tokens("", ["before "])], Hang()])
    text = "before after"

    async with AsyncClient(server.address) as client, client.stream("job-1") as stream:
        first = await anext(stream)
        await server.stop()
        async with ScriptedServer(server.port) as successor:
            successor.on("StreamTokens", [[wire.tokens("before ", ["after"], 1), wire.end(text)]])
            rest = [event async for event in stream]

    assert isinstance(first, Tokens)
    assert [type(event) for event in rest] == [Tokens, End]
    assert successor.made("StreamTokens")[0].request.resume_from.text_offset == 7
