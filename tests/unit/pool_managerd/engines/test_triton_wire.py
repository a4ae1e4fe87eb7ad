"""Triton's messages without a server: documented models, cuts at every byte. ORCH-3057."""

import json
import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool_managerd.engines.port import (
    ChatMessage,
    Failed,
    Failure,
    Finish,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Piece,
    SamplingParams,
    Usage,
)
from pool_managerd.engines.triton_binding import Binding, ModelFacts, bind
from pool_managerd.engines.triton_inference_service_pb2 import (
    ModelInferRequest,
    ModelStreamInferResponse,
)
from pool_managerd.engines.triton_profiles import PLAIN, TENSORRT_LLM, VLLM, Profile
from pool_managerd.engines.triton_tensors import Tensor, TensorError, append, numbers_of
from pool_managerd.engines.triton_wire import ResponseReader, StopCutter, infer_request
from tests.conformance.triton_replay import (
    OUTPUTS,
    PLAIN_INPUTS,
    TENSORRT_INPUTS,
    VLLM_INPUTS,
    Inputs,
    response,
)

WITH_IDS = (*OUTPUTS, ("token_ids", "INT32"))


def facts(inputs: Inputs, outputs: Sequence[tuple[str, str]] = OUTPUTS) -> ModelFacts:
    """Returns what a server says about a model with these tensors."""
    return ModelFacts(
        inputs=tuple(Tensor(name, kind, len(shape), opt) for name, kind, shape, opt in inputs),
        outputs=tuple(Tensor(name, kind, 1) for name, kind in outputs),
        decoupled=True,
    )


def bound(
    profile: Profile = PLAIN,
    inputs: Inputs = PLAIN_INPUTS,
    outputs: Sequence[tuple[str, str]] = OUTPUTS,
    **names: str,
) -> Binding:
    """Returns a profile that fits a model without a shortfall."""
    binding, shortfalls = bind(profile, facts(inputs, outputs), names, ignore_seed=False)
    assert shortfalls == []
    return binding


def asked(prompt: Any = "hi", **more: Any) -> GenerationRequest:
    """Returns a request; `more` is sampling, or how it continues."""
    how = {name: more.pop(name) for name in ("continue_text", "continue_token_ids") if name in more}
    return GenerationRequest("r", prompt, SamplingParams(**{"seed": 1, **more}), **how)


def sent(request: GenerationRequest, binding: Binding) -> dict[str, tuple[list[int], bytes]]:
    """Returns shape and bytes of each input of the request that is built."""
    message = infer_request(request, binding, 100)
    assert isinstance(message, ModelInferRequest)
    return {
        entry.name: (list(entry.shape), raw)
        for entry, raw in zip(message.inputs, message.raw_input_contents, strict=True)
    }


def text(value: str) -> bytes:
    """Returns a text as an element of a tensor."""
    return struct.pack("<I", len(value.encode())) + value.encode()


def read(
    messages: Iterable[ModelStreamInferResponse],
    binding: Binding | None = None,
    request: GenerationRequest | None = None,
) -> list[GenerationEvent]:
    """Returns all events of a stream."""
    reader = ResponseReader(request or asked(), binding or bound())
    return [event for message in messages for event in reader.read(message)]


def test_tensorrt_llm_gets_tensors_with_a_batch_dimension() -> None:
    """Of the documented shapes and datatypes; stop sequences are one row."""
    binding = bound(TENSORRT_LLM, TENSORRT_INPUTS)
    options = {"repetition_penalty": 2}

    inputs = sent(asked(max_tokens=9, stop=("é", "ab"), engine_options=options), binding)

    assert inputs == {
        "text_input": ([1, 1], text("hi")),
        "max_tokens": ([1, 1], struct.pack("<i", 9)),
        "seed": ([1, 1], struct.pack("<Q", 1)),
        "stop_words": ([1, 2], text("é") + text("ab")),
        "repetition_penalty": ([1, 1], struct.pack("<f", 2)),
        "exclude_input_in_output": ([1, 1], b"\x01"),
        "stream": ([1, 1], b"\x01"),
    }


def test_what_would_spoil_the_text_is_no_option() -> None:
    """Other inputs of TensorRT-LLM change the outputs, so they are refused."""
    binding = bound(TENSORRT_LLM, TENSORRT_INPUTS)

    refused = infer_request(asked(engine_options={"return_log_probs": True}), binding, 100)

    assert isinstance(refused, Failed)
    assert "'return_log_probs'" in refused.message


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("ignore_eos", 1),
        ("min_tokens", 1.5),
        ("lora_name", 3),
        ("presence_penalty", True),
        ("n", 2),
    ],
)
def test_vllm_options_are_known_by_name_and_type(option: str, value: object) -> None:
    """Or the backend would answer with an error that names nothing."""
    binding = bound(VLLM, VLLM_INPUTS)

    refused = infer_request(asked(engine_options={option: value}), binding, 100)

    assert isinstance(refused, Failed)
    assert refused.failure is Failure.INVALID_REQUEST
    assert repr(option) in refused.message


