"""What spans and log lines tell of an attempt: which, where, and on what. ORCH-3027."""

from pool_managerd.attempts.command import AttemptCommand
from pool_managerd.core.attempts import AttemptFailure, EndReason, Terminal
from pool_managerd.engines.port import EngineInfo, GenerationRequest
from pool_managerd.telemetry import names
from pool_managerd.telemetry.spans import Attributes

Facts = dict[str, str | int | bool]
_TRACE_ID_AT = 1


def attempt_facts(command: AttemptCommand, info: EngineInfo | None) -> Facts:
    """The keys of every span and log line about an attempt; `info` is of its engine."""
    facts: Facts = {
        "job_id": command.key.job_id,
        "attempt": command.key.attempt,
        "session_id": command.session_id,
        "correlation_id": command.correlation_id,
        "pool_id": command.pool_id,
        "replica_id": command.replica_id,
    }
    if info is not None:
        facts |= {
            "engine": info.engine,
            "engine_version": info.engine_version,
            "model_id": info.model_id,
            "ctx": info.ctx_max,
        }
    return facts


def trace_id(traceparent: str) -> str:
    """The trace id within a W3C traceparent, for log lines; empty where there is none."""
    parts = traceparent.split("-")
    return parts[_TRACE_ID_AT] if len(parts) > _TRACE_ID_AT else ""


def asked(request: GenerationRequest, facts: Facts) -> Attributes:
    """What is asked of an engine, by the names of the GenAI conventions. No prompt."""
    sampling = request.sampling
    known = {
        names.OPERATION: "text_completion" if isinstance(request.prompt, str) else "chat",
        names.PROVIDER: facts.get("engine"),
        names.MODEL: facts.get("model_id"),
        names.SESSION: facts["session_id"] or None,
        names.MAX_TOKENS: sampling.max_tokens,
        names.TEMPERATURE: sampling.temperature,
        names.TOP_P: sampling.top_p,
        names.TOP_K: sampling.top_k,
        # A seed may have 64 bits without a sign, and an attribute has 63 beside its sign.
        names.SEED: sampling.seed if sampling.seed < 1 << 63 else str(sampling.seed),
    }
    return {key: value for key, value in known.items() if value is not None}


def answered(terminal: Terminal, first_ms: int | None) -> Attributes:
    """How an engine answered, by the names of the GenAI conventions."""
    usage, outcome = terminal.usage, terminal.outcome
    known = {
        names.TOKENS_IN: usage.tokens_in,
        names.TOKENS_OUT: usage.tokens_out,
        names.FINISH: [outcome.value] if isinstance(outcome, EndReason) else None,
        names.FIRST_CHUNK_S: None if first_ms is None else first_ms / 1000,
    }
    return {key: value for key, value in known.items() if value is not None}


def ended(terminal: Terminal, tokens_out: int, *, kv_warmth: bool) -> Facts:
    """How an attempt ended; what the engine does not say is left out."""
    usage = terminal.usage
    known = {
        "outcome": outcome_text(terminal),
        "tokens_in": usage.tokens_in,
        "tokens_out": tokens_out if usage.tokens_out is None else usage.tokens_out,
        "decode_time_ms": usage.decode_time_ms,
        "kv_warmth": kv_warmth,
    }
    return {key: value for key, value in known.items() if value is not None}


def failure_of(terminal: Terminal) -> str:
    """How an attempt failed, as a stable word; empty when it ended regularly."""
    outcome = terminal.outcome
    return outcome.kind.value if isinstance(outcome, AttemptFailure) else ""


def outcome_text(terminal: Terminal) -> str:
    """How an attempt ended, as a stable word."""
    outcome = terminal.outcome
    return outcome.value if isinstance(outcome, EndReason) else outcome.kind.value


def sentence(facts: Facts, told: Facts) -> str:
    """An attempt's end in a sentence for people. ORCH-3300."""
    job_id, pool_id = facts["job_id"], facts["pool_id"]
    if told["outcome"] in {reason.value for reason in EndReason}:
        tokens, outcome = told["tokens_out"], told["outcome"]
        return f"Job {job_id} ended on pool {pool_id} with {tokens} tokens ({outcome})."
    return f"Job {job_id} failed on pool {pool_id}: {told['outcome']}."
