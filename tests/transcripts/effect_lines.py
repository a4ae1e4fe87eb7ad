"""What an effect is in a transcript: one line, by the effect alone."""

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
    PoolVerified,
    ReplyModel,
    ReplyPool,
    ReplySession,
    SendCancel,
    SendDrain,
    SendRelease,
    SendStart,
    SendVerdicts,
)
from orchestrator_core.core.outcome import Outcome
from orchestrator_core.core.records import (
    CatalogRecord,
    PoolDrainRecord,
    SessionForgotten,
    SessionRecord,
)


def line_of(effect: Effect) -> str:
    """The line of an effect of which nothing else needs to be known.

    Raises:
        AssertionError: for an effect that has no line yet.
    """
    match effect:
        case SendStart():
            left = "" if effect.remaining_ms is None else f" remaining_ms={effect.remaining_ms}"
            most = effect.spec.max_tokens
            left += "" if most is None else f" max_tokens={most}"
            what = f"{effect.spec.job_id}#{effect.attempt} {effect.mode.value}"
            line = f"send start {what} to {effect.replica_id}{left}"
        case SendCancel():
            line = f"send cancel {effect.job_id}#{effect.attempt} to {effect.host_id}"
        case SendRelease():
            line = f"send release {effect.job_id}#{effect.attempt} to {effect.host_id}"
        case SendVerdicts():
            all_of_them = [f"{j}#{n} {verdict.value}" for j, n, verdict in effect.verdicts]
            line = f"send verdicts to {effect.host_id}: {', '.join(all_of_them) or 'none'}"
        case JobStarted():
            line = f"tell {effect.job_id}#{effect.attempt} started {effect.mode.value}"
        case JobEnded():
            why = f" ({effect.why})" if effect.why else ""
            line = f"tell {effect.job_id} {effect.state.value} {_outcome(effect.outcome)}{why}"
        case _:
            line = _show_over(effect)
    return line


def _show_over(effect: Effect) -> str:
    """What is over, and sessions."""
    match effect:
        case AttemptClosed():
            retried = " retried" if effect.retried else ""
            line = f"closed {effect.job_id}#{effect.attempt} {effect.why}{retried}"
        case CancelUnconfirmed():
            line = (
                f"{effect.pool_id} closed: cancel of {effect.job_id}#{effect.attempt} unconfirmed"
            )
        case ConfirmEnd():
            line = f"confirm end of {effect.job_id}"
        case JobForgotten():
            line = f"forgot {effect.job_id}"
        case SessionRecord():
            held = sum(hold.tokens for _, hold in effect.held)
            spent = effect.spent.tokens
            line = f"journal session {effect.session_id} turns={effect.turns} {spent=} {held=}"
        case SessionForgotten():
            line = f"journal session {effect.session_id} over"
        case ReplySession():
            line = f"reply session {effect.session_id} is forgotten"
        case _:
            line = _show_pools(effect)
    return line


def _show_pools(effect: Effect) -> str:
    match effect:
        case PoolDrainRecord():
            over = " over" if effect.over else f" until {effect.until_ms}"
            line = f"journal drain of {effect.pool_id}{over}"
        case SendDrain():
            told = "takes work again" if effect.left_ms is None else f"drains {effect.left_ms} ms"
            line = f"send {effect.host_id}: {effect.pool_id} {told}"
        case ReplyPool():
            line = f"reply pool {effect.pool_id}"
        case _:
            line = _show_models(effect)
    return line


def _show_models(effect: Effect) -> str:
    match effect:
        case CatalogRecord():
            until_ms = effect.entry.grace_until_ms
            grace = "" if until_ms is None else f" until {until_ms}"
            what = f"{effect.change.value} revision={effect.entry.revision}{grace}"
            line = f"journal model {effect.entry.card.model_id} {what}"
        case ReplyModel():
            line = f"reply model {effect.model_id}"
        case ModelRefused():
            line = f"reply refused {effect.refusal.reason.value}"
        case PoolVerified():
            line = f"{effect.pool_id} verified for {effect.model_id}: {effect.verdict.value}"
        case ModelClosed():
            pools = " ".join(effect.pool_ids) or "none"
            line = f"{effect.model_id} closed, jobs failed: {effect.jobs_failed}, pools: {pools}"
        case _:
            raise AssertionError(effect)
    return line


def _outcome(outcome: Outcome) -> str:
    if outcome.error is not None:
        return outcome.error.reason.value
    assert outcome.finish is not None
    return outcome.finish.value
