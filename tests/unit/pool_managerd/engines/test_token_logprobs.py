"""Log probabilities in the forms that engines report them in."""

import json
import math

import pytest

from pool_managerd.core.logprobs import PIECE_TOKENS_MAX, TokenLogprob
from pool_managerd.engines.llama_wire import FrameReader
from pool_managerd.engines.openai_flavors import FLAVORS
from pool_managerd.engines.openai_wire import ChunkReader, request_body
from pool_managerd.engines.port import (
    ChatMessage,
    Failed,
    GenerationRequest,
    Piece,
    SamplingParams,
)
from pool_managerd.engines.token_logprobs import TOKEN_BYTES_MAX, reported

LISTED = [
    {
        "token": "\ufffd",
        "bytes": [226, 130],
        "logprob": -0.5,
        "top_logprobs": [
            {"token": "\ufffd", "bytes": [226, 130], "logprob": -0.5},
            {"token": "b", "logprob": -1},
            {"token": "c", "logprob": -2},
        ],
    }
]
COLUMNS = {
    "tokens": [" a", " b"],
    "token_logprobs": [-1.5, -0.25],
    "top_logprobs": [{" x": -0.5, " a": -1.5}, {" b": -0.25, " y": -9999.0}],
    "text_offset": [0, 2],
}


def asked(count: int | None, *, chat: bool = False) -> GenerationRequest:
    """A request that wants so many."""
    prompt = (ChatMessage("user", "hi"),) if chat else "hi"
    return GenerationRequest("r", prompt, SamplingParams(seed=1, max_tokens=9, logprobs=count))


def test_a_list_tells_bytes_where_text_cannot() -> None:
    """As llama.cpp and chat completions do; as many of the likeliest as were asked for."""
    token = TokenLogprob(b"\xe2\x82", -0.5, ((b"\xe2\x82", -0.5), (b"b", -1.0)))

    assert reported(LISTED, 2) == (token,)
    assert reported({"content": LISTED}, 0) == (TokenLogprob(b"\xe2\x82", -0.5),)


def test_columns_are_put_together_and_the_likeliest_come_first() -> None:
    """As the older completions of vLLM and SGLang do."""
    assert reported(COLUMNS, 1) == (
        TokenLogprob(b" a", -1.5, ((b" x", -0.5),)),
        TokenLogprob(b" b", -0.25, ((b" b", -0.25),)),
    )


@pytest.mark.parametrize(
    "odd",
    [
        None,
        7,
        "text",
        [None, {"token": 1, "logprob": -1}, {"token": "a", "logprob": None}, {"token": "a"}],
        [{"token": "a", "logprob": math.nan}, {"token": "a", "logprob": True}],
        [{"token": "a", "logprob": 10**400}],
        {"tokens": ["a"], "token_logprobs": [None]},
        {"tokens": "a", "token_logprobs": 1, "top_logprobs": {}},
        {"content": None},
    ],
)
def test_what_is_malformed_is_left_out(odd: object) -> None:
    """It ends no generation."""
    assert reported(odd, 3) == ()


def test_what_one_token_may_hold_is_bounded() -> None:
    """However much the engine sends."""
    entry = {"token": "x" * 999, "bytes": [120] * 999, "logprob": 0.001}

    (token,) = reported([entry], 5)

    assert len(token.token) == TOKEN_BYTES_MAX
    assert token.logprob == 0.0


def frame(content: str, *entries: dict[str, object]) -> bytes:
    """A frame of llama-server."""
    return json.dumps({"content": content, "completion_probabilities": list(entries)}).encode()


def test_what_comes_before_the_rest_of_a_character_waits_for_it() -> None:
    """And a piece holds no more than its bound."""
    reader = FrameReader(logprobs=0)
    many = [{"token": "a", "logprob": -1}] * PIECE_TOKENS_MAX

    assert reader.read(frame("", *LISTED)) == []
    (piece,) = reader.read(frame("€", *many))

    assert isinstance(piece, Piece)
    assert piece.logprobs[0] == TokenLogprob(b"\xe2\x82", -0.5)
    assert len(piece.logprobs) == PIECE_TOKENS_MAX
    assert FrameReader().read(frame("a", *LISTED)) == [Piece("a")]


@pytest.mark.parametrize("flavor", ["vllm", "sglang", "llama_cpp"])
def test_a_flavor_that_has_them_is_asked_in_its_own_words(flavor: str) -> None:
    """A prompt of text and a conversation have fields of their own; 0 would tell nothing."""
    row = FLAVORS[flavor]  # type: ignore[index]
    text = request_body(row, "m", asked(0), deterministic=False)
    chat = request_body(row, "m", asked(4, chat=True), deterministic=False)
    silent = request_body(row, "m", asked(None), deterministic=False)

    assert isinstance(text, dict)
    assert isinstance(chat, dict)
    assert isinstance(silent, dict)
    assert text["logprobs"] == 1
    assert (chat["logprobs"], chat["top_logprobs"]) == (True, 4)
    assert "logprobs" not in silent


@pytest.mark.parametrize("flavor", ["tgi", "ollama", "transformers", "generic"])
def test_a_flavor_that_has_none_refuses_them_by_name(flavor: str) -> None:
    """Nothing that was asked for is left out in silence."""
    row = FLAVORS[flavor]  # type: ignore[index]

    refused = request_body(row, "m", asked(1), deterministic=False)

    assert isinstance(refused, Failed)
    assert refused.message == f"logprobs is not supported by {row.engine} behind this API"


def chunk(**choice: object) -> bytes:
    """A chunk with one choice."""
    return json.dumps({"choices": [{"index": 0, "finish_reason": None, **choice}]}).encode()


def test_chunks_carry_them_with_their_text() -> None:
    """Of both routes; not of reasoning, which is no part of the answer."""
    text = ChunkReader(FLAVORS["vllm"], asked(1))
    chat = ChunkReader(FLAVORS["sglang"], asked(0, chat=True))
    unasked = ChunkReader(FLAVORS["vllm"], asked(None))
    thought = {"delta": {"reasoning_content": "hm"}, "logprobs": {"content": LISTED}}
    said = {"delta": {"content": "a"}, "logprobs": {"content": [{"token": "a", "logprob": -2}]}}

    (piece,) = text.read(chunk(text=" a b", logprobs=COLUMNS))
    assert chat.read(chunk(**thought)) == []
    answer = chat.read(chunk(**said))

    assert isinstance(piece, Piece)
    assert [token.token for token in piece.logprobs] == [b" a", b" b"]
    assert answer == [Piece("a", (), (TokenLogprob(b"a", -2.0),))]
    assert unasked.read(chunk(text="a", logprobs=COLUMNS)) == [Piece("a")]
