"""What the OpenAI adapter finds out at its start, and how it verifies a cancel. ORCH-3054."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pool_managerd.engines import idle_check
from pool_managerd.engines.openai import OpenAiConfig, OpenAiEngine
from pool_managerd.engines.openai_flavors import FlavorName
from pool_managerd.engines.port import (
    CancelUnconfirmedError,
    Failed,
    Failure,
    GenerationRequest,
    Piece,
    PreloadError,
    SamplingParams,
)
from tests.conformance.engine_frames import FrameServer, frame_server

REQUEST = GenerationRequest("r", "hi", SamplingParams(seed=5, max_tokens=2))


@pytest.fixture
async def vllm() -> AsyncIterator[FrameServer]:
    """A server with vLLM's frames."""
    async with frame_server("vllm") as server:
        yield server


def engine_for(server: FrameServer, flavor: FlavorName = "vllm", **settings: Any) -> OpenAiEngine:
    """An adapter for the server."""
    known = {"model_id": "m", "slots": 2, **settings}
    return OpenAiEngine(OpenAiConfig(base_url=server.base_url, flavor=flavor, **known))


async def started(engine: OpenAiEngine) -> OpenAiEngine:
    """The engine, started."""
    await engine.start()
    return engine


def metrics(running: int, tokens: int) -> str:
    """What vLLM tells Prometheus."""
    return (
        "# TYPE vllm:num_requests_running gauge\n"
        f'vllm:num_requests_running{{engine="0"}} {running}\n'
        "# TYPE vllm:generation_tokens counter\n"
        f'vllm:generation_tokens_total{{engine="0"}} {tokens}\n'
    )


async def closed(server: FrameServer, engine: OpenAiEngine, request_id: str = "r") -> None:
    """Opens a generation, sees its first piece and closes it."""
    lines = [line for line in server.chunks[0].splitlines(keepends=True) if line.strip()]
    server.chunks, server.hangs = [lines[0] + b"\n"], True
    generation = engine.generate(
        GenerationRequest(request_id, "hi", SamplingParams(seed=1, max_tokens=9))
    )
    assert isinstance(await anext(generation), Piece)
    await generation.aclose()


async def test_facts_come_from_the_server(vllm: FrameServer) -> None:
    """Version and context are what it says; its weights are nobody's replicas until vouched for."""
    engine = engine_for(vllm)
    info = await engine.start()
    await engine.stop()

    assert (info.engine, info.engine_version, info.ctx_max) == ("vllm", "0.22.0", 512)
    assert (info.slots_total, info.deterministic) == (2, False)
    assert info.sampler_profile_version == "openai-vllm-1"
    assert {*info.extensions} == {
        "chat_template",
        "grammar",
        "json_schema",
        "logprobs",
        "token_ids",
    }
    assert info.model_digest.startswith("unverified:")


@pytest.mark.parametrize("data", ["5", "{}", '"m"', '[{"id": ["m"]}]', '[{"id": {"m": 1}}, 7]'])
async def test_an_odd_list_of_models_lists_none(vllm: FrameServer, data: str) -> None:
    """The start says so, in no words of Python."""
    vllm.pages["/v1/models"] = f'{{"data": {data}}}'

    with pytest.raises(PreloadError, match="does not serve 'm'"):
        await engine_for(vllm).start()


async def test_a_context_without_a_limit_is_none_that_is_told(vllm: FrameServer) -> None:
    """10^30 is Hugging Face's word for it; what counts is then the configuration's."""
    models = vllm.pages["/v1/models"]
    vllm.pages["/v1/models"] = models.replace('"max_model_len":512', f'"max_model_len":{10**30}')

    with pytest.raises(PreloadError, match="ctx_max must be set"):
        await engine_for(vllm).start()
    info = await engine_for(vllm, ctx_max=4_096).start()

    assert info.ctx_max == 4_096


@pytest.mark.parametrize(
    ("name", "flavor", "settings", "words"),
    [
        ("vllm", "vllm", {"slots": 0}, "slots must be set"),
        ("vllm", "vllm", {"ctx_max": 513}, "ctx_max = 513, but the server has 512"),
        ("vllm", "vllm", {"served_model": "other"}, "does not serve 'other'; it serves m"),
        ("vllm", "sglang", {}, "does not answer like a server of the flavor sglang"),
        ("transformers", "transformers", {"slots": 1}, "ctx_max must be set"),
        ("transformers", "transformers", {"ctx_max": 9}, "slots = 2, but transformers runs one"),
        ("tgi", "tgi", {"slots": 0}, "slots must be set"),
        ("tgi", "tgi", {"slots": 129}, "slots = 129, but the server has 128"),
        ("tgi", "tgi", {"deterministic": True}, "tgi cannot promise equal bytes"),
        ("sglang", "sglang", {"deterministic": True}, "--enable-deterministic-inference"),
        ("llama_cpp", "llama_cpp", {"deterministic": True, "slots": 1}, "a server with one slot"),
    ],
)
async def test_a_server_that_will_not_do_is_refused_with_the_reason(
    name: str, flavor: FlavorName, settings: dict[str, Any], words: str
) -> None:
    """The start fails and names what to change."""
    async with frame_server(name) as server:
        with pytest.raises(PreloadError) as raised:
            await engine_for(server, flavor, **settings).start()

    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("name", "pages", "settings"),
    [
        ("vllm", {}, {}),
        ("sglang", {"/server_info": '{"enable_deterministic_inference": true}'}, {}),
        ("llama_cpp", {"/props": '{"total_slots": 1}'}, {"slots": 0, "ctx_max": 9}),
        ("transformers", {}, {"slots": 1, "ctx_max": 9}),
    ],
)
async def test_the_deterministic_profile_of_a_flavor_is_told(
    name: FlavorName, pages: dict[str, str], settings: dict[str, Any]
) -> None:
    """Where it can be promised the flag is set, and the profile is another one."""
    async with frame_server(name) as server:
        server.pages |= pages
        engine = engine_for(server, name, deterministic=True, **settings)
        info = await engine.start()
        await engine.stop()

    assert info.deterministic
    assert info.sampler_profile_version == f"openai-{name}-deterministic-1"


