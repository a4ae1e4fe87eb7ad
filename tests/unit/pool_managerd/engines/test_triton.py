"""The Triton adapter against a server that speaks Triton's protocol. ORCH-3057."""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from pool_managerd.engines.port import (
    CancelUnconfirmedError,
    Failed,
    Failure,
    Finish,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Piece,
    PreloadError,
    SamplingParams,
    Usage,
)
from pool_managerd.engines.triton import TritonConfig, TritonEngine
from pool_managerd.engines.triton_client import Target
from tests.conformance.triton_replay import (
    VLLM_INPUTS,
    Replay,
    failed,
    replay_server,
    response,
)

REQUEST = GenerationRequest("r", "hi there", SamplingParams(seed=5, max_tokens=2))
HELLO = (
    response(b" a", tokens_in=3, tokens_out=1),
    response(b" b", tokens_in=3, tokens_out=1),
    response(final=True),
)
CONFIRM_MS = 5_000


@pytest.fixture
async def replay() -> AsyncIterator[Replay]:
    """A server whose answers the test sets."""
    async with replay_server() as replay:
        replay.responses = HELLO
        yield replay


def engine_of(replay: Replay, *, silence_timeout_ms: int = 300_000, **more: Any) -> TritonEngine:
    """Returns an adapter with two slots for the model `m`."""
    target = Target(
        address=replay.address,
        model="m",
        api_key=replay.api_key,
        api_key_name="x-key",
        silence_timeout_ms=silence_timeout_ms,
    )
    settings = {"model_id": "x", "slots": 2, "ctx_max": 100, "cancel_settle_ms": 1, **more}
    return TritonEngine(TritonConfig(target=target, **settings))


@pytest.fixture
async def engine(replay: Replay) -> AsyncIterator[TritonEngine]:
    """An adapter attached to the replay server, with its gauge."""
    engine = engine_of(replay, metrics_url=replay.metrics_url, busy_metric="running")
    await engine.start()
    yield engine
    await engine.stop()


async def events_of(
    engine: TritonEngine, request: GenerationRequest = REQUEST
) -> list[GenerationEvent]:
    """Returns all events of a generation."""
    return [event async for event in engine.generate(request)]


async def failure_of(
    engine: TritonEngine, request: GenerationRequest = REQUEST
) -> tuple[Failure, str]:
    """Returns how a generation failed, and the message."""
    end = (await events_of(engine, request))[-1]
    assert isinstance(end, Failed)
    return end.failure, end.message


async def shortfalls_of(engine: TritonEngine) -> str:
    """Returns why an engine cannot start."""
    with pytest.raises(PreloadError) as raised:
        await engine.start()
    assert not await engine.healthy()
    return str(raised.value)


async def test_a_stream_is_pieces_and_the_end_that_its_parameter_marks(
    engine: TritonEngine, replay: Replay
) -> None:
    """The counts of all responses add up, and the limit that was asked for shows as LENGTH."""
    events = await events_of(engine)

    usage = Usage(tokens_in=3, tokens_out=2)
    assert events == [Piece(" a"), Piece(" b"), Finished(Finish.LENGTH, usage)]


async def test_the_request_names_model_and_tensors(engine: TritonEngine, replay: Replay) -> None:
    """Elements are little-endian in the datatype that the model's metadata tells."""
    await events_of(engine)

    (sent,) = replay.requests
    assert (sent.model_name, sent.id) == ("m", "r")
    assert sent.parameters["triton_enable_empty_final_response"].bool_param
    values = dict(zip([entry.name for entry in sent.inputs], sent.raw_input_contents, strict=True))
    assert values == {
        "text_input": struct.pack("<I", 8) + b"hi there",
        "max_tokens": struct.pack("<i", 2),
        "seed": struct.pack("<I", 5),
        "stream": b"\x01",
    }


async def test_the_engine_says_what_it_serves(replay: Replay) -> None:
    """Version and model come from the server, slots and context from the operator."""
    engine = engine_of(replay)

    info = await engine.start()
    again = await engine_of(replay).start()
    replay.inputs = replay.inputs[:-1]
    changed = await engine_of(replay).start()
    await engine.stop()

    assert (info.engine, info.engine_version) == ("triton", "2.51.0-replay")
    assert (info.model_id, info.slots_total, info.ctx_max) == ("x", 2, 100)
    assert info.sampler_profile_version == "triton-plain-1"
    assert info.model_digest.startswith("unverified:")
    assert info.model_digest == again.model_digest != changed.model_digest
    assert not info.deterministic


