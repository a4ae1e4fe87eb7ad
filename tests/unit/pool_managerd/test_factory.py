"""From configuration to adapters."""

import pytest

from pool_managerd.config.schema import PoolTable
from pool_managerd.engines.port import (
    Failed,
    Failure,
    Finished,
    GenerationRequest,
    PreloadError,
    SamplingParams,
)
from pool_managerd.factory import make_engine
from tests.conformance.engine_frames import frame_server


def table(**engine: object) -> PoolTable:
    """A pool with an engine."""
    return PoolTable.model_validate({"pool_id": "p", "devices": ["cpu"], "engine": engine})


async def test_a_mock_engine_follows_its_configured_script() -> None:
    """What the file says about slots, context and script reaches the engine."""
    script = {"fail_after_tokens": 0, "failure": "device_out_of_memory"}
    engine = make_engine(table(kind="mock", slots=3, ctx_max=99, script=script), "")

    info = await engine.start()
    request = GenerationRequest("j#1", "hello", SamplingParams(seed=1))
    events = [event async for event in engine.generate(request)]
    await engine.stop()

    assert (info.slots_total, info.ctx_max) == (3, 99)
    assert isinstance(events[-1], Failed)
    assert events[-1].failure is Failure.DEVICE_OUT_OF_MEMORY


async def test_a_missing_model_is_named_by_the_preload() -> None:
    """The path in the message is the one configured, or the one of a reload. ORCH-3003."""
    pool = table(kind="embedded", model_path="/absent/a.gguf", model_id="a")

    for model_ref, named in (("", "/absent/a.gguf"), ("file:/absent/b.gguf", "/absent/b.gguf")):
        engine = make_engine(pool, model_ref)
        with pytest.raises(PreloadError, match=named):
            await engine.start()
        await engine.stop()


def test_only_engines_with_a_model_file_load_one_by_reference() -> None:
    """A reload of another model is refused where the model is not ours to choose."""
    attached = table(kind="llama_server", base_url="http://127.0.0.1:1", model_id="m")

    make_engine(attached, "")
    with pytest.raises(PreloadError, match="llama_server"):
        make_engine(attached, "file:x.gguf")


async def test_a_server_with_openais_api_is_attached_as_configured() -> None:
    """Flavor, names and bounds of the file reach the adapter; the request reaches the server."""
    async with frame_server("tgi") as server:
        settings = {"flavor": "tgi", "slots": 3, "ctx_max": 100, "model_digest": "sha256:ab"}
        known = {"kind": "openai", "base_url": server.base_url, "model_id": "chat"}
        engine = make_engine(table(**known, served_model="m", **settings), "")

        info = await engine.start()
        request = GenerationRequest("j#1", "hello", SamplingParams(seed=1, max_tokens=2))
        events = [event async for event in engine.generate(request)]
        await engine.stop()

    assert (info.engine, info.model_id, info.model_digest) == ("tgi", "chat", "sha256:ab")
    assert (info.slots_total, info.ctx_max) == (3, 100)
    assert isinstance(events[-1], Finished)
    assert server.bodies[0]["prompt"] == "hello"


async def test_servers_of_two_hosts_are_two_servers_whatever_their_address() -> None:
    """Both are at 127.0.0.1, and nobody compared their weights."""
    async with frame_server("tgi") as server:
        known = {"kind": "openai", "flavor": "tgi", "base_url": server.base_url, "model_id": "m"}
        digests = []
        for host_id in ("one", "one", "two"):
            engine = make_engine(table(**known, slots=3, ctx_max=100), "", host_id=host_id)
            digests.append((await engine.start()).model_digest)
            await engine.stop()

    assert digests[0] == digests[1] != digests[2]


async def test_an_ollama_server_is_attached_as_configured() -> None:
    """Names, bounds and how long the model stays reach the server."""
    async with frame_server("ollama") as server:
        settings = {"slots": 3, "ctx_max": 100, "keep_alive": "10m"}
        known = {"kind": "ollama", "base_url": server.base_url, "model_id": "chat"}
        engine = make_engine(table(**known, ollama_model="m", **settings), "")

        info = await engine.start()
        request = GenerationRequest("j#1", "hello", SamplingParams(seed=1))
        events = [event async for event in engine.generate(request)]
        await engine.stop()

    assert (info.engine, info.model_id, info.slots_total) == ("ollama", "chat", 3)
    assert isinstance(events[-1], Finished)
    assert server.bodies[0]["keep_alive"] == "10m"
    assert server.bodies[0]["options"]["num_ctx"] == 100
