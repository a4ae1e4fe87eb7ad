"""llama-server's messages: cutting, joining, refusing."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool_managerd.engines.failures import redacted
from pool_managerd.engines.llama_wire import (
    SEED_MODULUS,
    FrameReader,
    completion_body,
    llama_error,
)
from pool_managerd.engines.port import (
    Failed,
    Failure,
    Finished,
    GenerationRequest,
    Piece,
    SamplingParams,
)
from pool_managerd.engines.stream_lines import FrameError, Json, LineDecoder

STREAM = (
    ': ping\r\n\r\ndata: {"content": " é日"}\n\nevent: x\ndata:{"content": "🚀"}\r\n\r\n'
    '{"content": "bare"}\nerror: {"error": {}}\n\ndata: [DONE]\n\ndata: {"unfinished'
).encode()
PAYLOADS = [
    '{"content": " é日"}', '{"content": "🚀"}', '{"content": "bare"}', '{"error": {}}', "[DONE]",
]  # fmt: skip


def decoded(chunks: list[bytes]) -> list[str]:
    """Returns the payloads of a stream that arrives in these chunks."""
    decoder = LineDecoder()
    return [payload.decode() for chunk in chunks for payload in decoder.feed(chunk)]


def body_of(*, deterministic: bool = False, **sampling: object) -> Json | Failed:
    """Returns the body for a request with these parameters."""
    parameters = SamplingParams(**{"seed": 1, **sampling})  # type: ignore[arg-type]
    request = GenerationRequest("r", "hi", parameters)
    return completion_body(request, "hi", 0, 512, deterministic=deterministic)


def test_a_stream_split_at_any_byte_gives_the_same_payloads() -> None:
    """Every cut into two chunks, through characters and line ends alike, is invisible."""
    for cut in range(len(STREAM) + 1):
        assert decoded([STREAM[:cut], STREAM[cut:]]) == PAYLOADS


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_a_stream_split_anyhow_gives_the_same_payloads(cuts: list[int]) -> None:
    """Any number of cuts is invisible."""
    edges = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[start:end] for start, end in pairwise(edges)]

    assert decoded(chunks) == PAYLOADS


@pytest.mark.parametrize("step", [1, 7, 100])
def test_a_line_beyond_the_bound_is_refused(step: int) -> None:
    """A server cannot fill the memory with a line that never ends."""
    decoder = LineDecoder(max_line_bytes=50)
    line = b"data: " + b"x" * 45
    chunks = [line[start : start + step] for start in range(0, len(line), step)]

    with pytest.raises(FrameError, match="50 bytes"):
        _ = [payload for chunk in chunks for payload in decoder.feed(chunk)]


def test_a_character_in_two_frames_arrives_in_one_piece() -> None:
    """Half a surrogate pair waits for the other half, and its token id with it."""
    reader = FrameReader()
    frames = [
        {"content": "a\ud83d", "tokens": [1], "tokens_predicted": 1},
        {"content": "\ude80b", "tokens": [2], "tokens_predicted": 2},
    ]

    events = [event for frame in frames for event in reader.read(json.dumps(frame).encode())]

    assert events == [Piece("a🚀b", (1, 2))]


def test_ids_without_text_come_with_the_text_they_led_to() -> None:
    """A frame whose text is held back adds its id to the next piece."""
    reader = FrameReader()
    held = reader.read(b'{"content": "", "tokens": [1], "tokens_predicted": 1}')

    events = reader.read(b'{"content": "ab", "tokens": [2], "tokens_predicted": 2}')

    assert held == []
    assert events == [Piece("ab", (1, 2))]


def test_a_piece_with_unreported_tokens_has_no_ids() -> None:
    """Where the engine skipped a token's frame, no ids are better than some."""
    reader = FrameReader()

    first = reader.read('{"content": "日", "tokens": [3], "tokens_predicted": 3}'.encode())
    second = reader.read(b'{"content": "b", "tokens": [4], "tokens_predicted": 4}')

    assert (first, second) == ([Piece("日")], [Piece("b", (4,))])
    assert reader.tokens_out == 4