async def test_a_trace_is_passed_on_and_a_status_is_asked_for(
    engine: TritonEngine, replay: Replay
) -> None:
    """Both travel as metadata of the call."""
    request = GenerationRequest("r", "hi", SamplingParams(seed=1), traceparent="00-ab-cd-01")

    await events_of(engine, request)

    assert replay.metadata[0]["traceparent"] == "00-ab-cd-01"
    assert replay.metadata[0]["triton_grpc_error"] == "true"


async def test_a_model_that_loads_is_waited_for(replay: Replay) -> None:
    """The start returns once the model is ready."""
    replay.loading_answers = 2
    engine = engine_of(replay)

    await engine.start()

    assert replay.loading_answers == 0
    await engine.stop()


async def test_a_model_that_loads_too_long_fails_the_start(replay: Replay) -> None:
    """With the wait in the message."""
    replay.loading_answers = 1_000_000

    message = await shortfalls_of(engine_of(replay, load_timeout_ms=50))

    assert message == "model m is not ready after 50 ms"


async def test_the_model_is_loaded_where_that_is_configured(replay: Replay) -> None:
    """Once, and only if it does not serve yet."""
    replay.loading_answers, replay.state = 1_000_000, ""
    engine = engine_of(replay, load=True)
    await engine.start()
    other = engine_of(replay, load=True)
    await other.start()

    assert replay.loaded == ["m"]
    await engine.stop()
    await other.stop()


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        (
            {"loading_answers": 9, "state": ""},
            {},
            "model m is not there; a server in explicit mode",
        ),
        (
            {"loading_answers": 9, "state": "UNAVAILABLE", "state_reason": "no numpy"},
            {},
            "model m is unavailable (no numpy)",
        ),
        (
            {"loading_answers": 9, "load_error": "explicit model load is not allowed"},
            {"load": True},
            "does not load m: explicit model load is not allowed",
        ),
        ({"decoupled": False}, {}, "model_transaction_policy { decoupled: true }"),
        ({"outputs": [("answer", "BYTES")]}, {}, "no output text_output for the text, only answer"),
        ({"inputs": [("question", "BYTES", [1], False)]}, {}, "no input text_input or prompt"),
        ({}, {"tensors": {"seed": "dice"}}, "tensors.seed = 'dice', but the model's inputs are"),
        ({"inputs": VLLM_INPUTS}, {}, "the model takes no seed"),
        ({"outputs": [("text_output", "INT32")]}, {}, "text_output is INT32, but text needs BYTES"),
        ({"gauge": "other"}, {"busy_metric": "running"}, "has no gauge running"),
    ],
)
async def test_a_start_that_cannot_succeed_says_what_to_change(
    replay: Replay, changes: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    """Each shortfall is a sentence that names the thing."""
    for name, value in changes.items():
        setattr(replay, name, value)
    if "busy_metric" in settings:
        settings = {**settings, "metrics_url": replay.metrics_url}

    message = await shortfalls_of(engine_of(replay, **settings))

    assert words in message


async def test_an_input_that_must_be_filled_and_is_not_fails_the_start(replay: Replay) -> None:
    """Or else every request would fail."""
    replay.inputs = (*replay.inputs, ("image", "BYTES", (1,), False))

    message = await shortfalls_of(engine_of(replay))

    assert message.startswith("not every request fills the model's input image: set optional: true")


async def test_a_model_without_a_seed_serves_if_the_operator_says_so(replay: Replay) -> None:
    """Then no seed is sent."""
    replay.inputs = [entry for entry in replay.inputs if entry[0] != "seed"]
    engine = engine_of(replay, ignore_seed=True)
    await engine.start()

    await events_of(engine)

    assert "seed" not in {entry.name for entry in replay.requests[0].inputs}
    await engine.stop()


async def test_a_server_without_a_gauge_url_is_not_asked_for_metrics(replay: Replay) -> None:
    """A cancel then waits the configured time, and the slot is free."""
    replay.responses, replay.hangs = [response(b" a")], True
    engine = engine_of(replay, slots=1)
    await engine.start()
    generation = engine.generate(REQUEST)
    assert await anext(generation) == Piece(" a")

    await generation.aclose()
    await engine.confirm_idle("r", CONFIRM_MS)
    replay.responses, replay.hangs = HELLO, False

    assert isinstance((await events_of(engine))[-1], Finished)
    await engine.stop()


async def test_an_address_where_nobody_listens_fails_at_once(replay: Replay) -> None:
    """And something that is no Triton server is named too."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        replay.address = f"127.0.0.1:{listener.getsockname()[1]}"

    message = await shortfalls_of(engine_of(replay))

    assert message == f"{replay.address} does not accept connections"


async def test_tls_is_spoken_where_it_is_configured(replay: Replay) -> None:
    """A server without it then does not answer, instead of being spoken to in the clear."""
    target = Target(address=replay.address, model="m", tls=True)
    engine = TritonEngine(TritonConfig(target=target, model_id="x", slots=1, ctx_max=1))

    assert await shortfalls_of(engine) == f"{replay.address} does not accept connections"


async def test_a_wrong_key_is_named(replay: Replay) -> None:
    """The right one travels in the metadata that was configured."""
    replay.api_key = "right"
    engine = engine_of(replay)
    await engine.start()
    assert await engine.healthy()
    await engine.stop()

    wrong = engine_of(replay)
    replay.api_key = "changed"

    assert await shortfalls_of(wrong) == f"{replay.address} refuses the API key"


async def test_closing_a_generation_cancels_its_stream(
    engine: TritonEngine, replay: Replay
) -> None:
    """The server sees it, and the slot is free only once the gauge says so."""
    replay.responses, replay.hangs = [response(b" a")], True
    generation = engine.generate(REQUEST)
    assert await anext(generation) == Piece(" a")

    await generation.aclose()
    async with asyncio.timeout(5):
        await replay.cancelled.wait()
    replay.busy = [1, 1, 0]
    await engine.confirm_idle("r", CONFIRM_MS)

    assert replay.busy == [0]


async def test_a_model_that_goes_on_is_reported(engine: TritonEngine, replay: Replay) -> None:
    """The slot stays taken until a confirmation."""
    replay.responses, replay.hangs = [response(b" a")], True
    generation = engine.generate(REQUEST)
    await anext(generation)
    await generation.aclose()
    replay.busy = [1]

    with pytest.raises(CancelUnconfirmedError, match="after 50 ms"):
        await engine.confirm_idle("r", 50)

    assert (await failure_of(engine))[1] == "a generation with this request id is open"


async def test_a_generation_that_still_runs_does_not_hinder_a_confirmation(
    engine: TritonEngine, replay: Replay
) -> None:
    """The gauge counts all requests of the model, ours that are open among them."""
    replay.responses, replay.hangs, replay.busy = [response(b" a")], True, [1]
    other = engine.generate(GenerationRequest("other", "hi", SamplingParams(seed=1)))
    closed = engine.generate(REQUEST)
    async with contextlib.aclosing(other):
        await anext(other)
        await anext(closed)

        await closed.aclose()
        await engine.confirm_idle("r", CONFIRM_MS)


async def test_a_cancel_before_the_first_response_needs_more_than_one_quiet_look(
    engine: TritonEngine, replay: Replay
) -> None:
    """The request may still be on its way to the model."""
    replay.responses, replay.hangs = (), True
    generation = engine.generate(REQUEST)
    first = asyncio.ensure_future(anext(generation))
    await replay.asked.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await generation.aclose()
    replay.busy = [0, 1, 0, 0, 0, 9]

    await engine.confirm_idle("r", CONFIRM_MS)

    assert replay.busy == [9]


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("the weather is bad", Failure.ENGINE_ERROR),
        (
            "The decoder prompt (length 5000) is longer than the maximum model length of 4096",
            Failure.CONTEXT_OVERFLOW,
        ),
        ("Prompt length (200) exceeds maximum input length (1)", Failure.CONTEXT_OVERFLOW),
        ("CUDA out of memory. Tried to allocate 20 MiB", Failure.DEVICE_OUT_OF_MEMORY),
        (
            "Failed to increase the shared memory pool size for key 'x': No space left on device",
            Failure.HOST_OUT_OF_MEMORY,
        ),
        ("std::bad_alloc", Failure.HOST_OUT_OF_MEMORY),
        (
            "[request id: r] expected 1 inputs but got 0 inputs for model 'm'",
            Failure.INVALID_REQUEST,
        ),
        (
            "[request id: r] inference input 'text_input' data-type is 'INT32'",
            Failure.INVALID_REQUEST,
        ),
        ("Stub process 'm_0_0' is not healthy.", Failure.ENGINE_DIED),
        ("Model is unavailable due to unhealthy vLLM engine", Failure.ENGINE_DIED),
        ("Request for unknown model: 'm' is not found", Failure.ENGINE_DIED),
        ("Exceeds maximum queue size", Failure.ENGINE_ERROR),
    ],
)
async def test_an_error_is_known_by_its_text(
    engine: TritonEngine, replay: Replay, text: str, failure: Failure
) -> None:
    """A response's error has no status; what came before it stays."""
    replay.responses = [response(b" a", tokens_in=3, tokens_out=1), failed(text)]

    *pieces, end = await events_of(engine)

    assert pieces == [Piece(" a")]
    assert end == Failed(failure, text, Usage(tokens_in=3, tokens_out=1))


@pytest.mark.parametrize("with_status", [False, True])
async def test_a_model_whose_process_died_is_unhealthy(
    engine: TritonEngine, replay: Replay, with_status: bool
) -> None:
    """The server says that the model is ready, but it starts no other process for it."""
    assert await engine.healthy()
    text = "Stub process 'm_0_0' is not healthy."
    if with_status:
        replay.responses, replay.status, replay.status_text = [], grpc.StatusCode.INTERNAL, text
    else:
        replay.responses = [failed(text)]

    assert await failure_of(engine) == (Failure.ENGINE_DIED, text)

    assert not await engine.healthy()


async def test_a_stream_that_has_ended_is_not_cancelled(
    engine: TritonEngine, replay: Replay
) -> None:
    """Its server ends it in order; one that forgets to is not waited for."""
    replay.responses = [failed("no")]
    await events_of(engine)
    assert not replay.cancelled.is_set()

    replay.hangs = True
    await events_of(engine)

    async with asyncio.timeout(5):
        await replay.cancelled.wait()


@pytest.mark.parametrize(
    ("status", "text", "failure"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "top_p is odd", Failure.INVALID_REQUEST),
        (grpc.StatusCode.INTERNAL, "the model broke", Failure.ENGINE_ERROR),
        (grpc.StatusCode.INTERNAL, "CUDA out of memory", Failure.DEVICE_OUT_OF_MEMORY),
        (grpc.StatusCode.UNAVAILABLE, "the server goes", Failure.ENGINE_DIED),
        (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size", Failure.ENGINE_ERROR),
        (
            grpc.StatusCode.UNAVAILABLE,
            "This protocol is restricted, expecting header 'x-key'",
            Failure.ENGINE_ERROR,
        ),
        (grpc.StatusCode.INTERNAL, "Internal error from Core", Failure.ENGINE_DIED),
        (grpc.StatusCode.CANCELLED, "Request was cancelled", Failure.ENGINE_DIED),
        (grpc.StatusCode.DATA_LOSS, "odd", Failure.ENGINE_ERROR),
    ],
    ids=lambda value: getattr(value, "name", "text"),
)
async def test_a_status_ends_a_stream(
    engine: TritonEngine, replay: Replay, status: grpc.StatusCode, text: str, failure: Failure
) -> None:
    """A server that gives one is believed, unless the text tells more; the slot is free again."""
    replay.responses, replay.status, replay.status_text = [response(b" a")], status, text

    assert await failure_of(engine) == (failure, text)

    if failure is Failure.ENGINE_DIED:
        await engine.confirm_idle("r", CONFIRM_MS)
    replay.responses, replay.status = HELLO, None
    ends = [(await events_of(engine))[-1] for _ in range(3)]
    assert all(isinstance(end, Finished) for end in ends)


async def test_a_stream_without_its_end_is_a_dead_engine(
    engine: TritonEngine, replay: Replay
) -> None:
    """A server that ends the stream in order, but too early, is not believed."""
    replay.responses = HELLO[:-1]

    failure, message = await failure_of(engine)

    assert failure is Failure.ENGINE_DIED
    assert message == "the engine closed the stream before its end"


async def test_silence_is_bounded(replay: Replay) -> None:
    """A server that says nothing for too long counts as dead."""
    replay.responses, replay.hangs = [response(b" a")], True
    engine = engine_of(replay, silence_timeout_ms=200)
    await engine.start()

    failure, message = await failure_of(engine)

    assert failure is Failure.ENGINE_DIED
    assert message == "the engine was silent for 200 ms"
    await engine.stop()


async def test_a_response_that_is_no_text_frees_the_slot(
    engine: TritonEngine, replay: Replay
) -> None:
    """Broken bytes are an error of the engine."""
    broken = response(b" a")
    broken.infer_response.raw_output_contents[0] = struct.pack("<I", 99) + b"short"
    replay.responses = [broken]

    ends = [await failure_of(engine) for _ in range(3)]

    assert ends == [(Failure.ENGINE_ERROR, "a text is shorter than it says")] * 3


async def test_a_message_that_quotes_the_prompt_is_withheld(
    engine: TritonEngine, replay: Replay
) -> None:
    """Whether it comes as text or with a status."""
    prompt = "the secret recipe is water, flour and a lot of patience"
    request = GenerationRequest("r", prompt, SamplingParams(seed=1))
    replay.responses = [failed(f"cannot do: {prompt}")]

    failure, message = await failure_of(engine, request)

    assert failure is Failure.ENGINE_ERROR
    assert message == "the engine's message is withheld: it quotes the request"


async def test_refused_requests_name_the_field_and_never_reach_the_server(
    engine: TritonEngine, replay: Replay
) -> None:
    """What the model has no tensor for is not left out in silence."""
    cases: dict[str, dict[str, Any]] = {
        "top_p": {"top_p": 0.5},
        "min_p": {"min_p": 0.1},
        "json_schema": {"json_schema": "{}"},
        "grammar": {"grammar": "root ::= x"},
        "seed": {"engine_options": {"seed": 3}},
        "logprobs": {"engine_options": {"logprobs": 3}},
        "pace": {"engine_options": {"pace": "fast"}},
        "top_k": {"top_k": 2**40},
        "max_tokens": {"max_tokens": 0},
    }
    for name, sampling in cases.items():
        request = GenerationRequest("r", "hi", SamplingParams(**{"seed": 1, **sampling}))
        failure, message = await failure_of(engine, request)
        assert failure is Failure.INVALID_REQUEST
        assert name in message

    assert replay.requests == []


async def test_an_input_of_ones_own_is_an_engine_option(
    engine: TritonEngine, replay: Replay
) -> None:
    """In the profile for own models; a whole number may arrive as a double."""
    sampling = SamplingParams(seed=1, engine_options={"pace": 3.0})

    await events_of(engine, GenerationRequest("r", "hi", sampling))

    (sent,) = replay.requests
    values = dict(zip([entry.name for entry in sent.inputs], sent.raw_input_contents, strict=True))
    assert values["pace"] == struct.pack("<i", 3)


async def test_the_vllm_backend_gets_its_sampling_as_one_object(replay: Replay) -> None:
    """Its default of 16 tokens is never left to it; its own reason for the end counts."""
    replay.inputs = VLLM_INPUTS
    replay.responses = [
        response(b" a", reason="None", tokens_in=2, tokens_out=1),
        response(b" b", reason="stop", tokens_in=2, tokens_out=2, final=True),
    ]
    engine = engine_of(replay, profile="vllm")
    await engine.start()
    sampling = SamplingParams(
        seed=2**64 - 1, top_k=7, stop=("x", "y"), engine_options={"presence_penalty": 1.5}
    )

    events = await events_of(engine, GenerationRequest("r", "hi", sampling))
    refused = await failure_of(
        engine, GenerationRequest("r", "hi", SamplingParams(seed=1, json_schema="{}"))
    )

    assert events[-1] == Finished(Finish.STOP, Usage(tokens_in=2, tokens_out=3))
    assert refused == (Failure.INVALID_REQUEST, "this model cannot be given json_schema")
    (sent,) = replay.requests
    values = dict(zip([entry.name for entry in sent.inputs], sent.raw_input_contents, strict=True))
    assert json.loads(values.pop("sampling_parameters")[4:]) == {
        "max_tokens": 100,
        "seed": 2**63 - 1,
        "top_k": 7,
        "stop": ["x", "y"],
        "presence_penalty": 1.5,
    }
    assert values.pop("text_input")[4:] == b"hi"
    assert set(values.values()) == {b"\x01"}
    assert {"stream", "exclude_input_in_output", "return_finish_reason"} < values.keys()
    await engine.stop()


async def test_stopping_ends_open_generations(replay: Replay) -> None:
    """With ENGINE_DIED, and a generation afterwards as well."""
    replay.responses, replay.hangs = [response(b" a")], True
    engine = engine_of(replay)
    await engine.start()
    generation = engine.generate(REQUEST)
    await anext(generation)
    waiting = asyncio.ensure_future(anext(generation))
    await asyncio.sleep(0)

    await engine.stop()

    end = await waiting
    assert isinstance(end, Failed)
    assert end.failure is Failure.ENGINE_DIED
    assert (await failure_of(engine))[0] is Failure.ENGINE_DIED
    assert not await engine.healthy()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"slots": 0}, "slots"),
        ({"profile": "onnx"}, "onnx"),
        ({"deterministic": True}, "slots = 1"),
        ({"metrics_url": "http://x/metrics"}, "busy_metric"),
    ],
)
def test_settings_that_no_server_satisfies_are_refused(
    settings: dict[str, Any], words: str
) -> None:
    """Before anything is asked of a server."""
    target = Target(address="127.0.0.1:9", model="m")

    with pytest.raises(ValueError, match=words):
        TritonConfig(**{"target": target, "model_id": "x", "slots": 2, "ctx_max": 1, **settings})
