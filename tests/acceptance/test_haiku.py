"""The haiku check itself: what it lets pass and what not. ORCH-3051."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from llamaorch_client import AsyncClient
from pool_managerd.core.device import Device, DeviceKind
from pool_managerd.devices.cpu import CpuDevices
from pool_managerd.engines.mock import MockEngine
from pool_managerd.engines.port import (
    EngineInfo,
    Finish,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Piece,
    Usage,
)
from tests.acceptance import haiku
from tests.features.service import Service

HAIKU = "The old clock whispers\nforty-two grains of silence\nfall into the pond"
AT_42 = datetime(2026, 1, 1, 12, 42)  # noqa: DTZ001 - a minute is the same everywhere here


class Gpu(CpuDevices):
    """A machine whose one device is no processor."""

    def devices(self) -> tuple[Device, ...]:
        """One GPU."""
        return (Device("GPU-1", DeviceKind.GPU, name="Test GPU", index=0),)


class Poet(MockEngine):
    """An engine that has learned one poem by heart."""

    poem = HAIKU

    async def start(self) -> EngineInfo:
        """Nobody sees that it is a mock."""
        info = await super().start()
        return replace(info, engine="poet", model_digest="sha256:1")

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """The poem, line by line."""
        lines = self.poem.splitlines(keepends=True)
        for number, line in enumerate(lines):
            yield Piece(line, (number,))
        yield Finished(Finish.EOS, Usage(tokens_in=9, tokens_cached=0, tokens_out=len(lines)))


class Forgetful(Poet):
    """It has the minute wrong."""

    poem = HAIKU.replace("two", "six")


@asynccontextmanager
async def served(directory: Path, poet: type[Poet] | None = None) -> AsyncIterator[AsyncClient]:
    """A service, with the mock engine or with a poet on a GPU."""
    service = Service(directory)
    try:
        await service.start()
        if poet is not None:
            service.devices, service.mock = Gpu, poet
        await service.add_host("host-1", {"pool_id": "gpu", "slots": 1})
        yield await service.client()
    finally:
        await service.close()


async def test_words_of_a_random_model_are_not_judged(tmp_path: Path) -> None:
    """Its way through the service is."""
    async with served(tmp_path) as client:
        verdict = await haiku.check(client, require_gpu=False)

    assert (verdict.pool_id, verdict.judged, verdict.problems) == ("gpu", False, ())
    assert verdict.text


async def test_a_gpu_that_is_required_and_not_there_is_a_failure(tmp_path: Path) -> None:
    """REQUIRE_GPU=1."""
    async with served(tmp_path) as client:
        verdict = await haiku.check(client, require_gpu=True)

    assert verdict.problems == ("REQUIRE_GPU is set, and it did not run on a GPU",)


async def test_a_poem_of_a_gpu_is_judged(tmp_path: Path) -> None:
    """By the minute of the question."""
    async with served(tmp_path, Poet) as client:
        verdict = await haiku.check(client, require_gpu=True, clock=lambda: AT_42)

    assert (verdict.judged, verdict.text, verdict.problems) == (True, HAIKU, ())


async def test_a_poem_of_another_minute_is_a_failure(tmp_path: Path) -> None:
    """Though it is a haiku."""
    async with served(tmp_path, Forgetful) as client:
        verdict = await haiku.check(client, require_gpu=True, clock=lambda: AT_42)

    assert verdict.judged
    assert verdict.problems == ("it does not say 'forty-two'",)


async def test_a_service_without_pools_is_a_failure(tmp_path: Path) -> None:
    """There is nobody to ask."""
    service = Service(tmp_path)
    await service.start()
    try:
        verdict = await haiku.check(await service.client(), require_gpu=False)
    finally:
        await service.close()

    assert verdict.problems == ("no pool is READY",)
