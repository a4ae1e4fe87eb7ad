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

import json
from collections.abc import Iterator, Mapping

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

Json = dict[str, object]

MAX_LINE_BYTES = 16 * 1024 * 1024
"""Longest accepted line of a stream: the longest prompt, escaped, with room to spare."""

SEED_MODULUS = 2**32 - 1
"""Seeds are taken modulo this: llama.cpp's have 32 bits, and its largest means "random"."""

EXTENSIONS = ("chat_template", "grammar", "json_schema", "token_ids")
"""What every llama-server offers beyond plain text."""

_RESPONSE_FIELDS = (
    "content", "tokens", "stop", "stop_type", "truncated", "tokens_predicted", "tokens_evaluated",
    "timings", "id_slot",
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
    "n_predict", "prompt", "response_fields", "return_progress", "return_tokens", "seed",
    "sse_ping_interval", "stop", "stream", "t_max_predict_ms", "temperature", "timings_per_token",
    "top_k", "top_p",
})  # fmt: skip
_CLIENT_ERROR = 4
# These concern the pool's api key, timing and load: another replica may well accept the request.
_POOL_STATUSES = frozenset({401, 403, 408, 429})
_MAX_LIST_ITEMS = 1024
_LARGEST_NUMBER = 2**53
_MAX_MESSAGE_CHARS = 300
_WINDOW_CHARS = 16
_SHORTEST_SECRET_CHARS = 6


class FrameError(Exception):
    """The engine sent something that is no stream of frames."""


def sampler_profile(*, deterministic: bool, kv_type: str = "f16") -> str:
    """Returns the version of how requests are turned into llama.cpp's sampling. ORCH-3045.

    Cached keys and values of fewer bits give other output: such engines are no replicas of others.
    """
    name = "llamacpp-deterministic-1" if deterministic else "llamacpp-1"
    return name if kv_type == "f16" else f"{name}-kv-{kv_type}"


def invalid(message: str) -> Failed:
    """Returns the event for a request that no replica would accept."""
    return Failed(Failure.INVALID_REQUEST, message)


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
    refusal = _add_constraint(body, request) or _add_options(body, request, deterministic)
    return refusal or body


def _add_constraint(body: Json, request: GenerationRequest) -> Failed | None:
    schema, grammar = request.sampling.json_schema, request.sampling.grammar
    if schema is not None and grammar is not None:
        return invalid("json_schema and grammar exclude each other")
    if grammar is not None:
        body["grammar"] = grammar
    if schema is not None:
        try:
            parsed = json.loads(schema)
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            return invalid("json_schema must be a JSON object")
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
        accepted = _option_value(name, value)
        if accepted is None:
            return invalid(
                f"engine option {name!r} is unknown to this engine or has the wrong type"
            )
        body[name] = accepted
    return None


def _option_value(name: str, value: object) -> object:
    """Returns the value as the engine takes it, or None. Integers may arrive as doubles."""
    if name in _BOOLEAN_OPTIONS:
        return value if isinstance(value, bool) else None
    if name in _LIST_OPTIONS:
        fits = isinstance(value, (list, tuple)) and len(value) <= _MAX_LIST_ITEMS
        return value if fits else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if not -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER:  # NaN is refused here as well
        return None
    if name in _INTEGER_OPTIONS:
        return int(value) if value == int(value) else None
    return value if name in _NUMBER_OPTIONS else None


