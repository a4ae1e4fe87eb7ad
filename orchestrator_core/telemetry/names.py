"""Every span name and attribute key of orchestratord. docs/traces.md shows this table.

Source: `rpc.*` and `error.type` are OpenTelemetry's semantic conventions 1.44.0, `gen_ai.*` those
of opentelemetry/semantic-conventions-genai, still in development; `llamaorch.*` keys are the
project's own and shared with pool-managerd and the clients.
"""

from dataclasses import dataclass
from typing import Final

from orchestrator_core.core.decision import ExclusionReason

SEMCONV_VERSION: Final = "1.44.0"
SERVICE: Final = "orchestratord"

ENQUEUE: Final = "enqueue"
CANCEL: Final = "cancel"
ADMIT: Final = "admit"
QUEUE_WAIT: Final = "queue.wait"
PLACE: Final = "place"
DISPATCH: Final = "dispatch"
DECODE: Final = "decode"
DROP: Final = "drop"
EXPIRE: Final = "expire"
FAIL: Final = "fail"
RETRY: Final = "retry"
FAILOVER: Final = "failover"
RETRACT: Final = "retract"
DECLINE: Final = "decline"
ADOPT: Final = "adopt"
DRAIN: Final = "drain"
RELOAD: Final = "reload"
OUTBOUND: Final = "outbound.decide"
CONFIG_RELOAD: Final = "config.reload"
CATALOG: Final = "catalog.change"
VERIFY: Final = "catalog.verify"
# Stands in the table for the names of methods, e.g. llamaorch.orchestrator.v1.SessionService/Get.
RPC: Final = "package.Service/Method"

RPC_SYSTEM: Final = "rpc.system.name"
RPC_METHOD: Final = "rpc.method"
# Called `rpc.status_code` in versions after 1.44.
RPC_STATUS: Final = "rpc.response.status_code"
ERROR_TYPE: Final = "error.type"
GEN_AI_PROVIDER: Final = "gen_ai.provider.name"
GEN_AI_MODEL: Final = "gen_ai.request.model"
GEN_AI_SESSION: Final = "gen_ai.conversation.id"
GEN_AI_TOKENS_IN: Final = "gen_ai.usage.input_tokens"
GEN_AI_TOKENS_OUT: Final = "gen_ai.usage.output_tokens"
GEN_AI_FINISH: Final = "gen_ai.response.finish_reasons"

