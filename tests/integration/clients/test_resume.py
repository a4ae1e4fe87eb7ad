"""Contract of resuming a stream: through any break, to the exact text, within bounds."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaorch_client import (
    AsyncClient,
    ClientOptions,
    End,
    NotFoundError,
    ResumePoint,
    ResumeWindowError,
    RetryOptions,
    StreamOptions,
    Tokens,
    UnavailableError,
)
from tests.integration.clients import scripted_server as wire
from tests.integration.clients.fake_time import FakeTime
from tests.integration.clients.scripted_server import Failure, Hang, ScriptedServer, Step

LOST = Failure(grpc.StatusCode.UNAVAILABLE, message="connection reset")


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


async def test_a_break_after_every_piece_is_resumed_from_there(
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
