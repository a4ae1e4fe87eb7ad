"""Ollama's native HTTP messages, without any I/O: request bodies out, lines of JSON in.

Source: Ollama's docs/api.md and server/routes.go. Facts that shape this module:

- Changing a runner option such as `num_ctx` reloads the model, so every request sends the same.
- By default too long a prompt is shortened silently, and output beyond the context pushes the
  beginning out; `truncate` and `shift` false turn both into an error and an end.
- Durations are nanoseconds. A line with `error` may come in the middle of a stream.
"""

from pool_managerd.engines.failures import (
    POOL_STATUSES,
    error_event,
    integer,
    invalid,
    option_value,
    schema_object,
)
from pool_managerd.engines.port import (
    Failed,
    Failure,
    Finish,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Piece,
    Usage,
)
from pool_managerd.engines.stream_lines import (
    FrameError,
    Json,
    is_incomplete,
    json_object,
    whole_characters,
)

SEED_MODULUS = 2**32 - 1
"""Seeds are taken modulo this: the runner's have 32 bits, and the largest means "random"."""

SAMPLER_PROFILE = "ollama-1"
EXTENSIONS = ("chat_template", "json_schema")

_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_OPTION_KINDS = {
    **dict.fromkeys(
        ("frequency_penalty", "presence_penalty", "repeat_penalty", "typical_p"), "number"
    ),
    **dict.fromkeys(("num_keep", "repeat_last_n"), "integer"),
}
_LOGPROBS = frozenset({"logprobs", "top_logprobs"})
_OWNED_OPTIONS = frozenset({
    "context", "format", "images", "keep_alive", "max_tokens", "messages", "min_p", "model", "n",
    "num_batch", "num_ctx", "num_gpu", "num_predict", "num_thread", "options", "prompt", "raw",
    "seed", "shift", "stop", "stream", "suffix", "system", "temperature", "template", "tools",
    "top_k", "top_p", "truncate",
})  # fmt: skip
_OVERFLOW = ("context length", "exceeds the available context", "exceed_context_size_error")
# A model that is gone is the pool's matter: it was there at the start.
_BLAMELESS_STATUSES = POOL_STATUSES | {404}
_DIED = ("llama runner process has terminated", "model runner has unexpectedly stopped")
_NS_PER_MS = 1_000_000
_UNLIKELY_NS = 10**18


def ollama_error(status: int, body: object) -> Failed:
    """Returns the event for Ollama's error: an HTTP status with its body, or a line."""
    event = error_event(status, body, _OVERFLOW, pool_statuses=_BLAMELESS_STATUSES)
    if event.failure is Failure.ENGINE_ERROR:
        # Memory is named first: a runner that ran out of it terminates too.
        return error_event(status, body, _OVERFLOW, died=_DIED, pool_statuses=_BLAMELESS_STATUSES)
    return event


def path_for(request: GenerationRequest) -> str:
    """Returns where a request is sent."""
    return "/api/generate" if isinstance(request.prompt, str) else "/api/chat"


def load_body(model: str, ctx_max: int, keep_alive: str | int) -> Json:
    """Returns the request that loads a model and generates nothing."""
    return {
        "model": model,
        "stream": False,
        "keep_alive": keep_alive,
        "options": {"num_ctx": ctx_max},
    }


def request_body(
    model: str, request: GenerationRequest, ctx_max: int, keep_alive: str | int
) -> Json | Failed:
    """Builds the body of a request, or the `Failed` event that refuses it.

    Without `max_tokens` the context, `ctx_max` tokens, is the limit.
    """
    sampling = request.sampling
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        return invalid("max_tokens must be at least 1")
    if sampling.grammar is not None:
        return invalid("grammar is not supported by ollama")
    if sampling.logprobs is not None:
        return invalid("logprobs is not supported by ollama")
    options: Json = {
        "num_ctx": ctx_max,
        "num_predict": ctx_max if sampling.max_tokens is None else sampling.max_tokens,
        "seed": sampling.seed % SEED_MODULUS,
    }
    for name in _SAMPLING:
        value = getattr(sampling, name)
        if value is not None:
            options[name] = value
    if sampling.stop:
        options["stop"] = list(sampling.stop)
    body: Json = {
        "model": model,
        "stream": True,
        "truncate": False,
        "shift": False,
        "keep_alive": keep_alive,
        "options": options,
    }
    return (
        _add_options(body, options, request)
        or _add_input(body, request)
        or _add_schema(body, sampling.json_schema)
        or body
    )


