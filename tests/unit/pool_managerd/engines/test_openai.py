"""What the OpenAI adapter finds out at its start, and how it verifies a cancel. ORCH-3054."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pool_managerd.engines import idle_check
from pool_managerd.engines.openai import OpenAiConfig, OpenAiEngine
from pool_managerd.engines.openai_flavors import FLAVORS, FlavorName
from pool_managerd.engines.openai_wire import ChunkReader, request_body
from pool_managerd.engines.port import (
    CancelUnconfirmedError,
    ChatMessage,
    Failed,
    Failure,
    Finish,
    Finished,
    GenerationRequest,
    Piece,
    PreloadError,
    SamplingParams,
)
from pool_managerd.engines.stream_lines import Json
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


def body_of(flavor: FlavorName, prompt: Any = "hi", **sampling: Any) -> Json:
    """The body of a request that the flavor supports."""
    parameters = SamplingParams(**{"seed": 1, "max_tokens": 4, **sampling})
    body = request_body(
        FLAVORS[flavor], "m", GenerationRequest("r", prompt, parameters), deterministic=False
    )
    assert isinstance(body, dict)
    return body


def read(flavor: FlavorName, request: GenerationRequest, *chunks: Json) -> list[Any]:
    """The events of these chunks and of the end of the stream."""
    reader = ChunkReader(FLAVORS[flavor], request)
    events = [event for chunk in chunks for event in reader.read(json.dumps(chunk).encode())]
    return [*events, *reader.close()]


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


def test_a_schema_goes_where_each_flavor_wants_it() -> None:
    """Guided decoding has a name of its own in each engine."""
    schema = {"type": "object"}
    text = json.dumps(schema)

    assert body_of("vllm", json_schema=text)["structured_outputs"] == {"json": schema}
    assert body_of("vllm", grammar="root ::= x")["structured_outputs"] == {"grammar": "root ::= x"}
    assert body_of("sglang", json_schema=text)["json_schema"] == text
    assert body_of("llama_cpp", json_schema=text)["json_schema"] == schema
    chat = body_of("generic", (ChatMessage("user", "hi"),), json_schema=text)["response_format"]
    assert chat == {
        "type": "json_schema",
        "json_schema": {"name": "output", "strict": True, "schema": schema},
    }


@pytest.mark.parametrize(("temperature", "samples"), [(0.7, True), (0.0, False)])
def test_transformers_is_told_to_sample(temperature: float, samples: bool) -> None:
    """A temperature alone does nothing to a model that is greedy by default."""
    packed = json.loads(
        str(body_of("transformers", temperature=temperature, top_k=3)["generation_config"])
    )

    assert packed["do_sample"] is samples
    assert packed.get("temperature") == (temperature or None)
    assert packed["top_k"] == 3


def test_engine_options_pass_with_their_types() -> None:
    """Whole numbers may arrive as doubles; a wrong type is refused by name."""
    body = body_of("vllm", engine_options={"min_tokens": 3.0, "repetition_penalty": 1.1})
    assert (body["min_tokens"], body["repetition_penalty"]) == (3, 1.1)
    assert isinstance(body["min_tokens"], int)

    parameters = SamplingParams(seed=1, max_tokens=1, engine_options={"min_tokens": "3"})
    refusal = request_body(
        FLAVORS["vllm"], "m", GenerationRequest("r", "hi", parameters), deterministic=False
    )
    assert isinstance(refusal, Failed)
    assert "min_tokens" in refusal.message


@pytest.mark.parametrize(
    ("reason", "detail", "finish"),
    [
        ("stop", None, Finish.EOS),
        ("stop", 128009, Finish.EOS),
        ("stop", "END", Finish.STOP),
        ("length", None, Finish.LENGTH),
        ("tool_calls", None, Finish.TOOL_CALLS),
        ("content_filter", None, Finish.CONTENT_FILTER),
    ],
)
def test_finish_reasons_have_their_meaning(reason: str, detail: object, finish: Finish) -> None:
    """What was met tells a stop sequence from the model's own end."""
    choice = {"index": 0, "text": "x", "finish_reason": reason, "stop_reason": detail}

    *_, end = read("vllm", REQUEST, {"choices": [choice]})

    assert isinstance(end, Finished)
    assert end.finish is finish


def test_tgi_is_asked_for_no_adapter_and_its_end_token_is_no_text() -> None:
    """There the model's name selects an adapter, and the last chunk holds the end token's text."""
    end = {"choices": [{"text": "</s>", "finish_reason": "eos_token"}], "usage": {}}

    events = read("tgi", REQUEST, {"choices": [{"text": "yes", "finish_reason": ""}]}, end)

    assert body_of("tgi")["model"] == "tgi"
    assert events[0] == Piece("yes")
    assert isinstance(events[1], Finished)
    assert events[1].finish is Finish.EOS
    assert len(events) == 2


@pytest.mark.parametrize("reason", ["abort", "error", "surprise"])
def test_an_end_that_is_no_end_is_an_engine_error(reason: str) -> None:
    """A generation that the engine gave up is not passed off as whole."""
    piece, end, *more = read(
        "sglang", REQUEST, {"choices": [{"text": "x", "finish_reason": reason}]}
    )

    assert piece == Piece("x")
    assert isinstance(end, Failed)
    assert end.failure is Failure.ENGINE_ERROR
    assert reason in end.message
    assert not more


def test_ids_are_not_given_where_the_text_lags_behind_them() -> None:
    """With stop sequences vLLM holds text back, but no ids; ids of reasoning say too much."""
    asked = body_of("vllm", stop=("x",))
    reasoned = read(
        "vllm",
        GenerationRequest("r", (ChatMessage("user", "hi"),), SamplingParams(seed=1)),
        {"choices": [{"delta": {"reasoning_content": "hm"}, "token_ids": [1]}]},
        {"choices": [{"delta": {"content": "yes"}, "token_ids": [2], "finish_reason": "stop"}]},
    )

    assert "return_token_ids" not in asked
    assert body_of("vllm")["return_token_ids"] is True
    assert reasoned[0] == Piece("yes")


def test_a_character_in_two_halves_is_joined() -> None:
    """A pair of surrogates that arrives in two chunks is one character, and waits for its rest."""
    first = {"choices": [{"text": "a\ud83d", "finish_reason": None}]}
    second = {"choices": [{"text": "\ude80b", "finish_reason": "stop"}]}

    pieces = [
        event for event in read("generic", REQUEST, first, second) if isinstance(event, Piece)
    ]

    assert pieces == [Piece("a🚀b")]


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
