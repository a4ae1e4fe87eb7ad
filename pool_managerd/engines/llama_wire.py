"""llama-server's native HTTP messages, without any I/O: request bodies out, frames in.

Source: the server's README (`POST /completion`) and llama.cpp build b11549, against which it was
tried. Facts that shape this module:

- The native route ends with a frame that has `stop: true`; there is no `[DONE]`. Frames with
  `prompt_progress` carry a meaningless token id and are skipped. Lines that start with `:` are
  pings.
- A token that ends inside a character produces no frame; the next frame holds the whole text but
  only the last token id. `tokens_predicted` reveals it, and such a piece is then given without ids
  rather than with some of them.
- The last frame would repeat the prompt; `response_fields` asks for the rest only.
"""

import msgspec

from pool_managerd.core.logprobs import PIECE_TOKENS_MAX, TokenLogprob
from pool_managerd.engines.failures import (
    error_event,
    integer,
    invalid,
    option_value,
    schema_object,
)
from pool_managerd.engines.port import (
    Failed,
    Finish,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Piece,
    Usage,
)
from pool_managerd.engines.stream_lines import (
    DONE,
    FrameError,
    Json,
    is_incomplete,
    json_object,
    whole_characters,
)
from pool_managerd.engines.token_logprobs import reported

SEED_MODULUS = 2**32 - 1
"""Seeds are taken modulo this: llama.cpp's have 32 bits, and its largest means "random"."""

EXTENSIONS = ("chat_template", "grammar", "json_schema", "logprobs", "token_ids")
"""What every llama-server offers beyond plain text."""

NO_LOGPROBS = "logprobs is not supported with a draft model: llama.cpp tells none of drafted tokens"

_RESPONSE_FIELDS = (
    "content", "tokens", "stop", "stop_type", "truncated", "tokens_predicted", "tokens_evaluated",
    "timings", "id_slot", "completion_probabilities",
)  # fmt: skip

_FINISH = {
    "eos": Finish.EOS,
    "word": Finish.STOP,
    "limit": Finish.LENGTH,
    "none": Finish.EOS,  # the engine had nothing to generate
}

_NUMBER_OPTIONS = frozenset({
    "adaptive_decay", "adaptive_target", "dry_base", "dry_multiplier", "dynatemp_exponent",
    "dynatemp_range", "frequency_penalty", "mirostat_eta", "mirostat_tau", "presence_penalty",
    "repeat_penalty", "top_n_sigma", "typical_p", "xtc_probability", "xtc_threshold",
})  # fmt: skip
_INTEGER_OPTIONS = frozenset({
    "dry_allowed_length", "dry_penalty_last_n", "min_keep", "mirostat", "n_keep", "repeat_last_n",
})  # fmt: skip
_BOOLEAN_OPTIONS = frozenset({"cache_prompt", "ignore_eos"})
_LIST_OPTIONS = frozenset({"dry_sequence_breakers", "logit_bias", "samplers"})
_OWNED_OPTIONS = frozenset({
    "grammar", "id_slot", "json_schema", "max_tokens", "messages", "min_p", "model", "n", "n_cmpl",
    "n_predict", "n_probs", "post_sampling_probs", "prompt", "response_fields", "return_progress",
    "return_tokens", "seed", "sse_ping_interval", "stop", "stream", "t_max_predict_ms",
    "temperature", "timings_per_token", "top_k", "top_p",
})  # fmt: skip
OPTION_KINDS = {
    **dict.fromkeys(_NUMBER_OPTIONS, "number"),
    **dict.fromkeys(_INTEGER_OPTIONS, "integer"),
    **dict.fromkeys(_BOOLEAN_OPTIONS, "boolean"),
    **dict.fromkeys(_LIST_OPTIONS, "list"),
}
"""Engine options that are passed on, and their types."""

_OVERFLOW = ("exceed_context_size_error", "context size has been exceeded")


