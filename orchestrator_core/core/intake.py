"""What clients ask for: enqueue, cancel, and the end of a session."""

from dataclasses import replace

from orchestrator_core.core import catalog, spending
from orchestrator_core.core.admission import QueueState, Reject, admission_policy
from orchestrator_core.core.audience import watch_audience
from orchestrator_core.core.config import QueuePolicy
from orchestrator_core.core.decision import Exclusion, Shortfall
from orchestrator_core.core.effects import (
    ConfirmEnd,
    Receipt,
    ReplyAccepted,
    ReplyRefused,
    ReplySession,
    ReplyState,
)
from orchestrator_core.core.events import (
    CancelRequested,
    EnqueueRequested,
    SessionDeleted,
)
from orchestrator_core.core.feasibility import (
    incompatibility,
    kv_shortfalls,
    lasting_shortfalls,
)
from orchestrator_core.core.forecast import (
    Forecast,
    forecast,
    forecast_placed,
    on_time_probability,
    retry_after_ms,
)
from orchestrator_core.core.gates import (
    charge,
    deadline_unlikely,
    guard,
    may_disprove,
    throttled,
)
from orchestrator_core.core.job import Job
from orchestrator_core.core.lifecycle import (
    CANCELLED,
    end_job,
    enter_queue,
)
from orchestrator_core.core.outcome import Outcome, Reason, Refusal
from orchestrator_core.core.records import AcceptRecord
from orchestrator_core.core.scheduler import end_if_started, schedule
from orchestrator_core.core.snapshot import PoolState
from orchestrator_core.core.spec import JobSpec, Priority
from orchestrator_core.core.state import State
from orchestrator_core.core.states import JobState, JobTrigger

# Of what is said of pools that cannot serve a job.
MODELS_NAMED = 8
GROUPS_TOLD = 4

SESSION_RESOURCE = "llamaorch.orchestrator.v1.Session"


def enqueue(state: State, event: EnqueueRequested, now_ms: int) -> None:
    """Accepts or refuses one job. ORCH-3005, ORCH-3024."""
    answer: Receipt | Refusal | None = _repeated(state, event.spec, now_ms) or event.stale
    if answer is None and (state.catalog.entries or state.config.catalog_required):
        resolved = catalog.resolve(state.catalog, event.spec, state.config, now_ms)
        if isinstance(resolved, Refusal):
            answer = resolved
        elif resolved is not event.spec:
            event = replace(event, spec=resolved)
    if answer is None:
        answer = _refusal(state, event.spec, now_ms)
    if isinstance(answer, Receipt):
        state.emit(ReplyAccepted(event.reply_to, answer))
        return
    if answer is None:
        answer = _pass_gates(state, event, now_ms)
    if answer is not None:
        state.emit(ReplyRefused(event.reply_to, answer, event.spec.needs.engine))


def cancel(state: State, event: CancelRequested, now_ms: int) -> None:
    """Cancels a job, or tells the state in which it ended before. ORCH-3026."""
    job = state.jobs.get(event.job_id)
    if job is None:
        state.emit(ReplyRefused(event.reply_to, unknown_job(event.job_id)))
        return
    if job.live:
        end_job(state, job, JobTrigger.CANCEL, CANCELLED, now_ms, why=event.why)
        schedule(state, now_ms)
    state.emit(ReplyState(event.reply_to, event.job_id))


def delete_session(state: State, event: SessionDeleted, now_ms: int) -> None:
    """Forgets a session of the client's own; its jobs run on. ORCH-3021."""
    session = spending.find(state, event.identity, event.session_id, now_ms)
    if session is None:
        state.emit(ReplyRefused(event.reply_to, unknown_session(event.session_id)))
        return
    spending.forget(state, session)
    state.emit(ReplySession(event.reply_to, event.session_id))


def unknown_job(job_id: str) -> Refusal:
    """The answer for a job that is not known, or no longer."""
    message = f"no job {job_id!r} is known; it may have ended longer ago than the retention"
    return Refusal(Reason.NOT_FOUND, message, resource=job_id)


