"""OpenAI's completions and chat completions, without any I/O: request bodies out, chunks in.

A prompt of text goes to `/v1/completions`; a conversation goes to `/v1/chat/completions`, where the
server applies its own template. What a flavor does not support is refused and named.
"""

import json
from collections.abc import Mapping

from pool_managerd.core.logprobs import PIECE_TOKENS_MAX, TokenLogprob
from pool_managerd.engines.failures import (
    POOL_STATUSES,
    error_event,
    integer,
    invalid,
    option_value,
    schema_object,
)
from pool_managerd.engines.openai_flavors import FINISHES, VALUE, VALUE_TEXT, Flavor
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
from pool_managerd.engines.stop_text import StopText
from pool_managerd.engines.stream_lines import (
    DONE,
    FrameError,
    Json,
    is_incomplete,
    json_object,
    whole_characters,
)
from pool_managerd.engines.token_logprobs import reported

TEXT_PATH = "/v1/completions"
CHAT_PATH = "/v1/chat/completions"

_OWNED_OPTIONS = frozenset({
    "best_of", "echo", "generation_config", "grammar", "id_slot", "json_schema",
    "max_completion_tokens", "max_tokens", "messages", "min_p", "model", "n", "n_predict", "prompt",
    "request_id", "response_format", "return_progress", "return_token_ids", "seed", "stop",
    "stream", "stream_options", "structured_outputs", "suffix", "temperature", "tool_choice",
    "tools", "top_k", "top_p", "user",
})  # fmt: skip
_LOGPROBS = frozenset({"logprobs", "n_probs", "prompt_logprobs", "top_logprobs"})
# A model that is gone is the pool's matter: it was there at the start.
_BLAMELESS_STATUSES = POOL_STATUSES | {404}
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")


def openai_error(flavor: Flavor, status: int, body: object) -> Failed:
    """Returns the event for a server's error: an HTTP status with its body, or a frame."""
    return error_event(
        status, body, flavor.overflow, died=flavor.died, pool_statuses=_BLAMELESS_STATUSES
    )


def path_for(request: GenerationRequest) -> str:
    """Returns where a request is sent."""
    return TEXT_PATH if isinstance(request.prompt, str) else CHAT_PATH


def request_body(
    flavor: Flavor, model: str, request: GenerationRequest, *, deterministic: bool
) -> Json | Failed:
    """Builds the body of a request, or the `Failed` event that refuses it."""
    body: Json = {"model": flavor.sent_name or model, "stream": True, **flavor.extra}
    if deterministic:
        body |= flavor.extra_deterministic
    if flavor.stream_usage:
        body["stream_options"] = {"include_usage": True}
    if wants_ids(flavor, request):
        body[flavor.ids_field] = True
    return (
        _add_input(body, flavor, request)
        or _add_limits(body, flavor, request)
        or _add_sampling(body, flavor, request)
        or _add_constraint(body, flavor, request)
        or _add_logprobs(body, flavor, request)
        or body
    )


def wants_ids(flavor: Flavor, request: GenerationRequest) -> bool:
    """Tells whether token ids are asked for: with stop sequences the text lags behind them."""
    return bool(flavor.ids_field) and not request.sampling.stop


def _add_input(body: Json, flavor: Flavor, request: GenerationRequest) -> Failed | None:
    ids, text = request.continue_token_ids, request.continue_text
    if ids and not text and not flavor.mixed_prompt:
        return invalid("continue_token_ids without their text: this engine continues text alone")
    if isinstance(request.prompt, str):
        joined: object = request.prompt + text
        body["prompt"] = [request.prompt, *ids] if ids and flavor.mixed_prompt else joined
        return None
    messages = [{"role": turn.role, "content": turn.content} for turn in request.prompt]
    if text:
        if flavor.continue_chat is None:
            return invalid(
                f"continue_text of a conversation: {flavor.engine} cannot go on with an answer"
            )
        messages.append({"role": "assistant", "content": text})
        body |= flavor.continue_chat
    elif ids:
        return invalid("continue_token_ids of a conversation need their text")
    body["messages"] = messages
    return None


