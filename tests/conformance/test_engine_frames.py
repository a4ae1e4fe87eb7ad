"""What every adapter of an HTTP engine makes of its engine's frames, whole, cut, broken and odd.

One suite, run against each adapter and flavor with its documented frames. ORCH-3054, ORCH-3055,
ORCH-3056.
"""

import asyncio
import json
from dataclasses import replace

import pytest

from pool_managerd.engines import stream_lines
from pool_managerd.engines.port import (
    Failed,
    Failure,
    Finish,
    Finished,
    GenerationEvent,
    Piece,
    PreloadError,
    Usage,
)
from tests.conformance.attached import CONFIRM_MS, Attached, failure_of, pieces_of, wanted
from tests.conformance.engine_frames import FrameServer, adapter, slots_of
from tests.conformance.generations import collect, end_of, text_of


async def test_frames_become_pieces_counts_and_an_end(attached: Attached) -> None:
    """Text, token ids, finish and counts are the engine's own; what it does not say is absent."""
    expected = attached.frames["text"]

    events = await collect(attached.engine, wanted())

    ids = expected.get("ids", [[]] * len(expected["pieces"]))
    assert events[:-1] == [
        Piece(text, tuple(tokens)) for text, tokens in zip(expected["pieces"], ids, strict=True)
    ]
    assert events[-1] == Finished(Finish.LENGTH, Usage(**expected["usage"]))


async def test_single_bytes_give_the_same_events(attached: Attached) -> None:
    """Where the network cuts the stream, in characters too, changes nothing."""
    whole = attached.frames["text"]["frames"].encode()
    expected = await collect(attached.engine, wanted())
    attached.server.chunks = [whole[start : start + 1] for start in range(len(whole))]

    assert await collect(attached.engine, wanted()) == expected


async def test_pieces_that_are_kept_are_those_that_are_yielded(attached: Attached) -> None:
    """Whoever takes pieces the moment they come gets the same, and then the end alone."""
    expected = await collect(attached.engine, wanted())
    kept: list[GenerationEvent] = []

    rest = await collect(attached.engine, replace(wanted(), keep=kept.append))

    assert len(rest) == 1
    assert kept + rest == expected


async def test_a_piece_is_given_as_soon_as_it_arrives(attached: Attached) -> None:
    """Nothing waits for what comes next: the server says no more after the first text."""
    first = attached.frames["text"]["pieces"][0]
    lines = attached.frames["text"]["frames"].encode().splitlines(keepends=True)
    until = next(number for number, line in enumerate(lines) if first.encode() in line)
    attached.server.chunks, attached.server.hangs = [b"".join(lines[: until + 1])], True
    generation = attached.engine.generate(wanted())

    async with asyncio.timeout(20):
        piece = await anext(generation)
    await generation.aclose()

    assert isinstance(piece, Piece)
    assert piece.text == first


@pytest.mark.parametrize("mute", [True, False])
async def test_a_cancel_closes_the_connection(attached: Attached, mute: bool) -> None:
    """Before the first answer and in the middle alike; then the slots are free again."""
    server = attached.server
    whole = server.chunks
    for number in range(3):
        server.mute, server.hangs, server.chunks = mute, True, [b": ping\n"]
        server.entered.clear()
        server.dropped.clear()
        generation = attached.engine.generate(wanted(request_id=f"r{number}"))
        first = asyncio.ensure_future(anext(generation))
        async with asyncio.timeout(20):
            await server.entered.wait()
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await generation.aclose()
            await server.dropped.wait()
        await attached.engine.confirm_idle(f"r{number}", CONFIRM_MS)

    server.mute, server.hangs, server.chunks = False, False, whole
    assert isinstance(end_of(await collect(attached.engine, wanted())), Finished)


@pytest.mark.parametrize("breaks", [True, False])
async def test_a_stream_without_its_end_is_a_dead_engine(attached: Attached, breaks: bool) -> None:
    """Broken off or cleanly closed too early: ENGINE_DIED, after the pieces that came."""
    frames = attached.frames["text"]["frames"].encode()
    last = attached.frames["text"]["pieces"][-1].encode()
    attached.server.chunks, attached.server.breaks = [frames[: frames.index(last)]], breaks

    events = await collect(attached.engine, wanted())

    end = end_of(events)
    assert isinstance(end, Failed)
    assert end.failure is Failure.ENGINE_DIED
    assert pieces_of(events) in ([], attached.frames["text"]["pieces"][:-1])


async def test_errors_are_typed(attached: Attached) -> None:
    """Each documented answer that is no stream has its failure, and a slot is free after it."""
    for error in attached.frames["errors"]:
        attached.server.status = error["status"]
        attached.server.chunks = [error["body"].encode()]

        failure, message = await failure_of(attached, wanted())

        assert failure.value == error["failure"], error["body"]
        assert 0 < len(message) <= 300