def unknown_session(session_id: str) -> Refusal:
    """The answer for a session that is not known, no longer, or not to this client."""
    message = f"no session {session_id!r} is known; it may have been silent for too long"
    kind = {"resource_type": SESSION_RESOURCE}
    return Refusal(Reason.NOT_FOUND, message, resource=session_id, metadata=kind)


def _repeated(state: State, spec: JobSpec, now_ms: int) -> Receipt | Refusal | None:
    """Answers a request that was given before. The same key and body get the first answer again."""
    earlier = state.remembered.get((spec.identity, spec.request_id)) if spec.request_id else None
    if earlier is not None and earlier.expires_ms > now_ms:
        if earlier.digest == spec.digest:
            return _again(earlier.receipt)
        return _duplicate(f"request_id {spec.request_id!r}", earlier.job_id)
    same_id = state.jobs.get(spec.job_id)
    if same_id is None:
        return None
    if same_id.spec.digest == spec.digest and same_id.spec.identity == spec.identity:
        shape = forecast(state, same_id.spec, same_id.position_at_admission, now_ms)
        return _again(_receipt(state, same_id, shape, now_ms))
    return _duplicate(f"job_id {spec.job_id!r}", spec.job_id)


def _again(receipt: Receipt) -> Receipt:
    return replace(receipt, duplicate=True)


def _duplicate(what: str, job_id: str) -> Refusal:
    message = f"{what} was used for another job; choose a new one, or give the same job again"
    return Refusal(Reason.DUPLICATE, message, resource=job_id)


def _refusal(state: State, spec: JobSpec, now_ms: int) -> Refusal | None:
    """Refuses what no queue could help: draining, no pool, no feasible pool, a deadline gone by."""
    engine = spec.needs.engine
    if state.draining:
        message = "the orchestrator shuts down; try again when it is back"
        return Refusal(
            Reason.POOL_UNAVAILABLE, message, retry_after_ms(state, now_ms), engine=engine
        )
    if not state.pools:
        message = "no pool is registered; start a pool-managerd that points at this orchestrator"
        if now_ms < state.hosts_due_ms:
            message = f"no pool is registered yet: {_restarted(state, now_ms)}"
        return Refusal(
            Reason.POOL_UNAVAILABLE, message, retry_after_ms(state, now_ms), engine=engine
        )
    unfit = _unfit(state, spec, now_ms)
    if unfit is not None:
        return unfit
    if spec.deadline_ms is not None and spec.deadline_ms <= now_ms:
        return Refusal(Reason.DEADLINE, "the deadline has passed already", engine=engine)
    if state.config.queue_policy is QueuePolicy.FAIL_FAST and not any(
        pool.snapshot.state is PoolState.READY
        and not pool.draining
        and pool.fresh(now_ms, state.config.stale_after_ms)
        for pool in state.feasible(spec.needs).pools.values()
    ):
        message = "no pool that could serve the job is ready"
        return Refusal(
            Reason.POOL_UNREADY, message, retry_after_ms(state, now_ms), "fail-fast", engine
        )
    return None


def _unfit(state: State, spec: JobSpec, now_ms: int) -> Refusal | None:
    """Refuses a job that no registered pool can ever serve. LO-201.

    Soon after a restart it may be a pool of a host that is not back yet.
    """
    for pool in state.feasible(spec.needs).pools.values():
        if not kv_shortfalls(spec, pool.snapshot):
            return None
    exclusions = tuple(
        Exclusion(pool_id, lasting_shortfalls(spec, state.pools[pool_id].snapshot))
        for pool_id in sorted(state.pools)
    )
    lacking = _lacking(state, spec, exclusions)
    if now_ms < state.hosts_due_ms:
        message = f"{lacking}; {_restarted(state, now_ms)}"
        delay_ms = retry_after_ms(state, now_ms)
        return Refusal(Reason.POOL_UNAVAILABLE, message, delay_ms, engine=spec.needs.engine)
    return Refusal(
        incompatibility(exclusions), lacking, engine=spec.needs.engine, shortfalls=exclusions
    )