async def test_a_cancel_is_verified_by_what_the_server_works_on(vllm: FrameServer) -> None:
    """The gauge counts one more than is open here until the engine has stopped."""
    vllm.pages["/metrics"] = metrics(running=1, tokens=1)
    engine = await started(engine_for(vllm))
    seen: list[str] = []

    def stop_at_the_third_look(path: str) -> None:
        seen.append(path)
        working = len(seen) < 3
        vllm.pages["/metrics"] = metrics(running=int(working), tokens=len(seen))

    await closed(vllm, engine)
    vllm.looked = stop_at_the_third_look
    await engine.confirm_idle("r", 5_000)
    await engine.stop()

    assert len(seen) == 4


async def test_other_generations_are_not_waited_for(vllm: FrameServer) -> None:
    """What is open here beside the cancelled one may go on."""
    engine = await started(engine_for(vllm))
    whole = vllm.chunks
    vllm.hangs = True
    other = engine.generate(GenerationRequest("other", "hi", SamplingParams(seed=1, max_tokens=9)))
    await anext(other)
    vllm.chunks = whole
    vllm.pages["/metrics"] = metrics(running=1, tokens=1)

    await closed(vllm, engine)
    await engine.confirm_idle("r", 5_000)

    await other.aclose()
    await engine.stop()


async def test_an_engine_that_goes_on_is_unconfirmed(vllm: FrameServer) -> None:
    """The gauge stays and tokens are still counted: the slot is not given back."""
    engine = await started(engine_for(vllm, slots=1))
    await closed(vllm, engine)
    ticks = iter(range(10**9))

    def go_on(_: str) -> None:
        vllm.pages["/metrics"] = metrics(running=1, tokens=next(ticks))

    go_on("")
    vllm.looked = go_on
    with pytest.raises(CancelUnconfirmedError):
        await engine.confirm_idle("r", 200)

    events = [event async for event in engine.generate(REQUEST)]
    await engine.stop()
    assert isinstance(events[-1], Failed)
    assert events[-1].failure is Failure.INVALID_REQUEST


async def test_a_stale_gauge_does_not_fail_a_cancel(
    vllm: FrameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that idles does not refresh its gauges; that it counts nothing shows it."""
    monkeypatch.setattr(idle_check, "_STALE_S", 0.05)
    vllm.pages["/metrics"] = metrics(running=2, tokens=7)
    engine = await started(engine_for(vllm))
    whole = vllm.chunks
    await closed(vllm, engine)
    vllm.chunks = whole
    await closed(vllm, engine, "s")

    await engine.confirm_idle("r", 5_000)
    await engine.confirm_idle("s", 5_000)

    await engine.stop()


@pytest.mark.parametrize(
    "page", [None, "not metrics {", "# nothing here\n", "vllm:num_requests_running +Inf\n"]
)
async def test_a_server_that_shows_nothing_is_believed(vllm: FrameServer, page: str | None) -> None:
    """Without metrics closing the connection has to do: no cancel fails for lack of proof."""
    vllm.pages.pop("/metrics")
    if page is not None:
        vllm.pages["/metrics"] = page
    engine = await started(engine_for(vllm, slots=1))
    await closed(vllm, engine)

    async with asyncio.timeout(20):
        await engine.confirm_idle("r", 60_000)

    await engine.stop()


async def test_an_early_cancel_needs_more_than_one_glance(vllm: FrameServer) -> None:
    """A request that was closed before any answer may still be on its way in."""
    engine = await started(engine_for(vllm))
    vllm.mute, looks = True, []
    first = asyncio.ensure_future(anext(engine.generate(REQUEST)))
    await vllm.entered.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    vllm.looked = looks.append

    await engine.confirm_idle("r", 5_000)

    await engine.stop()
    assert len(looks) == 3


@pytest.mark.parametrize("setting", [{"base_url": "ftp://x"}, {"slots": -1}, {"ctx_max": -1}])
def test_settings_that_cannot_work_are_refused_at_once(setting: dict[str, Any]) -> None:
    """A configuration that cannot work does not wait for the start."""
    with pytest.raises(ValueError, match=r"base_url|slots"):
        OpenAiConfig(**{"base_url": "http://x", "flavor": "vllm", "model_id": "m", **setting})


async def test_a_server_that_is_not_there_yet_may_come() -> None:
    """It is no mistake of the configuration, as a wrong key is."""
    config = OpenAiConfig(base_url="http://127.0.0.1:9", flavor="vllm", model_id="m", slots=1)

    with pytest.raises(PreloadError, match="does not accept connections") as raised:
        await OpenAiEngine(config).start()

    assert raised.value.passing
