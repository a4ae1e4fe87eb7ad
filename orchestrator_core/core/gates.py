"""The gates in front of the queue, and what they take and give back. ORCH-3006, ORCH-3014, LO-105.

The rules are in `guardrails` and `throttle`; here they meet the tables.
"""

from orchestrator_core.core import guardrails
from orchestrator_core.core.allowance import ctx_max
from orchestrator_core.core.decision import Exclusion, ExclusionReason, Shortfall
from orchestrator_core.core.forecast import forecast, on_time_probability, retry_after_ms
from orchestrator_core.core.job import Job
from orchestrator_core.core.outcome import Reason, Refusal, Usage
from orchestrator_core.core.session_gate import fit
from orchestrator_core.core.spec import JobSpec
from orchestrator_core.core.state import State
from orchestrator_core.core.states import JobState

# With fewer judged predictions than this a probability is a guess, and nobody is refused for one.
JUDGED_MIN = 20

DEADLINE_UNLIKELY = "deadline-unlikely"

# After a job that was let in against the prediction, and was late, so many times as long none is.
DISPROOF_REST = 9


def guard(state: State, spec: JobSpec, now_ms: int) -> JobSpec | Refusal:
    """Refuses what exceeds a context, a budget or a session; else the job as it will be run.

    Some pool must be feasible. O(1), O(pools) when it refuses.
    """
    rails = state.config.guardrails
    refused = guardrails.over_budget(spec, rails)
    if refused is not None:
        return refused
    sizes, asked = state.feasible(spec.needs).ctx_sizes, spec.max_tokens is not None
    if spec.budgets.tokens is not None or spec.budgets.cost_micros is not None:
        most = ctx_max(state, spec)
        spec = guardrails.capped(spec, _prompt_tokens(state, spec), most, rails)
    fitted = fit(state, spec, now_ms, asked=asked)
    if isinstance(fitted, Refusal):
        return fitted
    spec = fitted
    if not sizes:
        return spec
    needed = guardrails.certain_ctx(spec, rails)
    if needed > sizes[-1]:
        return _too_long(state, spec, needed)
    return guardrails.with_certain_ctx(spec, needed, sizes)


def _too_long(state: State, spec: JobSpec, needed: int) -> Refusal:
    feasible = state.feasible(spec.needs)
    wrong = guardrails.ctx_field(spec, feasible.ctx_sizes[-1], state.config.guardrails)
    return Refusal(
        Reason.INCOMPATIBLE_MODEL,
        f"{wrong.field} {wrong.description}",
        engine=spec.needs.engine,
        metadata={"field": wrong.field},
        shortfalls=tuple(
            Exclusion(pool_id, (Shortfall(ExclusionReason.CONTEXT, str(needed), str(size)),))
            for pool_id, size in (
                (pool_id, pool.snapshot.ctx_max) for pool_id, pool in feasible.pools.items()
            )
        ),
    )


