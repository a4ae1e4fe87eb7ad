"""The Ollama adapter: loading, and what its native API asks for. ORCH-3054."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pool_managerd.engines.ollama import OllamaConfig, OllamaEngine
from pool_managerd.engines.port import (
    Failed,
    Failure,
    Finished,
    GenerationRequest,
    PreloadError,
    SamplingParams,
)
from tests.conformance.engine_frames import FrameServer, frame_server


@pytest.fixture
async def server() -> AsyncIterator[FrameServer]:
    """A server with Ollama's frames."""
    async with frame_server("ollama") as running:
        yield running


def engine_for(server: FrameServer, **settings: Any) -> OllamaEngine:
    """An adapter for the server."""
    return OllamaEngine(OllamaConfig(base_url=server.base_url, **{"model_id": "m", **settings}))


async def generated(server: FrameServer, **sampling: Any) -> list[Any]:
    """The events of one generation."""
    engine = engine_for(server)
    await engine.start()
    parameters = SamplingParams(**{"seed": 1, "max_tokens": 2, **sampling})
    events = [event async for event in engine.generate(GenerationRequest("r", "hi", parameters))]
    await engine.stop()
    return events


async def test_the_model_is_loaded_before_the_pool_is_ready(server: FrameServer) -> None:
    """An empty request loads it with the context that all requests will have."""
    engine = engine_for(server)
    info = await engine.start()
    await engine.stop()

    assert server.asked == ["/api/version", "/api/version", "/api/tags", "/api/generate", "/api/ps"]
    assert (info.engine, info.engine_version) == ("ollama", "0.34.0")
    assert info.model_digest.startswith("ollama-manifest:a80c4f17acd5")
    assert info.quantizations == ("Q4_K_M",)
    assert not info.deterministic


@pytest.mark.parametrize(
    ("pages", "settings", "words"),
    [
        ({}, {"model_id": "x"}, "has no model 'x:latest': run `ollama pull x:latest`"),
        ({}, {"ollama_model": "m:7b"}, "run `ollama pull m:7b`"),
        ({}, {"ctx_max": 8192}, "ctx_max = 8192, but ollama gives m:latest 4096"),
    ],
)
async def test_a_model_that_is_absent_or_too_small_says_what_to_do(
    server: FrameServer, pages: dict[str, str], settings: dict[str, Any], words: str
) -> None:
    """The start fails with the command that repairs it."""
    server.pages |= pages

    with pytest.raises(PreloadError) as raised:
        await engine_for(server, **settings).start()

    assert words in str(raised.value)


async def test_every_request_keeps_the_runner_as_it_is(server: FrameServer) -> None:
    """Another num_ctx would load the model anew; too long a prompt must not be shortened."""
    events = await generated(server, max_tokens=None, temperature=0.5, top_k=3, stop=("x",))

    body = server.bodies[0]
    assert isinstance(events[-1], Finished)
    assert body["options"] == {
        "num_ctx": 4096, "num_predict": 4096, "seed": 1, "temperature": 0.5, "top_k": 3,
        "stop": ["x"],
    }  # fmt: skip
    assert (body["raw"], body["truncate"], body["shift"]) == (True, False, False)
    assert body["keep_alive"] == -1


async def test_durations_keep_their_text(server: FrameServer) -> None:
    """A number of seconds goes as a number, a duration as text."""
    for keep_alive, sent in (("10m", "10m"), ("0", 0)):
        engine = engine_for(server, keep_alive=keep_alive)
        await engine.start()
        _ = [
            event
            async for event in engine.generate(GenerationRequest("r", "hi", SamplingParams(seed=1)))
        ]
        await engine.stop()

        assert server.bodies[-1]["keep_alive"] == sent


async def test_a_schema_becomes_the_format(server: FrameServer) -> None:
    """Ollama takes the schema itself; a grammar it does not take."""
    await generated(server, json_schema='{"type": "object"}')
    refused = await generated(server, grammar="root ::= x")

    assert server.bodies[0]["format"] == {"type": "object"}
    assert len(server.bodies) == 1
    assert isinstance(refused[-1], Failed)


async def test_thinking_can_be_switched(server: FrameServer) -> None:
    """It is a field of the request, not an option of the runner."""
    await generated(server, engine_options={"think": False, "repeat_penalty": 1.5})

    assert server.bodies[0]["think"] is False
    assert server.bodies[0]["options"]["repeat_penalty"] == 1.5


async def test_an_end_without_output_is_an_engine_error(server: FrameServer) -> None:
    """`load` and `unload` end a stream too, but are no ends of a generation."""
    server.chunks = [json.dumps({"done": True, "done_reason": "unload"}).encode() + b"\n"]

    events = await generated(server)

    assert isinstance(events[-1], Failed)
    assert events[-1].failure is Failure.ENGINE_ERROR
    assert "unload" in events[-1].message


async def test_an_empty_prompt_is_refused(server: FrameServer) -> None:
    """To Ollama it means: only load the model."""
    engine = engine_for(server)
    await engine.start()

    events = [
        event async for event in engine.generate(GenerationRequest("r", "", SamplingParams(seed=1)))
    ]
    await engine.stop()

    assert isinstance(events[-1], Failed)
    assert events[-1].failure is Failure.INVALID_REQUEST
