"""The llama-server adapter against documented frames, cut and broken in every way. ORCH-3054."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pool_managerd.engines.llama_server import LlamaServerConfig, LlamaServerEngine
from pool_managerd.engines.port import (
    CancelUnconfirmedError,
    ChatMessage,
    Failed,
    Failure,
    Finish,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Piece,
    PreloadError,
    SamplingParams,
)
from tests.conformance.engine_replay import Replay, error, final, frame, progress, replay_server

REQUEST = GenerationRequest("r", "hi there", SamplingParams(seed=5, max_tokens=2))


@pytest.fixture
async def replay() -> AsyncIterator[Replay]:
    """A server whose answers the test sets."""
    async with replay_server() as replay:
        yield replay


@pytest.fixture
async def engine(replay: Replay) -> AsyncIterator[LlamaServerEngine]:
    """An adapter attached to the replay server."""
    engine = LlamaServerEngine(LlamaServerConfig(base_url=replay.base_url, model_id="m"))
    await engine.start()
    yield engine
    await engine.stop()


async def events_of(
    engine: LlamaServerEngine, request: GenerationRequest = REQUEST
) -> list[GenerationEvent]:
    """Returns all events of a generation."""
    return [event async for event in engine.generate(request)]


async def failure_of(
    engine: LlamaServerEngine, request: GenerationRequest = REQUEST
) -> tuple[Failure, str]:
    """Returns how a generation failed, and the message."""
    end = (await events_of(engine, request))[-1]
    assert isinstance(end, Failed)
    return end.failure, end.message


async def test_frames_become_pieces_and_usage(replay: Replay, engine: LlamaServerEngine) -> None:
    """Pieces carry text and ids; the last frame's timings become the usage."""
    replay.chunks = [progress(), frame(" é", 4, 1), b": ping\n\n", frame(" b", 2, 2), final()]

    *pieces, end = await events_of(engine)

    assert pieces == [Piece(" é", (4,)), Piece(" b", (2,))]
    assert isinstance(end, Finished)
    assert end.finish is Finish.LENGTH
    usage = end.usage
    assert (usage.tokens_in, usage.tokens_cached, usage.tokens_out) == (3, 1, 2)
    assert (usage.prefill_time_ms, usage.decode_time_ms) == (2, 20)


@pytest.mark.parametrize(
    ("stop_type", "finish"),
    [
        ("eos", Finish.EOS),
        ("word", Finish.STOP),
        ("limit", Finish.LENGTH),
        ("none", Finish.EOS),
    ],
)
async def test_stop_types_become_finishes(
    replay: Replay, engine: LlamaServerEngine, stop_type: str, finish: Finish
) -> None:
    """Every documented stop type has its finish."""
    replay.chunks = [final(stop_type)]

    assert [event.finish for event in await events_of(engine) if isinstance(event, Finished)] == [
        finish
    ]


@pytest.mark.parametrize(
    ("kind", "message", "code", "failure"),
    [
        ("exceed_context_size_error", "too long", 400, Failure.CONTEXT_OVERFLOW),
        ("invalid_request_error", "bad grammar", 400, Failure.INVALID_REQUEST),
        ("not_found_error", "no such thing", 404, Failure.INVALID_REQUEST),
        ("authentication_error", "bad key", 401, Failure.ENGINE_ERROR),
        ("server_error", "it broke", 500, Failure.ENGINE_ERROR),
        ("unavailable_error", "Loading model", 503, Failure.ENGINE_ERROR),
        ("server_error", "CUDA error: out of memory", 500, Failure.DEVICE_OUT_OF_MEMORY),
        ("server_error", "failed to allocate buffer", 500, Failure.HOST_OUT_OF_MEMORY),
        ("server_error", "Context size has been exceeded.", 500, Failure.CONTEXT_OVERFLOW),
    ],
)
async def test_errors_are_typed_whatever_their_form(
    replay: Replay, kind: str, message: str, code: int, failure: Failure
) -> None:
    """An HTTP status, an error frame and an error line mean the same."""
    body = json.dumps(error(kind, message, code)).encode()
    engine = LlamaServerEngine(LlamaServerConfig(base_url=replay.base_url, model_id="m"))
    await engine.start()

    failures = []
    for replay.status, chunk in (
        (code, body),
        (200, b"data: " + body + b"\n\n"),
        (200, b"error: " + body + b"\n\n"),
    ):
        replay.chunks = [chunk]
        failures.append(await failure_of(engine))
    await engine.stop()

    assert failures == [(failure, message)] * 3


async def test_the_request_says_what_the_protocol_needs(
    replay: Replay, engine: LlamaServerEngine
) -> None:
    """Streaming, progress and token ids are asked for; the trace goes along; no conversation id."""
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    messages = (ChatMessage("user", "hello"),)
    sampling = SamplingParams(
        seed=2**33, temperature=0.5, stop=("x",), json_schema='{"type": "object"}',
        engine_options={"repeat_last_n": 64.0, "typical_p": 0.9},
    )  # fmt: skip

    await events_of(engine, GenerationRequest("r", messages, sampling, (7, 8), traceparent))

    body, headers = replay.bodies[0], replay.headers[0]
    assert body["prompt"] == ["<user>hello", 7, 8]
    assert body["stream"] is True
    assert body["return_progress"] is True
    assert body["return_tokens"] is True
    assert body["seed"] == 2**33 % (2**32 - 1)
    assert body["n_predict"] == 512
    assert body["json_schema"] == {"type": "object"}
    assert body["repeat_last_n"] == 64
    assert isinstance(body["repeat_last_n"], int)
    assert "top_k" not in body
    assert headers["traceparent"] == traceparent
    assert "x-conversation-id" not in {name.lower() for name in headers}