def throttled(state: State, spec: JobSpec, now_ms: int) -> Refusal | None:
    """Refuses what is beyond the client's limits. O(1)."""
    identity = spec.identity
    if not state.throttle.limiting:
        return None
    found = state.throttle.check(identity, _tokens_of(state, spec), now_ms)
    if found is None:
        return None
    wait_ms = found.wait_ms
    if wait_ms is None:
        # Of all that wait, one in so many is this client's: so many have to leave.
        share = -(-len(state.queue) // state.throttle.waiting(identity))
        wait_ms = retry_after_ms(state, now_ms, spec, places=share)
    what = {
        "throttle-requests": "requests per minute",
        "throttle-tokens": "tokens per minute",
        "throttle-queued": "waiting jobs",
    }[found.policy_label]
    return Refusal(
        Reason.ADMISSION_REJECT,
        f"{identity} may have {found.limit} {what}, and that is reached",
        # The time is known exactly, so only the lower bound of advised waits applies.
        max(wait_ms, state.config.retry_after_min_ms),
        found.policy_label,
        spec.needs.engine,
        resource=f"client {identity}",
        metadata={"limit": str(found.limit)},
    )


def deadline_unlikely(state: State, spec: JobSpec, now_ms: int) -> Refusal | None:
    """Refuses a job that will hardly meet its deadline, where that gate is on. LO-105."""
    config = state.config
    if not config.deadline_aware or spec.deadline_ms is None:
        return None
    if state.predictor.residuals.judged < JUDGED_MIN:
        return None
    shape = forecast(state, spec, state.queue.place_in_line(spec), now_ms)
    chance = on_time_probability(state, spec, shape, now_ms)
    if chance is None or chance >= config.min_on_time_probability:
        return None
    wait_ms = retry_after_ms(state, now_ms, spec)
    own_ms = (shape.end_ms or 0) - (shape.start_ms or 0)
    in_time = now_ms + wait_ms + own_ms <= spec.deadline_ms
    return Refusal(
        Reason.ADMISSION_REJECT,
        f"the chance to end before the deadline is {chance:.2f}, and "
        f"{config.min_on_time_probability:.2f} is asked for; choose a later deadline"
        + (", or try again when less waits" if in_time else ""),
        wait_ms if in_time else None,
        DEADLINE_UNLIKELY,
        spec.needs.engine,
        resource="deadline",
        metadata={"on_time_probability": f"{chance:.3f}"},
    )


def may_disprove(state: State, now_ms: int) -> bool:
    """True when one job that is predicted to be late may take a free slot all the same. LO-105.

    Refused jobs teach nothing, so a prediction that no longer holds would refuse everybody for
    ever. There is one such job at a time; after one that was in time the next may follow at once,
    so those that fail take a tenth of the time at most.
    """
    job_id, began_ms = state.disproof
    job = state.jobs.get(job_id)
    if job is None or job.state is JobState.FINISHED:
        return True
    if job.live or job.ended_ms is None:
        return False
    return now_ms - job.ended_ms >= DISPROOF_REST * (job.ended_ms - began_ms)


def charge(state: State, job: Job, now_ms: int) -> None:
    """Charges an accepted job to its client: one request, and the tokens it is expected to take."""
    if not state.throttle.limiting:
        return
    job.tokens_charged = _tokens_of(state, job.spec)
    state.throttle.charge(job.spec.identity, 1, job.tokens_charged, now_ms)


def charge_again(state: State, job: Job, now_ms: int) -> None:
    """Charges the tokens of a job that was dropped and has come back."""
    if job.tokens_charged is not None:
        _adjust(state, job, _tokens_of(state, job.spec), now_ms)


def give_back(state: State, job: Job, now_ms: int) -> None:
    """Takes back everything that was charged for a job which was never accepted."""
    if job.tokens_charged is not None:
        state.throttle.charge(job.spec.identity, -1, -job.tokens_charged, now_ms)
        job.tokens_charged = None


def settle(state: State, job: Job, usage: Usage, now_ms: int) -> None:
    """Charges what a job really took instead of what it was expected to take.

    What never ran, or failed, is free. A job that was stopped keeps its charge until its pool says
    what it took; a job from the journal was charged to an earlier run and is left alone.
    """
    if job.tokens_charged is None:
        return
    if usage.tokens_out is not None:
        prompt = usage.tokens_in
        if prompt is None:
            prompt = _prompt_tokens(state, job.spec)
        _adjust(state, job, prompt + usage.tokens_out, now_ms)
    elif job.attempt is None or job.state is JobState.FAILED:
        _adjust(state, job, 0, now_ms)


def _adjust(state: State, job: Job, tokens: int, now_ms: int) -> None:
    assert job.tokens_charged is not None, "only what was charged can be adjusted"
    state.throttle.charge(job.spec.identity, 0, tokens - job.tokens_charged, now_ms)
    job.tokens_charged = tokens


def _tokens_of(state: State, spec: JobSpec) -> int:
    """Tokens that a job is charged for at first; 0 where nobody counts them."""
    if not state.throttle.counts_tokens(spec.identity):
        return 0
    output = spec.max_tokens
    if output is None:
        output = int(state.predictor.shape(spec).output_tokens)
    return _prompt_tokens(state, spec) + output


def _prompt_tokens(state: State, spec: JobSpec) -> int:
    return int(state.predictor.shape(spec).prompt_tokens)