def _restarted(state: State, now_ms: int) -> str:
    """Soon after a restart what is missing may be on its way."""
    left_s = -(-(state.hosts_due_ms - now_ms) // 1000)
    return f"the orchestrator was restarted, and hosts that are not back yet have {left_s} s more"


def _lacking(state: State, spec: JobSpec, exclusions: tuple[Exclusion, ...]) -> str:
    """Why no pool that is registered can ever serve a job: the closest ones, or the models."""
    model_id = spec.needs.model_id
    having = [e for e in exclusions if state.pools[e.pool_id].snapshot.model_id == model_id]
    if model_id and not having:
        others = sorted({pool.snapshot.model_id for pool in state.pools.values()} - {""})
        more = f" and {len(others) - MODELS_NAMED} more" if len(others) > MODELS_NAMED else ""
        there = f"there are {', '.join(others[:MODELS_NAMED])}{more}" if others else "none has any"
        return f"no registered pool has model {model_id!r}: {there}"
    lacks: dict[str, list[str]] = {}
    for exclusion in having or exclusions:
        lacks.setdefault(", ".join(map(_lack, exclusion.shortfalls)), []).append(exclusion.pool_id)
    told = [f"{_pools(ids)}: {what}" for what, ids in list(lacks.items())[:GROUPS_TOLD]]
    if len(lacks) > GROUPS_TOLD:
        told.append(f"{len(lacks) - GROUPS_TOLD} other reasons")
    count = len(exclusions)
    return f"none of the {count} registered pools can ever serve the job ({'; '.join(told)})"


def _lack(shortfall: Shortfall) -> str:
    required, offered = shortfall.sides
    return f"{shortfall.reason.value} needs {required}, offers {offered or 'none'}"


def _pools(ids: list[str]) -> str:
    return ids[0] if len(ids) == 1 else f"{ids[0]} and {len(ids) - 1} more"


def _pass_gates(state: State, event: EnqueueRequested, now_ms: int) -> Refusal | None:
    """Refuses for good what no wait would help, then what may come later; else admits."""
    guarded = guard(state, event.spec, now_ms)
    if isinstance(guarded, Refusal):
        return guarded
    if guarded is not event.spec:
        event = replace(event, spec=guarded)
        unfit = _unfit(state, guarded, now_ms)
        if unfit is not None:
            return unfit
    return (
        throttled(state, guarded, now_ms)
        or _late(state, guarded, now_ms)
        or _admit(state, event, now_ms)
    )


def _late(state: State, spec: JobSpec, now_ms: int) -> Refusal | None:
    """Refuses a job that will hardly meet its deadline.

    Not one that a free slot ends in time, nor, now and then, one that a free slot should end late:
    only jobs that run can show that predictions have become better.
    """
    refusal = deadline_unlikely(state, spec, now_ms)
    if refusal is None or state.queue.position_of_newcomer(spec) > 1:
        return refusal
    end_ms = end_if_started(state, spec, now_ms)
    if end_ms is None:
        return refusal
    if now_ms + end_ms <= (spec.deadline_ms or 0):
        return None
    if not may_disprove(state, now_ms):
        return refusal
    state.disproof = (spec.job_id, now_ms)
    return None


def _admit(state: State, event: EnqueueRequested, now_ms: int) -> Refusal | None:
    """Applies the queue's policy; accepts into the queue, or says why not."""
    spec, queue, config = event.spec, state.queue, state.config
    full = len(queue) >= config.queue_capacity
    fail_fast = config.queue_policy is QueuePolicy.FAIL_FAST
    if not queue.has_lane(spec) and len(queue.lanes) >= config.lanes_max:
        message = f"{config.lanes_max} kinds of jobs wait already"
        wait_ms = retry_after_ms(state, now_ms, spec)
        return Refusal(Reason.ADMISSION_REJECT, message, wait_ms, "lanes", spec.needs.engine)
    if not full and not fail_fast:
        # What every policy answers while there is room; the forecast of a wait would cost.
        _accept(state, event, None, now_ms)
        return None
    wait_ms = retry_after_ms(state, now_ms, spec)
    verdict = admission_policy(
        QueueState(
            policy=config.queue_policy,
            depth=len(queue),
            newcomer=spec.priority,
            oldest_batch=_id(queue.oldest(Priority.BATCH)),
            oldest_interactive=_id(queue.oldest(Priority.INTERACTIVE)),
            newest_batch=_id(queue.newest(Priority.BATCH)),
            slot_free_now=fail_fast and end_if_started(state, spec, now_ms) is not None,
            retry_after_ms=wait_ms,
        ),
        config.queue_capacity,
    )
    if isinstance(verdict, Reject):
        message = "no slot is free now"
        if not fail_fast:
            message = f"{len(queue)} of {config.queue_capacity} places in the queue are taken"
            state.drain.promise(now_ms + wait_ms)
        label = verdict.policy_label
        return Refusal(
            Reason.ADMISSION_REJECT, message, verdict.retry_after_ms, label, spec.needs.engine
        )
    _accept(state, event, verdict.displaces, now_ms)
    return None


def _accept(state: State, event: EnqueueRequested, displaces: str | None, now_ms: int) -> None:
    spec = event.spec
    job = Job(spec, state.next_seq, now_ms)
    state.next_seq += 1
    state.jobs[spec.job_id] = job
    if displaces is not None:
        _drop(state, state.jobs[displaces], job, now_ms)
    enter_queue(state, job, now_ms)
    if spec.cancel_on_disconnect:
        watch_audience(state, job, now_ms)
    state.predictor.model(spec.needs.model_id).arrivals[spec.priority].append(now_ms)
    charge(state, job, now_ms)
    spending.join(state, job, now_ms)
    job.position_at_admission = state.queue.position(job)
    # What is decided now is known before it is told, but the accept goes first.
    before = len(state.effects)
    schedule(state, now_ms)
    if job.state is JobState.QUEUED:
        place = state.queue.place_in_line(spec, job.seq)
        told = forecast(state, spec, place, now_ms, job.shape)
    else:
        told = forecast_placed(job)
    job.plain_start_ms = told.plain_start_ms
    job.predicted_start_ms, job.predicted_end_ms = told.start_ms, told.end_ms
    receipt = _receipt(state, job, told, now_ms)
    state.remember(spec, receipt, now_ms, now_ms)
    state.effects[before:before] = [
        AcceptRecord(
            spec,
            job.seq,
            now_ms,
            job.position_at_admission,
            told.start_ms,
            told.end_ms,
            displaces,
            told.plain_start_ms,
        ),
        ReplyAccepted(event.reply_to, receipt),
    ]


def _drop(state: State, victim: Job, newcomer: Job, now_ms: int) -> None:
    """Displaces a waiting job; it is told in the same commit. LO-102."""
    state.displaced[newcomer.job_id] = victim
    wait_ms = retry_after_ms(state, now_ms, victim.spec)
    state.drain.promise(now_ms + wait_ms)
    refusal = Refusal(
        Reason.QUEUE_FULL_DROP_LRU,
        "the queue was full and the job gave its place to a newer one",
        wait_ms,
        state.config.queue_policy.value,
        victim.spec.needs.engine,
    )
    end_job(state, victim, JobTrigger.DROP, Outcome(error=refusal), now_ms, why="dropped")
    state.emit(ConfirmEnd(victim.job_id))


def _receipt(state: State, job: Job, shape: Forecast, now_ms: int) -> Receipt:
    full = len(state.queue) >= state.config.queue_capacity
    spec = job.spec
    session = spending.find(state, spec.identity, spec.session_id, now_ms)
    probability = on_time_probability(state, spec, shape, now_ms)
    backoff_ms = retry_after_ms(state, now_ms, spec) if full else 0
    position, duplicate = job.position_at_admission, False
    return Receipt(
        spec.job_id,
        position,
        job.predicted_start_ms,
        job.predicted_end_ms,
        probability,
        backoff_ms,
        duplicate,
        spec.seed,
        None if session is None else spending.left(state, session),
        spec.from_catalog,
    )


def _id(job: Job | None) -> str | None:
    return job.job_id if job else None