JOB_ID: Final = "llamaorch.job_id"
REQUEST_ID: Final = "llamaorch.request_id"
SESSION_ID: Final = "llamaorch.session_id"
CORRELATION_ID: Final = "llamaorch.correlation_id"
IDENTITY: Final = "llamaorch.identity"
TOKEN_FINGERPRINT: Final = "llamaorch.token_fingerprint"  # noqa: S105 - six digits of a hash
MODEL_ID: Final = "llamaorch.model_id"
ENGINE: Final = "llamaorch.engine"
ENGINE_VERSION: Final = "llamaorch.engine_version"
QUANT: Final = "llamaorch.quant"
CTX: Final = "llamaorch.ctx"
PRIORITY: Final = "llamaorch.priority"
HOST_ID: Final = "llamaorch.host_id"
POOL_ID: Final = "llamaorch.pool_id"
REPLICA_ID: Final = "llamaorch.replica_id"
ATTEMPT: Final = "llamaorch.attempt"
MODE: Final = "llamaorch.mode"
VERDICT: Final = "llamaorch.verdict"
REASON: Final = "llamaorch.reason"
POLICY_LABEL: Final = "llamaorch.policy_label"
DRAIN_LEFT_MS: Final = "llamaorch.drain_left_ms"
RETRY_AFTER_MS: Final = "llamaorch.retry_after_ms"
QUEUE_POSITION: Final = "llamaorch.queue_position"
QUEUE_DEPTH: Final = "llamaorch.queue_depth"
LIVE_ATTEMPTS: Final = "llamaorch.live_attempts"
PREDICTED_START_MS: Final = "llamaorch.predicted_start_ms"
PREDICTED_END_MS: Final = "llamaorch.predicted_end_ms"
DISPLACED: Final = "llamaorch.displaced_job_id"
DISPLACED_BY: Final = "llamaorch.displaced_by_job_id"
OUTCOME: Final = "llamaorch.outcome"
WHY: Final = "llamaorch.why"
KV_WARMTH: Final = "llamaorch.kv_warmth"
DECISION_ID: Final = "llamaorch.decision_id"
TOOL: Final = "llamaorch.tool"
SCHEME: Final = "llamaorch.scheme"
REMOTE_HOST: Final = "llamaorch.remote_host"
ALLOWED: Final = "llamaorch.allowed"
RULE: Final = "llamaorch.rule"
CHANGED_KEYS: Final = "llamaorch.config.changed"
WAITING_KEYS: Final = "llamaorch.config.needs_restart"
TOKENS_IN: Final = "llamaorch.tokens_in"
TOKENS_OUT: Final = "llamaorch.tokens_out"
QUEUE_TIME_MS: Final = "llamaorch.queue_time_ms"
FIRST_TOKEN_MS: Final = "llamaorch.first_token_ms"  # noqa: S105 - tokens of text
DECODE_TIME_MS: Final = "llamaorch.decode_time_ms"
CHANGE: Final = "llamaorch.change"
REVISION: Final = "llamaorch.revision"
VERIFIED: Final = "llamaorch.verified"
POOLS: Final = "llamaorch.pools"
HERE_MS: Final = "llamaorch.decline.here_ms"
ELSEWHERE_MS: Final = "llamaorch.decline.elsewhere_ms"
DECLINED_OFFERS: Final = "llamaorch.place.declined_offers"
DECIDED_BY: Final = "llamaorch.place.decided_by"
RULES_VERSION: Final = "llamaorch.place.rules_version"
CANDIDATES_TOTAL: Final = "llamaorch.place.candidates_total"
EXCLUSIONS_TOTAL: Final = "llamaorch.place.exclusions_total"
CANDIDATE_POOLS: Final = "llamaorch.place.candidates.pool_id"
CANDIDATE_SCORES: Final = "llamaorch.place.candidates.predicted_end_ms"
CANDIDATE_VERSIONS: Final = "llamaorch.place.candidates.snapshot_version"
CANDIDATE_AGES: Final = "llamaorch.place.candidates.snapshot_age_ms"
EXCLUDED: Final = {reason: f"llamaorch.place.excluded.{reason.value}" for reason in ExclusionReason}


@dataclass(frozen=True, slots=True)
class SpanRow:
    """One kind of span: its name, when it exists, and the keys that it may carry."""

    name: str
    when: str
    keys: tuple[str, ...]


_WHO = (JOB_ID, SESSION_ID, MODEL_ID, ENGINE, ENGINE_VERSION)
_JOB = (*_WHO, PRIORITY, QUANT, CTX, CORRELATION_ID)
_ATTEMPT = (JOB_ID, ATTEMPT, POOL_ID, REPLICA_ID)
_END = (*_WHO, ATTEMPT, POOL_ID, REPLICA_ID, QUEUE_TIME_MS, REASON, WHY)
_CALLER = (IDENTITY, TOKEN_FINGERPRINT)
_RPC = (RPC_SYSTEM, RPC_METHOD, ERROR_TYPE, JOB_ID, CORRELATION_ID, *_CALLER)