def test_a_tensor_may_have_a_name_of_its_own() -> None:
    """The operator's names go before the profile's."""
    inputs = [("question", "BYTES", (1,), False), ("dice", "INT64", (1,), False)]
    outputs = [("answer", "BYTES")]
    binding, shortfalls = bind(
        PLAIN,
        facts(inputs, outputs),
        {"prompt": "question", "seed": "dice", "text": "answer"},
        ignore_seed=False,
    )

    assert shortfalls == []
    assert binding.outputs == {"text": "answer"}
    # Nothing takes a limit, so none can be kept.
    assert sent(asked(), binding).keys() == {"question", "dice"}
    refused = infer_request(asked(max_tokens=3), binding, 100)
    assert refused == Failed(Failure.INVALID_REQUEST, "this model cannot be given max_tokens")


@pytest.mark.parametrize(
    ("datatype", "seed", "expected"),
    [("UINT32", 2**32 + 7, 7), ("INT32", 2**31 + 7, 7), ("UINT64", 2**64 - 1, 2**64 - 1)],
)
def test_seeds_wrap_around_in_the_models_datatype(datatype: str, seed: int, expected: int) -> None:
    """A seed is always a seed, and never negative."""
    inputs = [("seed", datatype, (1,), False) if name == "seed" else (name, kind, shape, opt)
              for name, kind, shape, opt in PLAIN_INPUTS]  # fmt: skip

    raw = sent(asked(seed=seed), bound(PLAIN, inputs))["seed"][1]

    assert int.from_bytes(raw, "little") == expected


def test_a_conversation_goes_to_a_model_that_takes_one() -> None:
    """As JSON, and the template stays the model's business; others refuse it."""
    chat = (ChatMessage("system", "brief"), ChatMessage("user", "hé"))
    with_chat = [*PLAIN_INPUTS, ("messages", "BYTES", (1,), True),
                 ("continue_text", "BYTES", (1,), True)]  # fmt: skip
    binding = bound(PLAIN, with_chat)

    inputs = sent(asked(chat, continue_text=" and"), binding)
    refused = infer_request(asked(chat), bound(), 100)

    assert json.loads(inputs["messages"][1][4:]) == [
        {"role": "system", "content": "brief"},
        {"role": "user", "content": "hé"},
    ]
    assert inputs["text_input"][1] == text("")
    assert inputs["continue_text"][1] == text(" and")
    assert "chat_template" in binding.extensions
    assert refused == Failed(Failure.INVALID_REQUEST, "this model cannot be given messages")


def test_a_continuation_is_ids_where_the_model_takes_them() -> None:
    """Otherwise the text follows the prompt, and ids without a text are refused."""
    takes_ids = [*PLAIN_INPUTS, ("continue_token_ids", "INT32", (-1,), True)]
    binding = bound(PLAIN, takes_ids, WITH_IDS)

    by_ids = sent(asked(continue_token_ids=(7, 8), continue_text=" x"), binding)
    by_text = sent(asked(continue_text=" x", continue_token_ids=(7,)), bound())
    refused = infer_request(asked(continue_token_ids=(7,)), bound(), 100)

    assert by_ids["continue_token_ids"] == ([2], struct.pack("<2i", 7, 8))
    assert by_ids["text_input"][1] == text("hi")
    assert by_text["text_input"][1] == text("hi x")
    assert "token_ids" in binding.extensions
    assert isinstance(refused, Failed)


def test_schema_and_grammar_exclude_each_other() -> None:
    """Even where the model takes both."""
    both = [*PLAIN_INPUTS, ("grammar", "BYTES", (1,), True), ("json_schema", "BYTES", (1,), True)]
    binding = bound(PLAIN, both)

    refused = infer_request(asked(grammar="x", json_schema="{}"), binding, 100)

    assert sent(asked(grammar="x"), binding)["grammar"][1] == text("x")
    assert isinstance(refused, Failed)


@given(st.text(min_size=1, max_size=12), st.data())
def test_characters_stay_whole_wherever_they_are_cut(whole: str, data: st.DataObject) -> None:
    """The pieces together are the text, whatever the cuts, and each is text for itself."""
    raw = whole.encode("utf-8", "replace")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    bounds = [0, *cuts, len(raw)]
    parts = [raw[a:b] for a, b in pairwise(bounds)]

    *pieces, end = read([*(response(part) for part in parts), response(final=True)])

    assert all(isinstance(piece, Piece) and piece.text for piece in pieces)
    assert "".join(piece.text for piece in pieces if isinstance(piece, Piece)) == raw.decode()
    assert isinstance(end, Finished)


def test_bytes_that_are_no_text_are_replaced() -> None:
    """Also those at the very end."""
    events = read([response(b"a\xff"), response(b"\xe6\x97", final=True)])

    assert events == [Piece("a\ufffd"), Piece("\ufffd"), Finished(Finish.EOS)]


