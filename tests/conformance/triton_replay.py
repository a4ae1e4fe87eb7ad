"""A gRPC server that answers like Triton, with frames as server 2.51.0 sends them.

`python triton_replay.py PORT` serves one friendly model until it is ended.
"""

import asyncio
import struct
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from aiohttp import web
from aiohttp.test_utils import TestServer
from grpc import aio

from pool_managerd.engines import triton_inference_service_pb2 as pb
from pool_managerd.engines import triton_inference_service_pb2_grpc as pb_grpc
from pool_managerd.engines.port import (
    Failed,
    Failure,
    GenerationEvent,
    GenerationRequest,
    SamplingParams,
)
from pool_managerd.engines.triton import TritonConfig, TritonEngine
from pool_managerd.engines.triton_client import Target

Inputs = Sequence[tuple[str, str, Sequence[int], bool]]

PLAIN_INPUTS: Inputs = (
    ("text_input", "BYTES", (1,), False),
    ("max_tokens", "INT32", (1,), False),
    ("seed", "UINT32", (1,), False),
    ("temperature", "FP32", (1,), True),
    ("top_k", "INT32", (1,), True),
    ("stop", "BYTES", (-1,), True),
    ("stream", "BOOL", (1,), True),
    ("pace", "INT32", (1,), True),
)
"""Name, datatype, shape and whether it may be left out."""

VLLM_INPUTS: Inputs = (
    ("text_input", "BYTES", (1,), False),
    ("image", "BYTES", (-1,), True),
    ("stream", "BOOL", (1,), True),
    ("sampling_parameters", "BYTES", (1,), True),
    ("exclude_input_in_output", "BOOL", (1,), True),
    ("return_finish_reason", "BOOL", (1,), True),
    ("return_num_input_tokens", "BOOL", (1,), True),
    ("return_num_output_tokens", "BOOL", (1,), True),
)

TENSORRT_INPUTS: Inputs = (
    ("text_input", "BYTES", (-1, 1), False),
    ("max_tokens", "INT32", (-1, 1), False),
    ("stop_words", "BYTES", (-1, -1), True),
    ("exclude_input_in_output", "BOOL", (-1, 1), True),
    ("temperature", "FP32", (-1, 1), True),
    ("seed", "UINT64", (-1, 1), True),
    ("return_log_probs", "BOOL", (-1, 1), True),
    ("repetition_penalty", "FP32", (-1, 1), True),
    ("stream", "BOOL", (-1, 1), True),
)

OUTPUTS = (
    ("text_output", "BYTES"),
    ("finish_reason", "BYTES"),
    ("num_input_tokens", "UINT32"),
    ("num_output_tokens", "UINT32"),
)


def response(
    text: bytes | None = None,
    *,
    final: bool = False,
    reason: str = "",
    tokens_in: int | None = None,
    tokens_out: int | None = None,
    token_ids: Sequence[int] = (),
) -> pb.ModelStreamInferResponse:
    """Returns one response of a stream."""
    message = pb.ModelStreamInferResponse()
    inner = message.infer_response
    inner.model_name, inner.model_version, inner.id = "m", "1", "r"
    inner.parameters["triton_final_response"].bool_param = final
    if text is not None:
        _add(inner, "text_output", "BYTES", _packed(text))
    if reason:
        _add(inner, "finish_reason", "BYTES", _packed(reason.encode()))
    for name, count in (("num_input_tokens", tokens_in), ("num_output_tokens", tokens_out)):
        if count is not None:
            _add(inner, name, "UINT32", struct.pack("<I", count))
    if token_ids:
        _add(inner, "token_ids", "INT32", struct.pack(f"<{len(token_ids)}i", *token_ids))
    return message


def failed(text: str) -> pb.ModelStreamInferResponse:
    """Returns an error, which has no status."""
    message = pb.ModelStreamInferResponse(error_message=text)
    message.infer_response.id = "r"
    return message