SPANS: Final = (
    SpanRow(ENQUEUE, "an enqueue, from receipt to its answer (kind SERVER)", _RPC),
    SpanRow(
        ADMIT,
        "instant: accepted, rejected, or duplicate; links to the job that gave way, or that was "
        "accepted first",
        (
            *_JOB,
            REQUEST_ID,
            VERDICT,
            REASON,
            POLICY_LABEL,
            RETRY_AFTER_MS,
            QUEUE_POSITION,
            PREDICTED_START_MS,
            PREDICTED_END_MS,
            DISPLACED,
        ),
    ),
    SpanRow(
        QUEUE_WAIT,
        "from accept or requeue until placed or ended; after a requeue it links to the attempt "
        "that was lost",
        (JOB_ID, SESSION_ID, OUTCOME, QUEUE_TIME_MS),
    ),
    SpanRow(
        PLACE,
        "instant: a pool was chosen; the best five candidates, the winner first",
        (
            *_ATTEMPT,
            DECIDED_BY,
            RULES_VERSION,
            CANDIDATES_TOTAL,
            EXCLUSIONS_TOTAL,
            DECLINED_OFFERS,
            CANDIDATE_POOLS,
            CANDIDATE_SCORES,
            CANDIDATE_VERSIONS,
            CANDIDATE_AGES,
            *EXCLUDED.values(),
        ),
    ),
    SpanRow(
        DECLINE,
        "instant: the first slot that it let pass, to end sooner elsewhere",
        (JOB_ID, POOL_ID, HERE_MS, ELSEWHERE_MS),
    ),
    SpanRow(
        DISPATCH,
        "from the dispatch of an attempt until the engine took it up, or it was over; the pool's "
        "spans are its children; a second attempt links to the first",
        (*_WHO, ATTEMPT, POOL_ID, REPLICA_ID, HOST_ID, MODE, OUTCOME, ERROR_TYPE),
    ),
    SpanRow(
        DECODE,
        "from the engine's start until the attempt counts no more or the job ended",
        (
            *_JOB,
            ATTEMPT,
            POOL_ID,
            REPLICA_ID,
            MODE,
            KV_WARMTH,
            QUEUE_POSITION,
            PREDICTED_START_MS,
            OUTCOME,
            TOKENS_IN,
            TOKENS_OUT,
            QUEUE_TIME_MS,
            FIRST_TOKEN_MS,
            DECODE_TIME_MS,
            GEN_AI_PROVIDER,
            GEN_AI_MODEL,
            GEN_AI_SESSION,
            GEN_AI_TOKENS_IN,
            GEN_AI_TOKENS_OUT,
            GEN_AI_FINISH,
            ERROR_TYPE,
        ),
    ),
    SpanRow(
        CANCEL,
        "a cancel request (kind SERVER); and instant, in the job's trace: it was cancelled",
        (*_RPC, *_END),
    ),
    SpanRow(
        DROP, "instant: gave its place to a newer job, to which it links", (*_END, DISPLACED_BY)
    ),
    SpanRow(EXPIRE, "instant: a deadline or watchdog ended it", _END),
    SpanRow(FAIL, "instant: it cannot be completed", _END),
    SpanRow(RETRY, "instant: back into the queue, nothing was delivered", (JOB_ID, ATTEMPT, WHY)),
    SpanRow(
        FAILOVER,
        "instant: back into the queue for a replay or a continuation",
        (JOB_ID, ATTEMPT, WHY),
    ),
    SpanRow(RETRACT, "instant: the journal refused the accept, it never happened", (JOB_ID,)),
    SpanRow(
        ADOPT,
        "instant: what becomes of an attempt that a host still holds",
        (JOB_ID, ATTEMPT, HOST_ID, VERDICT),
    ),
    SpanRow(
        DRAIN,
        "instant: nothing is accepted or placed any more; with a pool, that an operator drains it"
        " (verdict begun) or not any more (over)",
        (QUEUE_DEPTH, LIVE_ATTEMPTS, POOL_ID, VERDICT, DRAIN_LEFT_MS),
    ),
    SpanRow(
        RELOAD,
        "from the command to reload a pool to what became of it: done, rolled_back, failed,"
        " superseded or unknown",
        (POOL_ID, OUTCOME, WHY),
    ),
    SpanRow(
        CATALOG,
        "instant: a model was registered, updated, retired, activated or deleted",
        (MODEL_ID, CHANGE, REVISION),
    ),
    SpanRow(
        VERIFY,
        "instant: a model was compared with what so many pools report",
        (MODEL_ID, VERIFIED, POOLS),
    ),
    SpanRow(
        OUTBOUND,
        "instant: whether a client's tool may connect to a host",
        (DECISION_ID, CORRELATION_ID, JOB_ID, SESSION_ID, TOOL, SCHEME, REMOTE_HOST, ALLOWED, RULE),
    ),
    SpanRow(
        CONFIG_RELOAD,
        "instant: the configuration was read again; applied, unchanged, or refused and why",
        (OUTCOME, CHANGED_KEYS, WAITING_KEYS, WHY),
    ),
    SpanRow(
        RPC,
        "any other call whose caller sent a trace context, named after its method (kind SERVER)",
        (RPC_SYSTEM, RPC_METHOD, RPC_STATUS, ERROR_TYPE, *_CALLER),
    ),
)


def reference() -> str:
    """The table of spans for docs/traces.md, as Markdown."""
    lines = ["| span | when | attributes |", "|---|---|---|"]
    for row in SPANS:
        keys = ", ".join(f"`{key}`" for key in dict.fromkeys(row.keys))
        lines.append(f"| `{row.name}` | {row.when} | {keys} |")
    return "\n".join(lines) + "\n"
