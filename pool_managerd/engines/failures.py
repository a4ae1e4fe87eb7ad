"""What an engine's error means to the port, and how much of it may be repeated. No I/O."""

import json
from collections.abc import Mapping, Sequence

from pool_managerd.core.exhaustion import Memory, exhausted_by_error
from pool_managerd.core.redaction import WINDOW_CHARS, quoting
from pool_managerd.core.tellable import shown_text
from pool_managerd.engines.port import Failed, Failure, GenerationRequest
from pool_managerd.engines.stream_lines import Json

OUT_OF_MEMORY = {
    Memory.DEVICE: Failure.DEVICE_OUT_OF_MEMORY,
    Memory.HOST: Failure.HOST_OUT_OF_MEMORY,
}

LARGEST_NUMBER = 2**53
"""Numbers of engines and of engine options are believed up to here: JSON's are doubles."""

# These concern the pool's API key, timing and load, or a step before the engine: another replica
# may well accept the request.
POOL_STATUSES = frozenset({401, 403, 408, 424, 429})

_CLIENT_ERROR = 4
_MAX_LIST_ITEMS = 1024
_MAX_MESSAGE_CHARS = 300
_SHORTEST_SECRET_CHARS = 6


def invalid(message: str) -> Failed:
    """Returns the event for a request that no replica would accept."""
    return Failed(Failure.INVALID_REQUEST, message)


def error_event(
    status: int,
    body: object,
    overflow: Sequence[str],
    *,
    died: Sequence[str] = (),
    pool_statuses: frozenset[int] = POOL_STATUSES,
) -> Failed:
    """Returns the event for an engine's error: an HTTP status with its body, or an error frame.

    `overflow` and `died` are words, in lower case, by which the engine says that the context is too
    small and that its core is gone. Statuses in `pool_statuses` do not blame the request.
    """
    fields = _error_fields(body)
    status = integer(fields, "code") or status
    text = str(fields.get("message") or f"the engine answered with HTTP status {status}")
    message = " ".join(shown_text(text).split())[:_MAX_MESSAGE_CHARS]
    words = f"{fields.get('type')} {message}".lower()
    if any(word in words for word in overflow):
        failure = Failure.CONTEXT_OVERFLOW
    elif any(word in words for word in died):
        failure = Failure.ENGINE_DIED
    elif (memory := exhausted_by_error(words)) is not None:
        failure = OUT_OF_MEMORY[memory]
    elif status // 100 == _CLIENT_ERROR and status not in pool_statuses:
        failure = Failure.INVALID_REQUEST
    else:
        failure = Failure.ENGINE_ERROR
    return Failed(failure, message)


def _error_fields(body: object) -> Mapping[str, object]:
    """Finds the error's fields: nested, flat, a sentence alone, or FastAPI's `detail`."""
    fields = body if isinstance(body, dict) else {}
    error = fields.get("error")
    if isinstance(error, dict):
        return error
    if isinstance(error, str):
        return {"message": error, "type": fields.get("error_type")}
    detail = fields.get("detail")
    return {"message": detail} if detail and "message" not in fields else fields


def integer(values: Mapping[str, object], name: str) -> int | None:
    """Returns a count that an engine reports, rounded; None where it reports none."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return round(value) if 0 <= value <= LARGEST_NUMBER else None


def option_value(kind: str, value: object) -> object:
    """Returns an engine option as the engine takes it, or None when it has the wrong type.

    `kind` is number, integer, boolean, text or list. Integers may arrive as doubles.
    """
    if kind in {"boolean", "text"}:
        return value if isinstance(value, bool if kind == "boolean" else str) else None
    if kind == "list":
        fits = isinstance(value, (list, tuple)) and len(value) <= _MAX_LIST_ITEMS
        return value if fits else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # NaN is refused here as well.
    if not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
        return None
    whole = value == int(value)
    return (int(value) if whole else None) if kind == "integer" else value


def schema_object(text: str) -> Json | Failed:
    """Returns the parsed JSON schema, or the event that refuses it."""
    try:
        parsed: object = json.loads(text)
    except ValueError:
        parsed = None
    return parsed if isinstance(parsed, dict) else invalid("json_schema must be a JSON object")


def secrets_of(request: GenerationRequest) -> tuple[str, ...]:
    """Returns what an error message must not quote."""
    if isinstance(request.prompt, str):
        texts = [request.prompt]
    else:
        texts = [message.content for message in request.prompt]
    sampling = request.sampling
    return (
        *texts,
        request.continue_text,
        sampling.grammar or "",
        sampling.json_schema or "",
        *sampling.stop,
    )


def redacted(event: Failed, secrets: tuple[str, ...]) -> Failed:
    """Returns the event, with a neutral message if its own quotes one of the secrets.

    Any common run of 31 characters is found, and a short secret as a whole.
    """
    message = event.message
    whole = any(
        _SHORTEST_SECRET_CHARS <= len(secret) < WINDOW_CHARS and secret in message
        for secret in secrets
    )
    if whole or quoting([message], secrets):
        return Failed(event.failure, "the engine's message is withheld: it quotes the request")
    return event
