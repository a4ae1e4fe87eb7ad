"""Whether a session can take one more job, and how it bounds it. ORCH-3021, ORCH-3099."""

from dataclasses import replace
from typing import Literal

from orchestrator_core.core import guardrails
from orchestrator_core.core.allowance import cost_micros, ctx_max, less, prompt_tokens
from orchestrator_core.core.forecast import retry_after_ms
from orchestrator_core.core.outcome import FieldViolation, Reason, Refusal
from orchestrator_core.core.session import Session
from orchestrator_core.core.spec import NO_BUDGETS, Budgets, JobSpec
from orchestrator_core.core.spending import budgets_of, find
from orchestrator_core.core.state import State

Kind = Literal["tokens", "time_ms", "cost_micros"]

TURNS = "session-turns"
SESSIONS = "sessions"
BUDGET_LABELS: dict[Kind, str] = {
    "tokens": "session-budget-tokens",
    "time_ms": "session-budget-time",
    "cost_micros": "session-budget-cost",
}


def fit(state: State, spec: JobSpec, now_ms: int, *, asked: bool) -> JobSpec | Refusal:
    """Refuses a job that its session cannot take; else the job as its session lets it run.

    `asked` says that the client set `max_tokens`: then that much must be left. A job without it
    gets all that is left as its bound. Some pool must be feasible. O(jobs of the session).
    """
    if not spec.session_id:
        return spec
    session = find(state, spec.identity, spec.session_id, now_ms)
    refused = _cannot_join(state, spec, session, now_ms)
    if refused is not None:
        return refused
    if session is None:
        session = Session(spec.identity, spec.session_id, now_ms, now_ms, spec.session_budgets)
    budgets = budgets_of(state, session)
    if budgets == NO_BUDGETS:
        return spec
    room = less(budgets, session.spent, session.reserved())
    output = spec.max_tokens or 1 if asked else 1
    short = _too_dear(state, spec, output, room)
    if short is not None:
        # What others have set aside may come back; what is spent does not.
        hopeless = _too_dear(state, spec, output, less(budgets, session.spent)) is not None
        wait_ms = None if hopeless else _next_end_ms(state, session, now_ms)
        return _refused(state, spec, session, short, wait_ms)
    return _bounded(state, spec, room, asked=asked)


def _cannot_join(
    state: State, spec: JobSpec, session: Session | None, now_ms: int
) -> Refusal | None:
    """Refuses a turn too many, other budgets than the session was opened with, and no room."""
    config, engine = state.config, spec.needs.engine
    if session is None:
        if len(state.sessions) < config.sessions_max or state.sessions.oldest_idle() is not None:
            return None
        message = f"{config.sessions_max} sessions have jobs that have not ended"
        wait_ms = retry_after_ms(state, now_ms, spec)
        return Refusal(Reason.ADMISSION_REJECT, message, wait_ms, SESSIONS, engine)
    if spec.session_budgets not in (NO_BUDGETS, session.budgets):
        what = f"must be left out, or be those with which {spec.session_id!r} was opened"
        return Refusal(
            Reason.INVALID_PARAMS,
            f"spec.session_budgets {what}: delete the session, or begin another one",
            engine=engine,
            violations=(FieldViolation("spec.session_budgets", what),),
        )
    if session.turns < config.session_turns_max:
        return None
    return Refusal(
        Reason.ADMISSION_REJECT,
        f"session {spec.session_id!r} has had its {config.session_turns_max} turns: go on under "
        "another session_id, or raise sessions.turns_max at the server",
        None,
        TURNS,
        engine,
        resource=f"session {spec.session_id}",
        metadata={"limit": str(config.session_turns_max)},
    )


def _too_dear(state: State, spec: JobSpec, output: int, room: Budgets) -> Kind | None:
    """The first budget that has no room for a job with so many tokens of output."""
    prompt = prompt_tokens(state, spec)
    needed: dict[Kind, int] = {
        "tokens": prompt + output,
        "time_ms": spec.budgets.time_ms or 1,
        "cost_micros": cost_micros(state, spec, prompt, output),
    }
    for kind, amount in needed.items():
        has: int | None = getattr(room, kind)
        if has is not None and amount > has:
            return kind
    return None


def _next_end_ms(state: State, session: Session, now_ms: int) -> int:
    """Milliseconds until the first of a session's jobs is predicted to end, within the bounds."""
    config = state.config
    ends_ms = []
    for job in (state.jobs[job_id] for job_id in session.held if job_id in state.jobs):
        if job.attempt is not None:
            ends_ms.append(job.attempt.sent_ms + job.attempt.predicted_end_ms)
        elif job.predicted_end_ms is not None:
            ends_ms.append(job.accepted_ms + job.predicted_end_ms)
    wait_ms = min(ends_ms, default=now_ms) - now_ms
    return min(max(wait_ms, config.retry_after_min_ms), config.retry_after_max_ms)


def _refused(
    state: State, spec: JobSpec, session: Session, kind: Kind, wait_ms: int | None
) -> Refusal:
    budgets = budgets_of(state, session)
    room = less(budgets, session.spent, session.reserved())
    has, total = getattr(room, kind), getattr(budgets, kind)
    spent, reserved = getattr(session.spent, kind), getattr(session.reserved(), kind)
    advice = "come back when jobs of the session have ended" if wait_ms is not None else ""
    if not advice and has:
        advice = "ask for less (shorter input, max_tokens, budgets.time_ms)"
    if not advice:
        advice = "begin another session"
    return Refusal(
        Reason.ADMISSION_REJECT,
        f"the job does not fit what session {spec.session_id!r} has left of its budget {kind}: "
        f"{has} of {total}, {spent} spent and {reserved} set aside; {advice}",
        wait_ms,
        BUDGET_LABELS[kind],
        spec.needs.engine,
        resource=f"session_budgets.{kind}",
        metadata={"remaining": str(has), "budget": str(total)},
    )


def _bounded(state: State, spec: JobSpec, room: Budgets, *, asked: bool) -> JobSpec:
    """Bounds a job by what there is for it, so that it cannot overrun."""
    prompt, max_tokens = prompt_tokens(state, spec), spec.max_tokens
    price = state.config.guardrails.price_of(spec.needs.model_id)
    output = guardrails.output_left(room, prompt, price)
    # An engine refuses more than its context holds: where that is the tighter bound, none is set.
    if not asked and output is not None and prompt + output < ctx_max(state, spec):
        max_tokens = min(output, max_tokens or output, guardrails.MAX_TOKENS_MAX)
    budgets = spec.budgets
    if room.time_ms is not None and budgets.time_ms is None:
        longest_ms = min(room.time_ms, state.config.wall_timeout_ms)
        budgets = replace(budgets, time_ms=longest_ms)
    return replace(spec, max_tokens=max_tokens, budgets=budgets)
