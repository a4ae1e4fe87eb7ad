"""What each flavor behind OpenAI's API is asked, and how its answers are read. ORCH-3054."""

import json
from typing import Any

import pytest

from pool_managerd.engines.openai_flavors import FLAVORS, FlavorName
from pool_managerd.engines.openai_wire import ChunkReader, request_body
from pool_managerd.engines.port import (
    ChatMessage,
    Failed,
    Failure,
    Finish,
    Finished,
    GenerationRequest,
    Piece,
    SamplingParams,
)
from pool_managerd.engines.stream_lines import Json

REQUEST = GenerationRequest("r", "hi", SamplingParams(seed=5, max_tokens=2))


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
