"""Every engine adapter that runs on a plain machine, opened the same way."""

import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pool_managerd.engines.embedded import EmbeddedConfig, EmbeddedEngine
from pool_managerd.engines.llama_server import LlamaServerConfig, LlamaServerEngine
from pool_managerd.engines.mock import MockConfig, MockEngine
from pool_managerd.engines.mock_script import MockScript
from pool_managerd.engines.port import (
    ChatMessage,
    Engine,
    EngineInfo,
    Failed,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Piece,
    SamplingParams,
)
from pool_managerd.engines.triton import TritonConfig, TritonEngine
from pool_managerd.engines.triton_client import Target
from tests.conformance.triton_server import BUSY_METRIC, CTX_MAX, MODEL, missing, start_server

CASES = ("mock", "embedded", "llama_server", "triton")
UNREACHABLE = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Running:
    """A started engine. `kill` ends its process as `kill -9` would; `watched`: it has a process."""

    engine: Engine
    info: EngineInfo
    kill: Callable[[], None]
    close: Callable[[], Awaitable[None]]
    watched: bool = True
    pid: int | None = None
    endless: Mapping[str, object] = field(default_factory=dict)
    multi_byte: SamplingParams = field(default_factory=lambda: SamplingParams(seed=1))


async def open_case(name: str, model: Path, *, slots: int = 2) -> Running:
    """Starts the engine `name`; with one slot it runs in its deterministic profile."""
    match name:
        case "mock":
            return await _open_mock(slots)
        case "embedded":
            return await _open_embedded(model, slots)
        case "llama_server":
            return await _open_llama_server(model, slots)
        case "triton":
            return await _open_triton(model.parent, slots)
    raise ValueError(name)


def failing_to_start(name: str) -> tuple[Engine, str]:
    """Returns an engine that cannot start, and words that its complaint must hold."""
    match name:
        case "mock":
            return MockEngine(MockConfig(preload_shortfalls=("no luck",))), "no luck"
        case "embedded":
            config = EmbeddedConfig(model_path="/nowhere/x.gguf", model_id="x")
            return EmbeddedEngine(config), "/nowhere/x.gguf does not exist"
        case "triton":
            address = UNREACHABLE.removeprefix("http://")
            return TritonEngine(triton_config(address, slots=1)), address
    config_of_foreign = LlamaServerConfig(base_url=UNREACHABLE, model_id="x")
    return LlamaServerEngine(config_of_foreign), UNREACHABLE


async def _open_mock(slots: int) -> Running:
    engine = MockEngine(
        MockConfig(slots=slots, ctx_max=2048, script=MockScript(token_count=1_000_000))
    )
    multi_byte = SamplingParams(
        seed=1, max_tokens=20, engine_options={"mock": {"multi_byte": True}}
    )
    return Running(
        engine,
        await engine.start(),
        engine.die,
        engine.stop,
        endless={"mock": {"token_interval_ms": 1}},
        multi_byte=multi_byte,
    )


async def _open_embedded(model: Path, slots: int) -> Running:
    engine = EmbeddedEngine(
        EmbeddedConfig(model_path=model, model_id="m", slots=slots, deterministic=slots == 1)
    )
    info = await engine.start()
    pid = engine.pid
    assert pid is not None
    grammar = 'root ::= "日本é🚀 "+'
    return Running(
        engine,
        info,
        lambda: os.kill(pid, signal.SIGKILL),
        engine.stop,
        pid=pid,
        multi_byte=SamplingParams(seed=1, max_tokens=25, grammar=grammar),
    )


async def _open_llama_server(model: Path, slots: int) -> Running:
    server = await _open_embedded(model, slots)
    assert isinstance(server.engine, EmbeddedEngine)
    engine = LlamaServerEngine(attachment(server.engine, deterministic=slots == 1))
    info = await engine.start()

    async def close() -> None:
        await engine.stop()
        await server.close()

    return replace(server, engine=engine, info=info, close=close, watched=False, pid=None)


def attachment(server: EmbeddedEngine, *, deterministic: bool = False) -> LlamaServerConfig:
    """Returns how a foreign adapter attaches to the HTTP server of an embedded engine."""
    assert server._protocol is not None
    endpoint = server._protocol._endpoint
    return LlamaServerConfig(
        base_url=endpoint.base_url,
        api_key=endpoint.api_key,
        model_id="m",
        deterministic=deterministic,
    )


def request(
    request_id: str = "r",
    prompt: str | tuple[ChatMessage, ...] = "once upon a time",
    continue_token_ids: tuple[int, ...] = (),
    continue_text: str = "",
    **sampling: Any,
) -> GenerationRequest:
    """Returns a request; further keyword arguments are those of `SamplingParams`."""
    parameters = SamplingParams(**{"seed": 1, "max_tokens": 12, **sampling})
    return GenerationRequest(
        request_id, prompt, parameters, continue_token_ids, continue_text=continue_text
    )


async def collect(engine: Engine, wanted: GenerationRequest) -> list[GenerationEvent]:
    """Returns all events of a generation."""
    return [event async for event in engine.generate(wanted)]


def text_of(events: list[GenerationEvent]) -> str:
    """Returns the concatenated text."""
    return "".join(event.text for event in events if isinstance(event, Piece))


def ids_of(events: list[GenerationEvent]) -> tuple[int, ...]:
    """Returns the concatenated token ids."""
    return tuple(token for event in events if isinstance(event, Piece) for token in event.token_ids)


def end_of(events: list[GenerationEvent]) -> Finished | Failed:
    """Returns the one end, which is the last event."""
    *pieces, end = events
    assert isinstance(end, Finished | Failed)
    assert all(isinstance(piece, Piece) for piece in pieces)
    return end


async def _open_triton(folder: Path, slots: int) -> Running:
    if missing():
        pytest.skip(missing())
    server = await start_server(folder / "triton.log")
    engine = TritonEngine(triton_config(server.address, server.metrics_url, slots=slots))

    async def close() -> None:
        await engine.stop()
        await server.close()

    try:
        info = await engine.start()
    except BaseException:
        await server.close()
        raise
    return Running(
        engine,
        info,
        server.kill,
        close,
        watched=False,
        endless={"interval_ms": 6},
        multi_byte=SamplingParams(seed=1, max_tokens=20, engine_options={"multi_byte": True}),
    )


def triton_config(address: str, metrics_url: str = "", *, slots: int = 2) -> TritonConfig:
    """Returns how the adapter attaches to the scripted model."""
    return TritonConfig(
        target=Target(address=address, model=MODEL),
        model_id="m",
        slots=slots,
        ctx_max=CTX_MAX,
        deterministic=slots == 1,
        metrics_url=metrics_url,
        busy_metric=BUSY_METRIC if metrics_url else "",
    )