def _add_options(body: Json, options: Json, request: GenerationRequest) -> Failed | None:
    for name, value in request.sampling.engine_options.items():
        if name in _LOGPROBS:
            return invalid(f"engine option {name!r}: logprobs is not supported by ollama")
        if name in _OWNED_OPTIONS:
            return invalid(f"engine option {name!r} is set by llama-orch and cannot be given")
        if name == "think" and isinstance(value, bool | str):
            body["think"] = value
            continue
        kind = _OPTION_KINDS.get(name)
        accepted = option_value(kind, value) if kind else None
        if accepted is None:
            return invalid(
                f"engine option {name!r} is unknown to this engine or has the wrong type"
            )
        options[name] = accepted
    return None


def _add_input(body: Json, request: GenerationRequest) -> Failed | None:
    if request.continue_token_ids and not request.continue_text:
        return invalid("continue_token_ids without their text: ollama continues text alone")
    if isinstance(request.prompt, str):
        prompt = request.prompt + request.continue_text
        if not prompt:
            return invalid("an empty prompt only loads the model")
        body |= {"prompt": prompt, "raw": True}
        return None
    if request.continue_text:
        return invalid("continue_text of a conversation: ollama cannot go on with an answer")
    body["messages"] = [{"role": turn.role, "content": turn.content} for turn in request.prompt]
    return None


def _add_schema(body: Json, schema: str | None) -> Failed | None:
    if schema is None:
        return None
    parsed = schema_object(schema)
    if isinstance(parsed, Failed):
        return parsed
    body["format"] = parsed
    return None


class LineReader:
    """Turns the lines of one generation into events, in order. Satisfies `EventReader`.

    Reasoning comes in a field of its own, and is no part of the answer.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self._has_stops = bool(request.sampling.stop)
        self._text = ""

    @property
    def tokens_out(self) -> int | None:
        """None: only the last line counts."""
        return None

    def error(self, status: int, body: object) -> Failed:
        """Returns the event for an answer that is no stream."""
        return ollama_error(status, body)

    def close(self) -> list[GenerationEvent]:
        """Returns nothing: only a line ends a generation."""
        return []

    def read(self, payload: bytes) -> list[GenerationEvent]:
        """Returns the events of one line: none, a piece, an end, or a piece and an end.

        Raises:
            FrameError: when the payload is no line of a generation.
        """
        line = json_object(payload)
        if line.get("error"):
            return [self.error(integer(line, "status") or 500, line)]
        message = line.get("message")
        text = message.get("content") if isinstance(message, dict) else line.get("response")
        if not isinstance(text, str | None):
            raise FrameError("the engine sent a line without text")
        self._text += text or ""
        events: list[GenerationEvent] = []
        if self._text and not is_incomplete(self._text):
            events.append(Piece(whole_characters(self._text)))
            self._text = ""
        if line.get("done") is True:
            events.append(self._end(line))
        return events

    def _end(self, line: Json) -> GenerationEvent:
        reason, usage = line.get("done_reason", "stop"), _usage(line)
        if reason == "length":
            return Finished(Finish.LENGTH, usage)
        if reason != "stop":
            message = f"ollama ended the generation with the reason {str(reason)[:40]!r}"
            return Failed(Failure.ENGINE_ERROR, message, usage)
        # "stop" means both; a sequence that was asked for is the likelier reason.
        return Finished(Finish.STOP if self._has_stops else Finish.EOS, usage)


def _usage(line: Json) -> Usage:
    return Usage(
        tokens_in=integer(line, "prompt_eval_count"),
        tokens_out=integer(line, "eval_count"),
        prefill_time_ms=_milliseconds(line, "prompt_eval_duration"),
        decode_time_ms=_milliseconds(line, "eval_duration"),
    )


def _milliseconds(line: Json, name: str) -> int | None:
    value = line.get(name)
    if isinstance(value, int | float) and 0 <= value <= _UNLIKELY_NS:
        return round(value / _NS_PER_MS)
    return None
