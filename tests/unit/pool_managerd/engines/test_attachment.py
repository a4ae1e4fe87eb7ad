"""Foreign servers that become others while a pool is attached to them. ORCH-3054, ORCH-3050."""

import json
from collections.abc import Callable

import pytest

from pool_managerd.engines.attachment import until_replaced
from pool_managerd.engines.llama_server import LlamaServerConfig, LlamaServerEngine
from pool_managerd.engines.ollama import OllamaConfig, OllamaEngine
from pool_managerd.engines.openai import OpenAiConfig, OpenAiEngine
from pool_managerd.engines.port import Engine, EngineError
from tests.conformance.engine_frames import FrameServer, frame_server
from tests.conformance.engine_replay import replay_server

TOLD = {"version": "1", "slots": None, "model": "m"}


async def test_what_is_not_said_and_looks_that_fail_are_no_change() -> None:
    """A server that is away for a while, or under load, is none of this matter."""
    looks: list[dict[str, object] | EngineError] = [
        EngineError("it does not answer"),
        {"version": "1", "slots": 4, "model": None},
        {},
        {"version": "2", "slots": 4, "model": "n" * 100},
    ]

    async def look() -> dict[str, object]:
        found = looks.pop(0)
        if isinstance(found, EngineError):
            raise found
        return found

    sentence = await until_replaced(look, TOLD, 1)

    assert sentence == (
        "the server was replaced by another one: its version was 1 and is 2, its model was m and "
        f"is {'n' * 60}..."
    )
    assert not looks


def vllm(server: FrameServer) -> Engine:
    """An adapter of a vLLM server."""
    config = OpenAiConfig(
        base_url=server.base_url, flavor="vllm", model_id="m", slots=2, look_interval_ms=1
    )
    return OpenAiEngine(config)


def ollama(server: FrameServer) -> Engine:
    """An adapter of an Ollama server."""
    return OllamaEngine(OllamaConfig(base_url=server.base_url, model_id="m", look_interval_ms=1))


def other_version(pages: dict[str, str], path: str) -> None:
    """The server was upgraded."""
    pages[path] = json.dumps({"version": "99.0"})


def other_weights(pages: dict[str, str]) -> None:
    """Somebody pulled the model anew."""
    page = json.loads(pages["/api/tags"])
    page["models"][0]["digest"] = "f" * 64
    pages["/api/tags"] = json.dumps(page)


@pytest.mark.parametrize(
    ("flavor", "make", "change", "words"),
    [
        (
            "vllm",
            vllm,
            lambda pages: other_version(pages, "/version"),
            "its version was 0.22.0 and is 99.0",
        ),
        (
            "ollama",
            ollama,
            lambda pages: other_version(pages, "/api/version"),
            "its version was 0.34.0 and is 99.0",
        ),
        ("ollama", ollama, other_weights, "its weights was"),
    ],
)
async def test_a_server_that_was_replaced_ends_the_attachment(
    flavor: str,
    make: Callable[[FrameServer], Engine],
    change: Callable[[dict[str, str]], None],
    words: str,
) -> None:
    """However fast it was: its pool attaches anew, and then tells what is there now."""
    async with frame_server(flavor) as server:
        engine = make(server)
        await engine.start()

        change(server.pages)
        sentence = await engine.wait_exit()
        await engine.stop()

    assert isinstance(sentence, str)
    assert words in sentence


async def test_a_llama_server_with_other_slots_ends_the_attachment() -> None:
    """Its pool would send it more than it takes at a time."""
    async with replay_server() as replay:
        config = LlamaServerConfig(base_url=replay.base_url, model_id="m", look_interval_ms=1)
        engine = LlamaServerEngine(config)
        info = await engine.start()

        replay.slots_total += 1
        sentence = await engine.wait_exit()
        await engine.stop()

    slots = info.slots_total
    assert sentence == (
        f"the server was replaced by another one: its slots was {slots} and is {slots + 1}"
    )