def _add_limits(body: Json, flavor: Flavor, request: GenerationRequest) -> Failed | None:
    sampling = request.sampling
    if sampling.max_tokens is not None:
        if sampling.max_tokens < 1:
            return invalid("max_tokens must be at least 1")
        body["max_tokens"] = sampling.max_tokens
    else:
        is_text = isinstance(request.prompt, str)
        match flavor.unlimited_text if is_text else flavor.unlimited_chat:
            case "refuse":
                return invalid(f"max_tokens is needed: {flavor.engine} has a default of its own")
            case "null":
                body["max_tokens"] = None
            case "omit":
                pass
    if flavor.stops_max and len(sampling.stop) > flavor.stops_max:
        return invalid(f"stop: {flavor.engine} takes at most {flavor.stops_max} sequences")
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    return None


def _add_sampling(body: Json, flavor: Flavor, request: GenerationRequest) -> Failed | None:
    sampling = request.sampling
    body["seed"] = sampling.seed % flavor.seed_modulus
    chosen: Json = {}
    for name in _SAMPLING:
        value = getattr(sampling, name)
        if value is None:
            continue
        if name not in flavor.sampling:
            return invalid(f"{name} is not supported by {flavor.engine} behind this API")
        chosen[name] = value
    refusal = _add_options(chosen, flavor, request)
    if refusal is not None:
        return refusal
    if flavor.packs_sampling and chosen:
        samples = {} if sampling.temperature is None else {"do_sample": sampling.temperature > 0}
        if sampling.temperature == 0:
            del chosen["temperature"]
        body["generation_config"] = json.dumps(chosen | samples)
    else:
        body |= chosen
    return None


def _add_options(chosen: Json, flavor: Flavor, request: GenerationRequest) -> Failed | None:
    for name, value in request.sampling.engine_options.items():
        if name in _LOGPROBS:
            return invalid(f"engine option {name!r}: set sampling.logprobs instead")
        if name in _OWNED_OPTIONS:
            return invalid(f"engine option {name!r} is set by llama-orch and cannot be given")
        kind = flavor.options.get(name)
        accepted = option_value(kind, value) if kind else None
        if accepted is None:
            return invalid(
                f"engine option {name!r} is unknown to this engine or has the wrong type"
            )
        chosen[name] = accepted
    return None


def _add_constraint(body: Json, flavor: Flavor, request: GenerationRequest) -> Failed | None:
    schema, grammar = request.sampling.json_schema, request.sampling.grammar
    if schema is not None and grammar is not None:
        return invalid("json_schema and grammar exclude each other")
    if grammar is not None:
        if flavor.grammar is None:
            return invalid(f"grammar is not supported by {flavor.engine} behind this API")
        body |= _filled(flavor.grammar, grammar)
    if schema is not None:
        is_text = isinstance(request.prompt, str)
        template = flavor.schema_text if is_text else flavor.schema_chat
        if template is None:
            what = "a prompt of text" if is_text else "a conversation"
            return invalid(f"json_schema is not supported by {flavor.engine} for {what}")
        parsed = schema_object(schema)
        if isinstance(parsed, Failed):
            return parsed
        body |= _filled(template, parsed)
    return None


def _add_logprobs(body: Json, flavor: Flavor, request: GenerationRequest) -> Failed | None:
    wanted = request.sampling.logprobs
    if wanted is None:
        return None
    if not flavor.logprobs:
        return invalid(f"logprobs is not supported by {flavor.engine} behind this API")
    # With 0 some servers tell nothing, not even the generated token's own.
    count = max(1, wanted)
    is_text = isinstance(request.prompt, str)
    body |= {"logprobs": count} if is_text else {"logprobs": True, "top_logprobs": count}
    return None


def _filled(template: Mapping[str, object], value: object) -> Json:
    def filled(part: object) -> object:
        if part == VALUE:
            return value
        if part == VALUE_TEXT:
            return json.dumps(value)
        if isinstance(part, Mapping):
            return {name: filled(inner) for name, inner in part.items()}
        return part

    return {name: filled(part) for name, part in template.items()}


