"""Triton's messages for text generation, without any I/O: requests out, responses in.

Source: triton-inference-server/server, docs/protocol/extension_parameters.md and
docs/user_guide/decoupled_models.md, and server version 2.51.0, against which it was tried. Facts
that shape this module:

- A stream carries the responses of any number of requests; here it carries one. Its last response
  has the parameter `triton_final_response`, and may be empty because the request asks for that.
- An error is a response with `error_message` and no status. Triton then sends nothing more.
- Outputs come as bytes in `raw_output_contents`, in the order of `outputs`.
"""

import codecs
import json
from collections.abc import Iterator, Mapping

from pool_managerd.engines.failures import invalid
from pool_managerd.engines.port import (
    ChatMessage,
    Failed,
    Failure,
    Finish,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Piece,
    Usage,
)
from pool_managerd.engines.triton_binding import Binding
from pool_managerd.engines.triton_errors import failure_of
from pool_managerd.engines.triton_inference_service_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from pool_managerd.engines.triton_tensors import (
    TensorError,
    append,
    fits,
    numbers_of,
    seed_modulus,
    text_of,
)

_FINISH = {
    "eos": Finish.EOS,
    "length": Finish.LENGTH,
    "tool_calls": Finish.TOOL_CALLS,
    "content_filter": Finish.CONTENT_FILTER,
}
_JSON_SEEDS = 2**63
_TEXT_OPTIONS = frozenset({"lora_name"})
_BOOLEAN_OPTIONS = frozenset({"ignore_eos", "skip_special_tokens"})


def infer_request(
    request: GenerationRequest, binding: Binding, ctx_max: int
) -> ModelInferRequest | Failed:
    """Builds the request, or the `Failed` event that refuses it and names the field.

    The caller adds the model's name. Without `max_tokens` the context, `ctx_max` tokens, is the
    limit. Nothing that was asked for is left out, but the seed where the operator allows it.
    """
    sampling = request.sampling
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        return invalid("max_tokens must be at least 1")
    if sampling.json_schema is not None and sampling.grammar is not None:
        return invalid("json_schema and grammar exclude each other")
    message = ModelInferRequest(id=request.request_id)
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    in_json: dict[str, object] = {}
    try:
        for field, values in _fields(request, binding, ctx_max):
            tensor = binding.inputs.get(field)
            if not binding.takes(field):
                return invalid(f"this model cannot be given {field}")
            if tensor is not None:
                append(message, tensor, values)
            else:
                name = binding.profile.sampling_names[field]
                in_json[name] = values if field == "stop" else values[0]
        refusal = _add_options(message, in_json, request.sampling.engine_options, binding)
        if refusal is not None:
            return refusal
        for flag, value in binding.flags:
            append(message, flag, [value])
        if "sampling" in binding.inputs:
            append(message, binding.inputs["sampling"], [json.dumps(in_json)])
    except TensorError as error:
        return invalid(f"a parameter is out of bounds: {error}")
    return message


def _fields(
    request: GenerationRequest, binding: Binding, ctx_max: int
) -> Iterator[tuple[str, list[object]]]:
    """Yields what a request asks for, with the elements of its tensor."""
    sampling = request.sampling
    takes_ids = "continue_token_ids" in binding.inputs or not request.continue_text
    by_ids = bool(request.continue_token_ids) and takes_ids
    text = "" if by_ids else request.continue_text
    if isinstance(request.prompt, str):
        yield "prompt", [request.prompt + text]
    else:
        yield "prompt", [""]
        yield "messages", [_messages(request.prompt)]
        if text:
            yield "continue_text", [text]
    if by_ids:
        yield "continue_token_ids", list(request.continue_token_ids)
    if sampling.max_tokens is not None or binding.takes("max_tokens"):
        yield "max_tokens", [sampling.max_tokens or ctx_max]
    if binding.takes("seed"):
        tensor = binding.inputs.get("seed")
        yield "seed", [sampling.seed % (seed_modulus(tensor.datatype) if tensor else _JSON_SEEDS)]
    for field in ("temperature", "top_p", "top_k", "min_p", "json_schema", "grammar"):
        value = getattr(sampling, field)
        if value is not None:
            yield field, [value]
    if sampling.logprobs is not None:
        # Refused by name: no profile has a tensor for them.
        yield "logprobs", [sampling.logprobs]
    if sampling.stop:
        yield "stop", list(sampling.stop)


def _messages(conversation: tuple[ChatMessage, ...]) -> str:
    turns = [{"role": turn.role, "content": turn.content} for turn in conversation]
    return json.dumps(turns, ensure_ascii=False)