def sampler_profile(*, deterministic: bool, kv_type: str = "f16", drafts: bool = False) -> str:
    """Returns the version of how requests are turned into llama.cpp's sampling. ORCH-3045.

    Cached keys and values of fewer bits, and tokens that a draft model proposes, give other output:
    such engines are no replicas of others.
    """
    name = "llamacpp-deterministic-1" if deterministic else "llamacpp-1"
    name = name if kv_type == "f16" else f"{name}-kv-{kv_type}"
    return f"{name}-draft" if drafts else name


def extensions(*, drafts: bool) -> tuple[str, ...]:
    """What a llama-server offers, with a draft model or without."""
    return tuple(name for name in EXTENSIONS if not (drafts and name == "logprobs"))


def completion_body(
    request: GenerationRequest, prompt: str, slot: int, ctx_max: int, *, deterministic: bool
) -> Json | Failed:
    """Builds the body of `POST /completion`, or the `Failed` event that refuses the request.

    `prompt` is the input with the template applied, which ends where the answer begins; what is
    continued follows it. Without `max_tokens` the context of
    the slot, `ctx_max` tokens, is the limit. The deterministic profile never reuses cached keys and
    values.
    """
    sampling = request.sampling
    ids = request.continue_token_ids
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        return invalid("max_tokens must be at least 1")
    body: Json = {
        "prompt": [prompt, *ids] if ids else prompt + request.continue_text,
        "n_predict": ctx_max if sampling.max_tokens is None else sampling.max_tokens,
        "seed": sampling.seed % SEED_MODULUS,
        "id_slot": slot,
        "cache_prompt": not deterministic,
        "stream": True,
        "return_progress": True,
        "return_tokens": True,
        "response_fields": list(_RESPONSE_FIELDS),
    }
    for name in ("temperature", "top_p", "top_k", "min_p"):
        value = getattr(sampling, name)
        if value is not None:
            body[name] = value
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.logprobs is not None:
        # With 0 it would tell nothing, not even the generated token's own.
        body["n_probs"] = max(1, sampling.logprobs)
    refusal = _add_constraint(body, request) or _add_options(body, request, deterministic)
    return refusal or body


def _add_constraint(body: Json, request: GenerationRequest) -> Failed | None:
    schema, grammar = request.sampling.json_schema, request.sampling.grammar
    if schema is not None and grammar is not None:
        return invalid("json_schema and grammar exclude each other")
    if grammar is not None:
        body["grammar"] = grammar
    if schema is not None:
        parsed = schema_object(schema)
        if isinstance(parsed, Failed):
            return parsed
        body["json_schema"] = parsed
    return None


def _add_options(body: Json, request: GenerationRequest, deterministic: bool) -> Failed | None:
    for name, value in request.sampling.engine_options.items():
        if name in _OWNED_OPTIONS:
            return invalid(f"engine option {name!r} is set by llama-orch and cannot be given")
        if name == "cache_prompt" and deterministic:
            return invalid(
                "engine option 'cache_prompt' cannot be given in the deterministic profile"
            )
        kind = OPTION_KINDS.get(name)
        accepted = option_value(kind, value) if kind else None
        if accepted is None:
            return invalid(
                f"engine option {name!r} is unknown to this engine or has the wrong type"
            )
        body[name] = accepted
    return None


def llama_error(status: int, body: object) -> Failed:
    """Returns the event for llama-server's error: an HTTP status with its body, or a frame."""
    return error_event(status, body, _OVERFLOW)


class _Token(msgspec.Struct, gc=False):
    """What most frames are. What has other fields of these types is another kind of frame."""

    content: str
    tokens: tuple[int, ...]
    tokens_predicted: int
    stop: bool = False
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    prompt_progress: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode_token = msgspec.json.Decoder(_Token).decode


