"""The Triton adapter against a server that speaks Triton's protocol. ORCH-3057."""

import asyncio
import json
import struct
from typing import Any

import grpc
import pytest

from pool_managerd.engines.port import (
    Failed,
    Failure,
    Finish,
    Finished,
    GenerationRequest,
    Piece,
    SamplingParams,
    Usage,
)
from pool_managerd.engines.triton import TritonEngine
from pool_managerd.engines.triton_client import Target, TritonClient
from pool_managerd.engines.triton_inference_service_pb2 import ModelInferRequest
from tests.conformance.triton_replay import (
    HELLO,
    REQUEST,
    VLLM_INPUTS,
    Replay,
    engine_of,
    events_of,
    failed,
    failure_of,
    response,
)

CONFIRM_MS = 5_000


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


async def test_a_trace_is_passed_on_and_a_status_is_asked_for(
    engine: TritonEngine, replay: Replay
) -> None:
    """Both travel as metadata of the call."""
    request = GenerationRequest("r", "hi", SamplingParams(seed=1), traceparent="00-ab-cd-01")

    await events_of(engine, request)

    assert replay.metadata[0]["traceparent"] == "00-ab-cd-01"
    assert replay.metadata[0]["triton_grpc_error"] == "true"


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


async def test_a_request_that_nobody_takes_is_given_up() -> None:
    """A server that accepts connections and reads nothing keeps no writer for ever."""
    sockets: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(
        lambda _reader, writer: sockets.append(writer), "127.0.0.1", 0
    )
    port = server.sockets[0].getsockname()[1]
    client = TritonClient(Target(address=f"127.0.0.1:{port}", model="m", silence_timeout_ms=100))
    client.open()

    async with asyncio.timeout(10):
        with pytest.raises(TimeoutError):
            await anext(client.infer(ModelInferRequest(), ""))

    await client.close()
    for writer in sockets:
        writer.close()
    server.close()
    await server.wait_closed()


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