async def test_errors_in_the_stream_are_typed(attached: Attached) -> None:
    """An error frame ends the generation, after the pieces before it."""
    frames = attached.frames["text"]["frames"].encode()
    last = attached.frames["text"]["pieces"][-1].encode()
    before = frames[: frames.rindex(b"\n", 0, frames.index(last)) + 1]
    for error in attached.frames["error_frames"]:
        attached.server.chunks = [before, error["frames"].encode()]

        events = await collect(attached.engine, wanted())

        end = end_of(events)
        assert isinstance(end, Failed)
        assert end.failure.value == error["failure"]
        assert pieces_of(events) == attached.frames["text"]["pieces"][:-1]


async def test_an_error_that_quotes_the_request_is_withheld(attached: Attached) -> None:
    """Messages that repeat the prompt do not reach logs or other people."""
    quoted = "the launch code is 0451 and nobody may know it"
    attached.server.status = 400
    attached.server.chunks = [json.dumps({"error": {"message": f"bad: {quoted}"}}).encode()]

    failure, message = await failure_of(attached, wanted(quoted))

    assert failure is Failure.INVALID_REQUEST
    assert "0451" not in message


async def test_a_server_that_still_loads_is_waited_for(server: tuple[str, FrameServer]) -> None:
    """503 means later; a server that never gets there is named with the bound."""
    name, running = server
    running.loading_answers = 2
    engine = adapter(name, running.base_url)
    await engine.start()
    await engine.stop()
    running.loading_answers = 10**9

    with pytest.raises(PreloadError) as raised:
        await adapter(name, running.base_url, load_timeout_ms=50).start()

    assert "still loading" in str(raised.value)


async def test_a_wrong_key_and_a_wrong_address_are_told_apart(
    server: tuple[str, FrameServer],
) -> None:
    """The start fails with the reason, and the right key starts."""
    name, running = server
    running.api_key = "right"
    for settings, words in (({"api_key": "wrong"}, "API key"), ({}, "API key")):
        with pytest.raises(PreloadError, match=words):
            await adapter(name, running.base_url, **settings).start()
    with pytest.raises(PreloadError, match=r"127\.0\.0\.1:9"):
        await adapter(name, "http://127.0.0.1:9").start()

    engine = adapter(name, running.base_url, api_key="right")
    await engine.start()
    assert await engine.healthy()
    await engine.stop()
    assert not await engine.healthy()


async def test_a_stop_sequence_ends_the_output_before_it(attached: Attached) -> None:
    """Also where the engine leaves it in; the finish says so."""
    attached.server.chunks = [attached.frames["stop"]["frames"].encode()]

    events = await collect(attached.engine, wanted(stop=("END",)))

    assert text_of(events) == " one two"
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.finish is Finish.STOP
    assert "END" in json.dumps(attached.server.bodies[-1])


async def test_a_line_without_end_is_bounded(
    attached: Attached, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that never ends a line does not fill the memory."""
    monkeypatch.setattr(stream_lines.LineDecoder.__init__, "__defaults__", (10_000,))
    attached.server.chunks, attached.server.hangs = [b"data: " + b"x" * 20_000], True

    failure, message = await failure_of(attached, wanted())

    assert failure is Failure.ENGINE_ERROR
    assert "10000 bytes" in message


async def test_a_silent_engine_is_given_up(server: tuple[str, FrameServer]) -> None:
    """Silence beyond the bound is ENGINE_DIED."""
    name, running = server
    engine = adapter(name, running.base_url, silence_timeout_ms=50)
    await engine.start()
    running.chunks, running.hangs = [b": ping\n"], True

    end = end_of(await collect(engine, wanted()))
    await engine.stop()

    assert isinstance(end, Failed)
    assert end.failure is Failure.ENGINE_DIED
    assert "50 ms" in end.message


@pytest.mark.parametrize(
    "junk",
    [
        b"data: {nonsense\n\n",
        b"data: [1]\n\n",
        b'data: "text"\n\n',
        b"{broken\n",
        b"data: \xff\xfe\n\n",
        b"data: " + b'{"a":' * 100_000 + b"\n\n",
    ],
    ids=["broken", "list", "text", "bare", "bytes", "deep"],
)
async def test_what_is_no_frame_is_an_engine_error(attached: Attached, junk: bytes) -> None:
    """Junk ends the generation with a typed failure, and the slots stay free."""
    for _ in range(3):
        attached.server.chunks = [junk]

        assert (await failure_of(attached, wanted()))[0] is Failure.ENGINE_ERROR


async def test_no_more_generations_than_slots(attached: Attached) -> None:
    """One more is refused instead of queued, and so is an id that is open."""
    attached.server.chunks, attached.server.hangs = [b": ping\n"], True
    count = slots_of(attached.name)
    open_ones = [attached.engine.generate(wanted(request_id=f"g{n}")) for n in range(count)]
    firsts = [asyncio.ensure_future(anext(generation)) for generation in open_ones]
    while len(attached.server.bodies) < count:
        attached.server.entered.clear()
        await attached.server.entered.wait()

    third = await failure_of(attached, wanted(request_id="third"))
    again = await failure_of(attached, wanted(request_id="g0"))
    for first, generation in zip(firsts, open_ones, strict=True):
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await generation.aclose()

    assert third[0] is Failure.ENGINE_ERROR
    assert "slots" in third[1]
    assert again[0] is Failure.INVALID_REQUEST