class ChunkReader:
    """Turns the chunks of one generation into events, in order. Satisfies `EventReader`.

    The end is the chunk with a finish reason; counts may follow it, so it is told at `[DONE]` or at
    the end of the stream. Token ids without text wait for the text that they led to. Reasoning that
    comes in fields of its own is no part of the answer; ids are then not given, for they count it.
    """

    def __init__(self, flavor: Flavor, request: GenerationRequest) -> None:
        self._flavor = flavor
        self._stops = StopText(request.sampling.stop if flavor.keeps_stop else ())
        self._has_stops = bool(request.sampling.stop)
        self._ids_wanted = wants_ids(flavor, request)
        self._text = ""
        self._ids: list[int] = []
        self._top = request.sampling.logprobs
        self._logprobs: tuple[TokenLogprob, ...] = ()
        self._usage = Usage()
        self._finish: Finish | None = None

    @property
    def tokens_out(self) -> int | None:
        """Tokens that the server has counted; None where it has not."""
        return self._usage.tokens_out

    def error(self, status: int, body: object) -> Failed:
        """Returns the event for an answer that is no stream."""
        return openai_error(self._flavor, status, body)

    def read(self, payload: bytes) -> list[GenerationEvent]:
        """Returns the events of one chunk: none, a piece, a failure, or at `[DONE]` the end.

        Raises:
            FrameError: when the payload is no chunk.
        """
        if payload == DONE:
            return self.close()
        chunk = json_object(payload)
        if chunk.get("error") or chunk.get("object") == "error":
            return [self.error(500, chunk)]
        self._count(chunk)
        choices = chunk.get("choices", [])
        if not isinstance(choices, list):
            raise FrameError("the engine sent a chunk without choices")
        return self._choice(choices[0]) if choices else []

    def close(self) -> list[GenerationEvent]:
        """Returns the rest and the end, if a finish reason came."""
        if self._finish is None:
            return []
        rest = self._stops.rest()
        end = Finished(Finish.STOP if self._stops.met else self._finish, self._usage)
        return [Piece(rest), end] if rest else [end]

    def _choice(self, choice: object) -> list[GenerationEvent]:
        if not isinstance(choice, dict):
            raise FrameError("the engine sent a choice that is no object")
        reason = choice.get("finish_reason")
        if not (self._flavor.eos_has_text and reason == "eos_token"):
            self._take(choice)
        if reason:
            self._finish = self._finish_of(str(reason), choice)
            if self._finish is None:
                failure = f"the engine ended the generation with the reason {str(reason)[:40]!r}"
                return [*self._pieces(), Failed(Failure.ENGINE_ERROR, failure, self._usage)]
        return self._pieces()

    def _finish_of(self, reason: str, choice: Json) -> Finish | None:
        finish = FINISHES.get(reason)
        if finish is not Finish.EOS:
            return finish
        if self._flavor.stop_detail:
            met = isinstance(choice.get(self._flavor.stop_detail), str)
            return Finish.STOP if met else Finish.EOS
        # Where "stop" means both, a sequence that was asked for is the likelier reason.
        says_which = reason != "stop" or self._flavor.keeps_stop
        return Finish.STOP if self._has_stops and not says_which else Finish.EOS

    def _take(self, choice: Json) -> None:
        delta = choice.get("delta")
        source = delta if isinstance(delta, dict) else choice
        text = source.get("content" if source is delta else "text")
        if not isinstance(text, str | None):
            raise FrameError("the engine sent a choice without text")
        if source.get("reasoning_content") or source.get("reasoning"):
            self._ids_wanted = False
        elif self._top is not None:
            self._logprobs += reported(choice.get("logprobs"), self._top)
        self._text += text or ""
        ids = choice.get("token_ids")
        if self._ids_wanted and isinstance(ids, list):
            self._ids += [token for token in ids if isinstance(token, int)]

    def _pieces(self) -> list[GenerationEvent]:
        if not self._text or is_incomplete(self._text):
            return []
        text = self._stops.take(whole_characters(self._text))
        ids = tuple(self._ids) if self._ids_wanted else ()
        logprobs = self._logprobs[:PIECE_TOKENS_MAX]
        self._text, self._ids, self._logprobs = "", [], ()
        return [Piece(text, ids, logprobs)] if text else []

    def _count(self, chunk: Json) -> None:
        usage, timings = chunk.get("usage"), chunk.get("timings")
        if not isinstance(usage, dict):
            return
        details = usage.get("prompt_tokens_details")
        times = timings if isinstance(timings, dict) else {}
        self._usage = Usage(
            tokens_in=integer(usage, "prompt_tokens"),
            tokens_cached=integer(details, "cached_tokens") if isinstance(details, dict) else None,
            tokens_out=integer(usage, "completion_tokens"),
            prefill_time_ms=integer(times, "prompt_ms"),
            decode_time_ms=integer(times, "predicted_ms"),
        )