def test_ids_wait_for_the_whole_text_that_they_led_to() -> None:
    """So a continuation can be built from all pieces so far."""
    binding = bound(outputs=WITH_IDS[:2] + WITH_IDS[-1:])
    day = "日".encode()

    events = read(
        [
            response(b" a", token_ids=[1]),
            response(b" b" + day[:1], token_ids=[2]),
            response(day[1:], token_ids=[3, 4]),
            response(final=True),
        ],
        binding,
        asked(max_tokens=4),
    )

    assert events == [
        Piece(" a", (1,)),
        Piece(" b日", (2, 3, 4)),
        Finished(Finish.LENGTH, Usage(tokens_out=4)),
    ]


@pytest.mark.parametrize(
    ("reason", "stops", "finish"),
    [
        ("", (), Finish.EOS),
        ("stop", (), Finish.EOS),
        ("stop", ("x",), Finish.STOP),
        ("eos", ("x",), Finish.EOS),
        ("length", ("x",), Finish.LENGTH),
        ("LENGTH", (), Finish.LENGTH),
        ("tool_calls", (), Finish.TOOL_CALLS),
        ("content_filter", (), Finish.CONTENT_FILTER),
    ],
)
def test_reasons_for_the_end(reason: str, stops: tuple[str, ...], finish: Finish) -> None:
    """VLLM says "stop" for its own end too, which is told apart by what was asked for."""
    events = read([response(b"a", reason=reason, final=True)], request=asked(stop=stops))

    assert events[-1] == Finished(finish)


def test_an_end_that_is_the_engines_fault_fails() -> None:
    """VLLM gives "abort" when its core gave the request up."""
    events = read([response(reason="abort", tokens_out=2, final=True)])

    assert events == [
        Failed(Failure.ENGINE_ERROR, "the engine aborted the request", Usage(tokens_out=2))
    ]


def test_without_counts_nothing_is_counted() -> None:
    """Usage is the model's own, never a guess from the pieces."""
    assert read([response(b"a"), response(final=True)])[-1] == Finished(Finish.EOS)


def test_several_texts_in_one_response_are_refused() -> None:
    """Beams and parallel samples have no order in one stream of text."""
    broken = response(b"a")
    broken.infer_response.raw_output_contents[0] = text("a") + text("b")

    with pytest.raises(TensorError, match="2 texts"):
        read([broken])


def test_numbers_must_fill_their_bytes() -> None:
    """Three bytes are no INT32."""
    broken = response(b"a", tokens_in=1)
    broken.infer_response.raw_output_contents[1] = b"abc"

    with pytest.raises(TensorError, match="UINT32 of 3 bytes"):
        read([broken])


@given(
    st.sampled_from(["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"]),
    st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=3),
)
def test_numbers_come_back_or_are_refused(datatype: str, values: list[int]) -> None:
    """A number that the datatype cannot hold is never bent."""
    bits = int(datatype.lstrip("UINT"))
    low, high = (0, 2**bits) if datatype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    message, held = ModelInferRequest(), all(low <= value < high for value in values)
    try:
        append(message, Tensor("x", datatype, 1), values)
    except TensorError:
        assert not held
        return

    back = response(b"")
    back.infer_response.outputs.add(name="x", datatype=datatype, shape=[len(values)])
    back.infer_response.raw_output_contents.append(message.raw_input_contents[0])
    assert held
    assert list(numbers_of(back.infer_response, 1)) == values


@given(
    st.text("ab", max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.data(),
)
def test_text_is_cut_before_the_stop_sequence_that_is_complete_first(
    whole: str, stops: list[str], data: st.DataObject
) -> None:
    """However the text is cut into responses."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    bounds = [0, *cuts, len(whole)]
    cutter = StopCutter(tuple(stops))

    parts = [
        cutter.feed(whole[a:b], final=b == len(whole) and index == len(bounds) - 2)
        for index, (a, b) in enumerate(pairwise(bounds))
    ]

    begin = next(
        (
            size - max(len(stop) for stop in stops if whole[:size].endswith(stop))
            for size in range(len(whole) + 1)
            if whole[:size].endswith(tuple(stops))
        ),
        None,
    )
    assert cutter.found == (begin is not None)
    assert "".join(parts) == whole[:begin]


def test_tensorrt_llms_stop_sequence_is_not_part_of_the_text() -> None:
    """It sends the words that ended the text; they are cut off, and the reason is known by that."""
    binding = bound(TENSORRT_LLM, TENSORRT_INPUTS)
    messages = [response(b"one t"), response(b"wo th"), response(b"ree", final=True)]

    stopped = read(messages, binding, asked(stop=("two",)))
    whole = read(messages, binding, asked(stop=("four", "thx")))

    assert stopped == [Piece("one "), Finished(Finish.STOP)]
    assert "".join(e.text for e in whole if isinstance(e, Piece)) == "one two three"
    assert whole[-1] == Finished(Finish.EOS)
