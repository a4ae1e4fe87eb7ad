"""Every span of pool-managerd and its attributes. docs/traces.md shows this table.

Source: `gen_ai.*` are the conventions of opentelemetry/semantic-conventions-genai, still in
development; `error.type` is OpenTelemetry's. All other keys stand behind `llamaorch.`, the
project's own prefix, shared with orchestratord and the clients.
"""

from dataclasses import dataclass
from typing import Final

PREFIX: Final = "llamaorch."

SPAN_ATTEMPT: Final = "pool.attempt"
SPAN_GENERATE: Final = "engine.generate"
SPAN_CANCEL: Final = "attempt.cancel"
SPAN_REFUSE: Final = "attempt.refuse"
SPAN_START: Final = "pool.start"
SPAN_STOP: Final = "pool.stop"
SPAN_DRAIN: Final = "pool.drain"
SPAN_RELOAD: Final = "pool.reload"
SPAN_OUTBOUND: Final = "outbound.decide"
SPAN_CONFIG_RELOAD: Final = "config.reload"

ERROR_TYPE: Final = "error.type"
OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
MODEL: Final = "gen_ai.request.model"
SESSION: Final = "gen_ai.conversation.id"
MAX_TOKENS: Final = "gen_ai.request.max_tokens"
TEMPERATURE: Final = "gen_ai.request.temperature"
TOP_P: Final = "gen_ai.request.top_p"
TOP_K: Final = "gen_ai.request.top_k"
SEED: Final = "gen_ai.request.seed"
TOKENS_IN: Final = "gen_ai.usage.input_tokens"
TOKENS_OUT: Final = "gen_ai.usage.output_tokens"
FINISH: Final = "gen_ai.response.finish_reasons"
CHANGED_KEYS: Final = "llamaorch.config.changed"
WAITING_KEYS: Final = "llamaorch.config.needs_restart"
FIRST_CHUNK_S: Final = "gen_ai.response.time_to_first_chunk"


@dataclass(frozen=True, slots=True)
class SpanRow:
    """One kind of span: its name, when it exists, and the keys that it may carry."""

    name: str
    when: str
    keys: tuple[str, ...]


_POOL = ("pool_id", "replica_id")
_ATTEMPT = (
    *("job_id", "attempt", "session_id", "correlation_id", *_POOL),
    *("engine", "engine_version", "model_id", "ctx"),
)

SPANS: Final = (
    SpanRow(
        SPAN_ATTEMPT,
        "from the start of an attempt until its slot is free; child of `dispatch`",
        (
            *_ATTEMPT,
            *("kv_warmth", "outcome", "tokens_in", "tokens_out", "decode_time_ms", ERROR_TYPE),
        ),
    ),
    SpanRow(
        SPAN_GENERATE,
        "what is asked of the engine (kind CLIENT); the engine gets its context",
        (
            *_ATTEMPT,
            *(OPERATION, PROVIDER, MODEL, SESSION, MAX_TOKENS, TEMPERATURE, TOP_P, TOP_K, SEED),
            *(TOKENS_IN, TOKENS_OUT, FINISH, FIRST_CHUNK_S, ERROR_TYPE),
        ),
    ),
    SpanRow(
        SPAN_CANCEL,
        "instant: the engine has, or has not, confirmed that it stopped an attempt",
        (*_ATTEMPT, "confirmed"),
    ),
    SpanRow(
        SPAN_REFUSE,
        "instant: an attempt was not started; child of `dispatch`",
        ("job_id", "attempt", *_POOL, "correlation_id", "reason", ERROR_TYPE),
    ),
    SpanRow(
        SPAN_START,
        "from the decision to start an engine until it is ready, or has failed",
        (*_POOL, "outcome", "reason", ERROR_TYPE),
    ),
    SpanRow(SPAN_STOP, "stopping an engine", (*_POOL, "reason")),
    SpanRow(
        SPAN_DRAIN,
        "instant: a pool takes no more work, or (reason none) takes it again",
        ("pool_id", "reason"),
    ),
    SpanRow(
        SPAN_RELOAD,
        "from the wish to load a model until the pool is idle and its engine is stopped for it",
        (*_POOL, "model_ref"),
    ),
    SpanRow(
        SPAN_OUTBOUND,
        "instant: the policy allowed, or denied, to connect to a host for a model",
        ("decision_id", "owner", "remote_host", "allowed", "rule"),
    ),
    SpanRow(
        SPAN_CONFIG_RELOAD,
        "instant: the configuration was read again: applied, unchanged or refused",
        ("outcome", CHANGED_KEYS, WAITING_KEYS, "why"),
    ),
)


def key(name: str) -> str:
    """The attribute's key: a name of the conventions as it is, one of ours behind the prefix."""
    return name if "." in name else PREFIX + name


def reference() -> str:
    """The table of spans for docs/traces.md, as Markdown."""
    lines = ["| span | when | attributes |", "|---|---|---|"]
    for row in SPANS:
        keys = ", ".join(f"`{key(name)}`" for name in row.keys)
        lines.append(f"| `{row.name}` | {row.when} | {keys} |")
    return "\n".join(lines) + "\n"