def _packed(text: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text


def _add(inner: pb.ModelInferResponse, name: str, datatype: str, raw: bytes) -> None:
    inner.outputs.add(name=name, datatype=datatype, shape=[1])
    inner.raw_output_contents.append(raw)


REQUEST = GenerationRequest("r", "hi there", SamplingParams(seed=5, max_tokens=2))
HELLO = (
    response(b" a", tokens_in=3, tokens_out=1),
    response(b" b", tokens_in=3, tokens_out=1),
    response(final=True),
)


@dataclass
class Replay:
    """What the server answers, and what it was asked.

    A stream sends `responses` and then ends, ends with `status`, or stays open (`hangs`).
    `loading_answers` is how often the model is still loading; `state` what it is then. The gauge
    gives `busy`, one value after the other and the last one for ever.
    """

    address: str = ""
    metrics_url: str = ""
    responses: Sequence[pb.ModelStreamInferResponse] = ()
    status: grpc.StatusCode | None = None
    status_text: str = "as the test says"
    hangs: bool = False
    mute: bool = False
    inputs: Inputs = PLAIN_INPUTS
    outputs: Sequence[tuple[str, str]] = OUTPUTS
    decoupled: bool = True
    loading_answers: int = 0
    state: str = "LOADING"
    state_reason: str = ""
    load_error: str = ""
    api_key: str = ""
    busy: list[int] = field(default_factory=lambda: [0])
    gauge: str = "running"
    loaded: list[str] = field(default_factory=list)
    requests: list[pb.ModelInferRequest] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)


class _Servicer(pb_grpc.GRPCInferenceServiceServicer):
    def __init__(self, replay: Replay) -> None:
        self._replay = replay

    async def ServerLive(self, request, context):  # noqa: N802
        if self._replay.mute:
            await asyncio.Event().wait()
        key = dict(context.invocation_metadata()).get("x-key", "")
        if key != self._replay.api_key:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong key")
        return pb.ServerLiveResponse(live=True)

    async def ModelReady(self, request, context):  # noqa: N802
        if self._replay.loading_answers:
            self._replay.loading_answers -= 1
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, request, context):  # noqa: N802
        return pb.ServerMetadataResponse(name="triton", version="2.51.0-replay")

    async def ModelMetadata(self, request, context):  # noqa: N802
        answer = pb.ModelMetadataResponse(name=request.name, versions=["1"], platform="python")
        for name, datatype, shape, _ in self._replay.inputs:
            answer.inputs.add(name=name, datatype=datatype, shape=shape)
        for name, datatype in self._replay.outputs:
            answer.outputs.add(name=name, datatype=datatype, shape=[1])
        return answer

    async def ModelConfig(self, request, context):  # noqa: N802
        config = pb.ModelConfig(name=request.name, backend="python")
        config.model_transaction_policy.decoupled = self._replay.decoupled
        for name, _, _, optional in self._replay.inputs:
            config.input.add(name=name, optional=optional)
        return pb.ModelConfigResponse(config=config)

    async def RepositoryIndex(self, request, context):  # noqa: N802
        answer = pb.RepositoryIndexResponse()
        if self._replay.state:
            state, reason = self._replay.state, self._replay.state_reason
            answer.models.add(name="m", version="1", state=state, reason=reason)
        return answer

    async def RepositoryModelLoad(self, request, context):  # noqa: N802
        self._replay.loaded.append(request.model_name)
        if self._replay.load_error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, self._replay.load_error)
        self._replay.loading_answers = 0
        return pb.RepositoryModelLoadResponse()

    async def ModelStreamInfer(self, requests, context):  # noqa: N802
        replay = self._replay
        replay.requests.append(await anext(requests))
        replay.metadata.append(dict(context.invocation_metadata()))
        replay.asked.set()
        try:
            for message in replay.responses:
                yield message
            if replay.status is not None:
                await context.abort(replay.status, replay.status_text)
            if replay.hangs:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            replay.cancelled.set()
            raise


@asynccontextmanager
async def replay_server() -> AsyncIterator[Replay]:
    """Serves a `Replay` that the caller may change at any time."""
    replay = Replay()

    async def metrics(_: web.Request) -> web.Response:
        busy = replay.busy.pop(0) if len(replay.busy) > 1 else replay.busy[0]
        lines = [
            f"# HELP {replay.gauge} Requests at work",
            f"# TYPE {replay.gauge} gauge",
            f'{replay.gauge}{{model="m",version="1"}} {busy}',
            f'{replay.gauge}{{model="another",version="1"}} 77',
        ]
        return web.Response(text="\n".join(lines) + "\n")

    server = aio.server()
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(_Servicer(replay), server)
    replay.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    app = web.Application()
    app.add_routes([web.get("/metrics", metrics)])
    async with TestServer(app) as http:
        replay.metrics_url = str(http.make_url("/metrics"))
        try:
            yield replay
        finally:
            await server.stop(None)


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


async def _serve(port: int) -> None:
    server = aio.server()
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(_Servicer(Replay(responses=HELLO)), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
