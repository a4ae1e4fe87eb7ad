"""Byte equality in the deterministic profile, for each engine that runs here. ORCH-3045, ORCH-3050.

Each engine is started three times: once, again after its end, and a second time beside it.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from pool_managerd.engines.port import ChatMessage, Finished, GenerationRequest
from pool_managerd.models.tiny_gguf import write_tiny_model
from tests.conformance.engine_cases import Running, case_params, open_case
from tests.conformance.generations import collect, end_of, ids_of, request, text_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

_CHAT = (ChatMessage("system", "be brief"), ChatMessage("user", "tell me of the sea"))
WANTED = {
    "sampled": request(temperature=1.0, max_tokens=40, seed=7),
    "another seed": request(temperature=1.0, max_tokens=40, seed=8),
    "a large seed": request(temperature=0.7, max_tokens=20, seed=2**63 - 1),
    "greedy": request(temperature=0.0, max_tokens=40),
    "a conversation": request(prompt=_CHAT, temperature=1.0, max_tokens=20, seed=9),
    "a long prompt": request(prompt="amber lantern " * 100, temperature=1.0, seed=10),
}
NAMES = tuple(WANTED)


@dataclass(frozen=True)
class Replicas:
    """What one incarnation gave before its end, and two that run now."""

    before: dict[str, tuple[str, tuple[int, ...]]]
    restarted: Running
    second: Running


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=case_params())
async def replicas(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Replicas]:
    """Three incarnations of one engine in its deterministic profile, the first of them ended."""
    model = tmp_path_factory.mktemp("models") / "tiny.gguf"
    write_tiny_model(model)
    async with contextlib.AsyncExitStack() as stack:

        async def opened(name: str) -> Running:
            running = await open_case(name, model, slots=1)
            stack.push_async_callback(running.close)
            return running

        first = await opened(request.param)
        before = {name: await output(first, wanted) for name, wanted in WANTED.items()}
        await first.close()
        yield Replicas(before, await opened(request.param), await opened(request.param))


async def output(running: Running, wanted: GenerationRequest) -> tuple[str, tuple[int, ...]]:
    """Returns the text and the token ids of a generation that ends regularly."""
    events = await collect(running.engine, wanted)
    assert isinstance(end_of(events), Finished)
    return text_of(events), ids_of(events)


async def test_the_profile_is_told(replicas: Replicas) -> None:
    """The snapshot's flag is set, and all three count as replicas of one another."""
    for running in (replicas.restarted, replicas.second):
        assert running.info.deterministic
    one, other = replicas.restarted.info, replicas.second.info
    assert one.sampler_profile_version == other.sampler_profile_version
    assert one.engine_version == other.engine_version


async def test_the_outputs_are_not_all_one(replicas: Replicas) -> None:
    """Equality below means something: seeds and prompts matter."""
    texts = {text for text, _ in replicas.before.values()}

    assert len(texts) == len(WANTED)


@pytest.mark.parametrize("name", NAMES)
async def test_the_same_seed_twice_gives_the_same_bytes(replicas: Replicas, name: str) -> None:
    """Warm, and after other work, as when cold."""
    running = replicas.restarted
    first = await output(running, WANTED[name])
    await output(running, request(prompt="something else", temperature=1.0, seed=3))

    assert await output(running, WANTED[name]) == first


@pytest.mark.parametrize("name", NAMES)
async def test_a_restart_gives_the_same_bytes(replicas: Replicas, name: str) -> None:
    """What an incarnation gave before its end, the next one gives again."""
    assert await output(replicas.restarted, WANTED[name]) == replicas.before[name]


@pytest.mark.parametrize("name", NAMES[::-1])
async def test_a_second_replica_gives_the_same_bytes(replicas: Replicas, name: str) -> None:
    """Another incarnation beside it, asked in another order, gives the same."""
    assert await output(replicas.second, WANTED[name]) == replicas.before[name]
