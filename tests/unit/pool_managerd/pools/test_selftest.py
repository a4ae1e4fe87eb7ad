"""The self-test of an engine, which is also the probe of an open circuit. ORCH-3040, ORCH-3049."""

from collections.abc import AsyncIterator

import pytest

from pool_managerd.engines.llama_server import LlamaServerConfig, LlamaServerEngine
from pool_managerd.engines.openai import OpenAiConfig, OpenAiEngine
from pool_managerd.engines.port import Engine
from pool_managerd.pools.selftest import self_test
from tests.conformance.engine_frames import FrameServer, frame_server
from tests.conformance.engine_replay import Replay, replay_server

CONFIRM_MS = 2_000


@pytest.fixture
async def replay() -> AsyncIterator[Replay]:
    """A llama-server."""
    async with replay_server() as replay:
        yield replay


@pytest.fixture
async def vllm() -> AsyncIterator[FrameServer]:
    """A vLLM."""
    async with frame_server("vllm") as server:
        yield server


async def two_verdicts(engine: Engine, server: Replay | FrameServer) -> tuple[str, str]:
    """What a test says of an engine that hangs, and the next one when it hangs no more."""
    info = await engine.start()
    server.mute = True
    hanging = await self_test(engine, info, 100, CONFIRM_MS)
    server.mute = False
    well = await self_test(engine, info, 30_000, CONFIRM_MS)
    await engine.stop()
    return hanging, well


async def test_a_llama_server_that_hung_passes_once_it_answers(replay: Replay) -> None:
    """The generation that was given up must not stand in the way of every later probe."""
    replay.slots_total = 1
    engine = LlamaServerEngine(LlamaServerConfig(base_url=replay.base_url, model_id="m"))

    hanging, well = await two_verdicts(engine, replay)

    assert "no answer to a prompt of one word" in hanging
    assert not well


async def test_a_server_with_the_api_of_openai_that_hung_passes_once_it_answers(
    vllm: FrameServer,
) -> None:
    """The same, of one whose slots are counted here."""
    config = OpenAiConfig(base_url=vllm.base_url, flavor="vllm", model_id="m", slots=1)

    hanging, well = await two_verdicts(OpenAiEngine(config), vllm)

    assert "no answer to a prompt of one word" in hanging
    assert not well


async def test_an_engine_that_never_lets_go_of_a_test_fails_the_next(replay: Replay) -> None:
    """It says so, and is asked again by the next one."""
    engine = LlamaServerEngine(LlamaServerConfig(base_url=replay.base_url, model_id="m"))
    info = await engine.start()
    replay.mute = True
    await self_test(engine, info, 100, CONFIRM_MS)
    replay.mute, replay.busy_answers = False, 1_000_000

    stuck = await self_test(engine, info, 30_000, 100)
    replay.busy_answers = 0
    well = await self_test(engine, info, 30_000, CONFIRM_MS)
    await engine.stop()

    assert "of the test before was not stopped" in stuck
    assert not well