class LineDecoder:
    """Cuts a byte stream into the payloads of server-sent events.

    Accepts payloads without the `data:` prefix and errors under `error:`; skips pings, other fields
    and empty lines. Holds one unfinished line of at most `max_line_bytes`. Linear in the bytes fed.
    """

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_line_bytes = max_line_bytes
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yields the payload of each line that `chunk` completes.

        Raises:
            FrameError: when a line is too long.
        """
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            self._extend(end)
            line = bytes(self._buffer)
            self._buffer.clear()
            payload = _payload(line)
            if payload:
                yield payload
        self._extend(rest)

    def _extend(self, part: bytes) -> None:
        if len(self._buffer) + len(part) > self._max_line_bytes:
            raise FrameError(f"the engine sent a line of more than {self._max_line_bytes} bytes")
        self._buffer += part


def _payload(line: bytes) -> bytes:
    line = line.strip()
    for prefix in (b"data:", b"error:"):
        if line.startswith(prefix):
            payload = line.removeprefix(prefix).strip()
            return b"" if payload == b"[DONE]" else payload
    return line if line.startswith(b"{") else b""


class FrameReader:
    """Turns the frames of one generation into events, in order.

    Text whose character is incomplete waits for the rest; token ids without text wait for the text
    that they led to, so the ids of all pieces so far always belong to the text of all pieces so
    far.
    """

    def __init__(self) -> None:
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
        frame = _object(payload)
        if "error" in frame:
            return [error_event(500, frame)]
        if "prompt_progress" in frame:
            return []
        self._take(frame)
        events: list[GenerationEvent] = []
        if self._text and not _is_incomplete(self._text):
            events.append(self._piece())
        if frame.get("stop") is True:
            events.append(Finished(_finish(frame), _usage(frame)))
        return events

    def _take(self, frame: Json) -> None:
        content = frame.get("content", "")
        ids = frame.get("tokens", [])
        if not isinstance(content, str) or not isinstance(ids, list):
            raise FrameError("the engine sent a frame without text")
        self._text += content
        self._ids += [token for token in ids if isinstance(token, int)]
        predicted = _integer(frame, "tokens_predicted")
        if predicted is not None and frame.get("stop") is not True:
            self._ids_known &= predicted - self._tokens_seen == len(ids)
            self._tokens_seen = predicted

    def _piece(self) -> Piece:
        # A pair of surrogates may arrive in two frames; encoding and decoding joins it, and
        # replaces a half that stands alone.
        text = self._text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        piece = Piece(text, tuple(self._ids) if self._ids_known else ())
        self._text, self._ids, self._ids_known = "", [], True
        return piece


def _is_incomplete(text: str) -> bool:
    return "\ud800" <= text[-1] <= "\udbff"


def _object(payload: bytes) -> Json:
    try:
        frame: object = json.loads(payload)
    except ValueError:
        frame = None
    if not isinstance(frame, dict):
        raise FrameError("the engine sent a frame that is no JSON object")
    return frame


def _finish(frame: Json) -> Finish:
    return _FINISH.get(str(frame.get("stop_type")), Finish.EOS)


def _usage(frame: Json) -> Usage:
    timings = frame.get("timings")
    if not isinstance(timings, dict):
        return Usage(
            tokens_in=_integer(frame, "tokens_evaluated"),
            tokens_out=_integer(frame, "tokens_predicted"),
        )
    cached, processed = _integer(timings, "cache_n"), _integer(timings, "prompt_n")
    return Usage(
        tokens_in=None if processed is None else processed + (cached or 0),
        tokens_cached=cached,
        tokens_out=_integer(timings, "predicted_n"),
        prefill_time_ms=_integer(timings, "prompt_ms"),
        decode_time_ms=_integer(timings, "predicted_ms"),
    )


def _integer(values: Mapping[str, object], name: str) -> int | None:
    value = values.get(name)
    if isinstance(value, (int, float)) and 0 <= value <= _LARGEST_NUMBER:
        return round(value)
    return None


def error_event(status: int, body: object) -> Failed:
    """Returns the event for an engine's error: an HTTP status with its body, or an error frame."""
    error = body.get("error") if isinstance(body, dict) else None
    fields = error if isinstance(error, dict) else {"message": error}
    status = _integer(fields, "code") or status
    text = str(fields.get("message") or f"the engine answered with HTTP status {status}")
    message = " ".join(text.split())[:_MAX_MESSAGE_CHARS]
    return Failed(_failure(status, str(fields.get("type")), message.lower()), message)


def _failure(status: int, kind: str, message: str) -> Failure:
    if kind == "exceed_context_size_error" or "context size has been exceeded" in message:
        return Failure.CONTEXT_OVERFLOW
    if "out of memory" in message or "failed to allocate" in message:
        on_device = any(
            word in message for word in ("cuda", "device", "gpu", "vram", "hip", "vulkan")
        )
        return Failure.DEVICE_OUT_OF_MEMORY if on_device else Failure.HOST_OUT_OF_MEMORY
    blames_request = status // 100 == _CLIENT_ERROR and status not in _POOL_STATUSES
    return Failure.INVALID_REQUEST if blames_request else Failure.ENGINE_ERROR


def redacted(event: Failed, secrets: tuple[str, ...]) -> Failed:
    """Returns the event, with a neutral message if its own quotes one of the secrets.

    Compares aligned windows of 16 characters, so any common run of 31 is found.
    O(len(message) / 16 * len(secret)).
    """
    message = event.message
    starts = range(0, len(message) - _WINDOW_CHARS + 1, _WINDOW_CHARS)
    windows = [message[start : start + _WINDOW_CHARS] for start in starts]
    for secret in secrets:
        whole = _SHORTEST_SECRET_CHARS <= len(secret) < _WINDOW_CHARS and secret in message
        if whole or any(window in secret for window in windows):
            return Failed(event.failure, "the engine's message is withheld: it quotes the request")
    return event
