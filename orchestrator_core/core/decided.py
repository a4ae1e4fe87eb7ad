"""What one step decided, in short: enough to tell two decisions apart, and to read. LO-207.

The flight recorder keeps it beside every input; a replay compares. Prompts do not occur.
"""

from collections.abc import Callable, Mapping, Sequence

from orchestrator_core.core.effects import (
    AttemptClosed,
    CancelUnconfirmed,
    ConfirmEnd,
    Effect,
    JobEnded,
    JobForgotten,
    JobStarted,
    ModelClosed,
    ModelRefused,
    OfferDeclined,
    PoolVerified,
    ReplyAccepted,
    ReplyModel,
    ReplyPool,
    ReplyRefused,
    ReplySession,
    ReplyState,
    SendCancel,
    SendDrain,
    SendRelease,
    SendStart,
    SendVerdicts,
)
from orchestrator_core.core.records import (
    AcceptRecord,
    CatalogRecord,
    DispatchRecord,
    PoolDrainRecord,
    SessionForgotten,
    SessionRecord,
    TerminalRecord,
)

Word = str | int | float | bool | None
Line = tuple[Word, ...]


def decided(effects: Sequence[Effect]) -> list[Line]:
    """One line per effect, its kind first."""
    return [_LINES[type(effect)](effect) for effect in effects]


def _accept(e: AcceptRecord) -> Line:
    shape = (e.position, e.predicted_start_ms, e.predicted_end_ms)
    return "accept", e.spec.job_id, e.seq, *shape, e.displaced


def _dispatch(e: DispatchRecord) -> Line:
    decision = e.decision
    predicted_ms = decision.candidates[0].predicted_end_ms if decision.candidates else None
    chosen = (e.pool_id, e.replica_id, decision.decided_by, predicted_ms)
    return "dispatch", e.job_id, e.attempt, *chosen, decision.candidates_total


def _terminal(e: TerminalRecord) -> Line:
    finish, error = e.outcome.finish, e.outcome.error
    why = finish.value if finish else error.reason.value if error else None
    return "terminal", e.job_id, e.state.value, why


def _session(e: SessionRecord) -> Line:
    spent = (e.spent.tokens, e.spent.time_ms, e.spent.cost_micros)
    held = (len(e.held), sum(hold.tokens for _, hold in e.held))
    return "session", e.identity, e.session_id, e.turns, *spent, *held, e.replica_id


def _accepted(e: ReplyAccepted) -> Line:
    receipt = e.receipt
    told = (receipt.on_time_probability, receipt.backoff_ms, receipt.duplicate)
    return "accepted", receipt.job_id, receipt.position, *told


def _refused(e: ReplyRefused) -> Line:
    refusal = e.refusal
    return "refused", refusal.reason.value, refusal.policy_label, refusal.retry_after_ms


def _start(e: SendStart) -> Line:
    return "start", e.spec.job_id, e.attempt, e.replica_id, e.mode.value, e.remaining_ms


def _verdicts(e: SendVerdicts) -> Line:
    told = " ".join(f"{job_id}/{number}:{v.value}" for job_id, number, v in e.verdicts)
    return "verdicts", e.host_id, told, *(pool_id for pool_id, _ in e.refused)


def _catalog(e: CatalogRecord) -> Line:
    entry = e.entry
    when = (entry.updated_ms, entry.retired_ms, entry.grace_until_ms)
    return "catalog", entry.card.model_id, e.change.value, entry.revision, *when, e.over


# Calls by type: a chain of isinstance takes longer than the lines themselves.
_LINES: Mapping[type, Callable[..., Line]] = {
    AcceptRecord: _accept,
    DispatchRecord: _dispatch,
    TerminalRecord: _terminal,
    SessionRecord: _session,
    SessionForgotten: lambda e: ("session over", e.identity, e.session_id),
    ReplySession: lambda e: ("session told", e.session_id),
    ReplyAccepted: _accepted,
    ReplyRefused: _refused,
    ReplyState: lambda e: ("state", e.job_id),
    SendStart: _start,
    SendCancel: lambda e: ("cancel", e.host_id, e.job_id, e.attempt, e.job_cancelled),
    JobEnded: lambda e: ("ended", e.job_id, e.why),
    JobStarted: lambda e: ("started", e.job_id, e.attempt, e.mode.value),
    OfferDeclined: lambda e: ("declined", e.job_id, e.pool_id, e.here_ms, e.elsewhere_ms),
    SendVerdicts: _verdicts,
    SendRelease: lambda e: ("release", e.host_id, e.job_id, e.attempt),
    AttemptClosed: lambda e: ("closed", e.job_id, e.attempt, e.why, e.retried),
    CancelUnconfirmed: lambda e: ("cancel unconfirmed", e.job_id, e.attempt, e.pool_id),
    ConfirmEnd: lambda e: ("confirm_end", e.job_id),
    PoolDrainRecord: lambda e: ("drain", e.pool_id, e.until_ms, e.over),
    CatalogRecord: _catalog,
    ReplyModel: lambda e: ("model told", e.model_id),
    PoolVerified: lambda e: ("verified", e.pool_id, e.model_id, e.verdict.value),
    ModelRefused: lambda e: ("model refused", e.refusal.reason.value),
    ModelClosed: lambda e: ("model closed", e.model_id, e.jobs_failed, *e.pool_ids),
    ReplyPool: lambda e: ("pool told", e.pool_id),
    SendDrain: lambda e: ("send drain", e.host_id, e.pool_id, e.left_ms),
    JobForgotten: lambda e: ("forgotten", e.job_id),
}