class FrameReader:
    """Turns the frames of one generation into events, in order.

    Text whose character is incomplete waits for the rest; token ids without text wait for the text
    that they led to, so the ids of all pieces so far always belong to the text of all pieces so
    far. `logprobs` is how many of the likeliest tokens were asked for.
    """

    def __init__(self, logprobs: int | None = None) -> None:
        self._top = logprobs
        self._logprobs: tuple[TokenLogprob, ...] = ()
        self._text = ""
        self._ids: list[int] = []
        self._ids_known = True
        self._tokens_seen = 0

    @property
    def tokens_out(self) -> int:
        """Tokens that the engine has reported so far."""
        return self._tokens_seen

    def read(self, payload: bytes) -> list[GenerationEvent]:
        """Returns the events of one frame: none, a piece, an end, or a piece and an end.

        Raises:
            FrameError: when the payload is no frame.
        """
        piece = self._one_token(payload)
        if piece is not None:
            return [piece]
        if payload == DONE:
            return []
        frame = json_object(payload)
        if "error" in frame:
            return [self.error(500, frame)]
        if "prompt_progress" in frame:
            return []
        self._take(frame)
        events: list[GenerationEvent] = []
        if self._text and not is_incomplete(self._text):
            events.append(self._piece())
        if frame.get("stop") is True:
            events.append(Finished(_finish(frame), _usage(frame)))
        return events

    def close(self) -> list[GenerationEvent]:
        """Returns nothing: only a frame ends a generation."""
        return []

    def error(self, status: int, body: object) -> Failed:
        """Returns the event for an answer that is no stream."""
        return llama_error(status, body)

    def _one_token(self, payload: bytes) -> Piece | None:
        """The piece that a frame is by itself; None where more is to be looked at."""
        if self._text or self._ids or not self._ids_known or self._top is not None:
            return None
        try:
            token = _decode_token(payload)
        except (msgspec.DecodeError, ValueError, RecursionError):
            # Also half a pair of surrogates: what is decoded here is whole characters.
            return None
        ids = token.tokens
        if (
            token.stop
            or not token.content
            or token.tokens_predicted - self._tokens_seen != len(ids)
            or token.error is not msgspec.UNSET
            or token.prompt_progress is not msgspec.UNSET
        ):
            return None
        self._tokens_seen = token.tokens_predicted
        return Piece(token.content, ids)

    def _take(self, frame: Json) -> None:
        content = frame.get("content", "")
        ids = frame.get("tokens", [])
        if not isinstance(content, str) or not isinstance(ids, list):
            raise FrameError("the engine sent a frame without text")
        self._text += content
        self._ids += [token for token in ids if isinstance(token, int)]
        if self._top is not None:
            self._logprobs += reported(frame.get("completion_probabilities"), self._top)
        predicted = integer(frame, "tokens_predicted")
        if predicted is not None and frame.get("stop") is not True:
            self._ids_known &= predicted - self._tokens_seen == len(ids)
            self._tokens_seen = predicted

    def _piece(self) -> Piece:
        ids = tuple(self._ids) if self._ids_known else ()
        piece = Piece(whole_characters(self._text), ids, self._logprobs[:PIECE_TOKENS_MAX])
        self._text, self._ids, self._ids_known, self._logprobs = "", [], True, ()
        return piece


def _finish(frame: Json) -> Finish:
    return _FINISH.get(str(frame.get("stop_type")), Finish.EOS)


def _usage(frame: Json) -> Usage:
    timings = frame.get("timings")
    if not isinstance(timings, dict):
        return Usage(
            tokens_in=integer(frame, "tokens_evaluated"),
            tokens_out=integer(frame, "tokens_predicted"),
        )
    cached, processed = integer(timings, "cache_n"), integer(timings, "prompt_n")
    return Usage(
        tokens_in=None if processed is None else processed + (cached or 0),
        tokens_cached=cached,
        tokens_out=integer(timings, "predicted_n"),
        prefill_time_ms=integer(timings, "prompt_ms"),
        decode_time_ms=integer(timings, "predicted_ms"),
    )