def test_text_in_the_last_frame_is_not_lost() -> None:
    """A server may flush held text together with the end."""
    events = FrameReader().read(b'{"content": "end", "tokens": [], "stop": true}')

    assert events[0] == Piece("end")
    assert isinstance(events[1], Finished)


@pytest.mark.parametrize("number", ["1e999", "-1", '"x"', "null", "true"])
def test_senseless_counts_do_not_break_the_end(number: str) -> None:
    """Numbers that cannot be counts are absent, never an exception."""
    timings = f'{{"prompt_n": {number}, "predicted_ms": {number}}}'
    payload = f'{{"content": "", "stop": true, "stop_type": "eos", "timings": {timings}}}'

    (event,) = FrameReader().read(payload.encode())

    assert isinstance(event, Finished)
    assert (event.usage.tokens_in, event.usage.decode_time_ms) == (None, None)


@pytest.mark.parametrize("body", [None, [], "x", {"error": "text"}, {"error": None}, {}])
def test_any_error_body_makes_a_message(body: object) -> None:
    """Errors of proxies and forks are typed by their status."""
    event = llama_error(502, body)

    assert event.failure is Failure.ENGINE_ERROR
    assert event.message


def test_error_messages_are_short_single_lines() -> None:
    """An engine cannot flood logs with its message."""
    message = llama_error(500, {"error": {"message": "line\n" * 1000}}).message

    assert len(message) <= 300
    assert "\n" not in message


@pytest.mark.parametrize("shift", range(16))
def test_quotes_are_found_wherever_they_start(shift: int) -> None:
    """A common run of 31 characters is withheld at any position."""
    quoted = "abcdefghijklmnopqrstuvwxyz01234"
    event = Failed(Failure.INVALID_REQUEST, "." * shift + quoted + " is wrong")

    assert quoted not in redacted(event, (f"please {quoted} now",)).message
    assert redacted(event, ("something else entirely",)) is event


@given(st.integers())
def test_no_seed_means_random(seed: int) -> None:
    """Whatever the seed, llama.cpp gets 32 bits that are not its "random"."""
    body = body_of(seed=seed)

    assert isinstance(body, dict)
    assert isinstance(body["seed"], int)
    assert 0 <= body["seed"] < SEED_MODULUS


@pytest.mark.parametrize(
    "sampling",
    [
        {"max_tokens": 0},
        {"json_schema": "{", "max_tokens": 1},
        {"json_schema": "[]"},
        {"json_schema": "{}", "grammar": "root ::= [a]"},
        {"engine_options": {"temperature": 1.0}},
        {"engine_options": {"repeat_last_n": 1.5}},
        {"engine_options": {"repeat_last_n": True}},
        {"engine_options": {"repeat_last_n": float("inf")}},
        {"engine_options": {"typical_p": float("nan")}},
        {"engine_options": {"typical_p": "much"}},
        {"engine_options": {"ignore_eos": 1}},
        {"engine_options": {"logit_bias": [[1, 1]] * 2000}},
        {"engine_options": {"samplers": "top_k"}},
    ],
)
def test_requests_that_no_replica_would_take_are_refused(sampling: dict[str, object]) -> None:
    """Each is INVALID_REQUEST before anything is sent."""
    refusal = body_of(**sampling)

    assert isinstance(refusal, Failed)
    assert refusal.failure is Failure.INVALID_REQUEST


def test_the_deterministic_profile_never_reuses_the_cache() -> None:
    """Neither by default nor on request."""
    body = body_of(deterministic=True)
    wish = body_of(deterministic=True, engine_options={"cache_prompt": True})
    usual = body_of(engine_options={"cache_prompt": False})

    assert isinstance(body, dict)
    assert body["cache_prompt"] is False
    assert isinstance(wish, Failed)
    assert isinstance(usual, dict)
    assert usual["cache_prompt"] is False