async def test_closing_a_generation_closes_its_connection(
    replay: Replay, engine: LlamaServerEngine
) -> None:
    """A cancel is confirmed as soon as the engine shows the slot idle."""
    replay.chunks, replay.hangs, replay.busy_answers = [frame(" a", 1, 1)], True, 3
    generation = engine.generate(REQUEST)
    await anext(generation)

    await generation.aclose()
    await engine.confirm_idle("r", 5_000)

    assert replay.busy_answers == 0
    replay.hangs = False
    replay.chunks = [final()]
    assert isinstance((await events_of(engine))[-1], Finished)


async def test_one_idle_glance_does_not_confirm_an_unanswered_generation(
    replay: Replay, engine: LlamaServerEngine
) -> None:
    """A request that was closed before any answer may still be on its way into the slot."""
    replay.mute, replay.busy_script = True, [False, True, False, False, False]
    generation = engine.generate(REQUEST)
    first = asyncio.ensure_future(anext(generation))
    await replay.asked.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)

    await engine.confirm_idle("r", 5_000)

    assert replay.busy_script == []


async def test_a_slot_that_stays_busy_is_unconfirmed_and_not_used_again(
    replay: Replay, engine: LlamaServerEngine
) -> None:
    """The bound is kept, and the slot stays with its generation."""
    replay.chunks, replay.hangs = [frame(" a", 1, 1)], True
    generation = engine.generate(REQUEST)
    await anext(generation)
    await generation.aclose()
    replay.busy_answers = 10**9

    with pytest.raises(CancelUnconfirmedError):
        await engine.confirm_idle("r", 30)

    replay.hangs, replay.chunks = False, [final()]
    await events_of(engine, GenerationRequest("s", "hi there", SamplingParams(seed=1)))
    assert replay.bodies[-1]["id_slot"] != replay.bodies[0]["id_slot"]


async def test_start_waits_while_the_model_loads(replay: Replay) -> None:
    """503 means that the server still loads; facts come from what it says then."""
    replay.loading_answers = 1
    engine = LlamaServerEngine(LlamaServerConfig(base_url=replay.base_url, model_id="m"))

    info = await engine.start()
    await engine.stop()

    assert replay.loading_answers == 0
    assert (info.engine_version, info.quantizations) == ("b11549-replay", ("Q4_K_M",))
    assert (info.slots_total, info.ctx_max, info.deterministic) == (2, 512, False)


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        ({"loading_answers": 10**9}, {"load_timeout_ms": 30}, "still loading"),
        ({"slots_status": 501}, {}, "--slots"),
        ({"slots_status": 404}, {}, "does not answer like a llama-server"),
        ({"api_key": "right"}, {"api_key": "wrong"}, "API key"),
        ({}, {"slots": 3}, "slots = 3, but the server has 2"),
        ({}, {"deterministic": True}, "one slot"),
        ({}, {"model_path": "/nowhere/x.gguf"}, "/nowhere/x.gguf does not exist"),
    ],
)
async def test_a_server_that_will_not_do_is_refused_with_the_reason(
    replay: Replay, change: dict[str, Any], config: dict[str, Any], words: str
) -> None:
    """The start fails and names what is wrong."""
    for name, value in change.items():
        setattr(replay, name, value)
    engine = LlamaServerEngine(LlamaServerConfig(base_url=replay.base_url, model_id="m", **config))

    with pytest.raises(PreloadError) as raised:
        await engine.start()

    assert words in str(raised.value)


async def test_several_shortfalls_are_all_named(replay: Replay) -> None:
    """Whoever repairs the configuration sees everything at once."""
    config = LlamaServerConfig(
        base_url=replay.base_url, model_id="m", slots=9, deterministic=True, model_path="/nowhere"
    )

    with pytest.raises(PreloadError) as raised:
        await LlamaServerEngine(config).start()

    assert len(raised.value.shortfalls) == 3


async def test_unread_weights_are_never_the_same_as_others(replay: Replay) -> None:
    """Without file or digest, two servers are no replicas, but one server is always itself."""
    digests = []
    async with replay_server() as other:
        for base_url in (replay.base_url, replay.base_url, other.base_url):
            engine = LlamaServerEngine(LlamaServerConfig(base_url=base_url, model_id="m"))
            digests.append((await engine.start()).model_digest)
            await engine.stop()

    assert digests[0] == digests[1] != digests[2]
    assert digests[0].startswith("unverified:")


async def test_a_given_digest_is_taken(replay: Replay) -> None:
    """The operator's digest makes servers replicas."""
    config = LlamaServerConfig(base_url=replay.base_url, model_id="m", model_digest="sha256:abc")
    engine = LlamaServerEngine(config)

    info = await engine.start()
    await engine.stop()

    assert info.model_digest == "sha256:abc"


async def test_a_foreign_engine_has_no_exit(engine: LlamaServerEngine) -> None:
    """Nobody here watches the process, not even after detaching."""
    exit_news = asyncio.ensure_future(engine.wait_exit())

    await engine.stop()
    done, _ = await asyncio.wait({exit_news}, timeout=0.01)

    assert not done
    exit_news.cancel()


@pytest.mark.parametrize("base_url", ["127.0.0.1:80", "ftp://x", ""])
def test_addresses_without_http_are_refused(base_url: str) -> None:
    """A configuration that cannot work does not wait for the start."""
    with pytest.raises(ValueError, match="base_url"):
        LlamaServerConfig(base_url=base_url, model_id="m")