def _add_options(
    message: ModelInferRequest,
    in_json: dict[str, object],
    options: Mapping[str, object],
    binding: Binding,
) -> Failed | None:
    allowed = binding.profile.options or frozenset()
    for name, value in options.items():
        tensor = binding.options.get(name)
        if tensor is not None and fits(tensor.datatype, value):
            append(message, tensor, [value])
        elif "sampling" in binding.inputs and name in allowed and _fits_json(name, value):
            in_json[name] = value
        else:
            return invalid(
                f"engine option {name!r} is unknown to this model, has the wrong type, or is set "
                "by llama-orch"
            )
    return None


def _fits_json(name: str, value: object) -> bool:
    if name in _TEXT_OPTIONS:
        return isinstance(value, str)
    if name in _BOOLEAN_OPTIONS:
        return isinstance(value, bool)
    return fits("INT64" if name == "min_tokens" else "FP64", value)


class ResponseReader:
    """Turns the responses of one generation into events, in order.

    Incomplete characters wait for the rest. Where the model reports token ids, they wait with the
    whole text of their response, so the ids of all pieces so far belong to the text of all pieces
    so far.
    """

    def __init__(self, request: GenerationRequest, binding: Binding) -> None:
        self._max_tokens = request.sampling.max_tokens
        self._stops = request.sampling.stop
        self._outputs = binding.outputs
        self._cut = StopCutter(self._stops if binding.profile.stop_in_text else ())
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._ids: list[int] = []
        self._reason = ""
        self._tokens_in: int | None = None
        self._tokens_out: int | None = None

    @property
    def usage(self) -> Usage:
        """What the model has counted so far."""
        return Usage(tokens_in=self._tokens_in, tokens_out=self._tokens_out)

    def read(self, message: ModelStreamInferResponse) -> list[GenerationEvent]:
        """Returns the events of one response: none, a piece, an end, or a piece and an end.

        Raises:
            TensorError: when the response is none of a text model.
        """
        if message.error_message:
            return [failure_of(message.error_message, usage=self.usage)]
        response = message.infer_response
        final = response.parameters["triton_final_response"].bool_param
        self._take(response, final=final)
        events: list[GenerationEvent] = []
        whole = final or not self._ids or not self._decoder.getstate()[0]
        if self._text and whole:
            events.append(Piece(self._text, tuple(self._ids)))
            self._text, self._ids = "", []
        if final:
            events.append(self._end())
        return events

    def _take(self, response: ModelInferResponse, *, final: bool) -> None:
        at = {output.name: index for index, output in enumerate(response.outputs)}
        found = {field: at[name] for field, name in self._outputs.items() if name in at}
        data = text_of(response, found["text"]) if "text" in found else b""
        self._text += self._cut.feed(self._decoder.decode(data, final=final), final=final)
        if "finish_reason" in found:
            self._reason = text_of(response, found["finish_reason"]).decode("utf-8", "replace")
        ids = numbers_of(response, found["token_ids"]) if "token_ids" in found else ()
        self._ids += ids
        if "tokens_in" in found:
            self._tokens_in = sum(numbers_of(response, found["tokens_in"]))
        if "tokens_out" in found:
            self._count(sum(numbers_of(response, found["tokens_out"])))
        elif ids and "tokens_out" not in self._outputs:
            self._count(len(ids))

    def _count(self, tokens: int) -> None:
        self._tokens_out = tokens + (self._tokens_out or 0)

    def _end(self) -> Finished | Failed:
        reason = self._reason.lower()
        if reason == "abort":
            return Failed(Failure.ENGINE_ERROR, "the engine aborted the request", self.usage)
        if self._cut.found or (reason == "stop" and self._stops):
            return Finished(Finish.STOP, self.usage)
        if reason in _FINISH:
            return Finished(_FINISH[reason], self.usage)
        # A model that gives no reason, or "stop" without a stop sequence: its own end, unless it
        # had no room for more.
        full = self._max_tokens is not None and (self._tokens_out or 0) >= self._max_tokens
        at_limit = full and reason != "stop"
        return Finished(Finish.LENGTH if at_limit else Finish.EOS, self.usage)


class StopCutter:
    """Cuts a text off before the stop sequence that is complete first, where an engine leaves it.

    Text that may begin a stop sequence is held back until the next text decides, so at most the
    longest sequence less one character. O(characters times sequences).
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def feed(self, text: str, *, final: bool) -> str:
        """Returns the text that is certain; the last call must be `final`."""
        if not self._stops or self.found:
            return "" if self.found else text
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.found, self._held = True, ""
            return text[: min(found)[1]]
        keep = 0 if final else max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest end of the text with which the sequence begins."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
