"""Rebuilding the tables from the journal at start. LO-305."""

from orchestrator_core.core import cataloging, spending
from orchestrator_core.core.audience import watch_audience
from orchestrator_core.core.dispatching import watch_attempt
from orchestrator_core.core.effects import Receipt
from orchestrator_core.core.events import Recovered
from orchestrator_core.core.job import Attempt, Job
from orchestrator_core.core.lifecycle import enter_queue, retain
from orchestrator_core.core.records import AcceptRecord, DispatchRecord, TerminalRecord
from orchestrator_core.core.spec import Failover, StartMode
from orchestrator_core.core.state import State
from orchestrator_core.core.states import JobState
from orchestrator_core.core.timers import TimerKind


def recover(state: State, event: Recovered, now_ms: int) -> None:
    """Restores every job: ended as it was, dispatched awaiting its host, else queued.

    Whether a dispatched job's output reached a client is not known, so it counts as delivered.
    """
    for accept in event.accepts:
        state.jobs[accept.spec.job_id] = _job(accept)
        state.next_seq = max(state.next_seq, accept.seq + 1)
        _remember(state, accept, now_ms)
    written: dict[tuple[str, int], DispatchRecord] = {}
    for dispatch in event.dispatches:
        if (job := state.jobs.get(dispatch.job_id)) is not None:
            _dispatched(job, dispatch, now_ms)
            _followed(job, written.get((dispatch.job_id, dispatch.follows)), now_ms)
            written[dispatch.job_id, dispatch.attempt] = dispatch
    for terminal in event.terminals:
        if (job := state.jobs.get(terminal.job_id)) is not None:
            _ended(state, job, terminal, now_ms)
    cataloging.restore(state, event.models, now_ms)
    for job in state.jobs.values():
        if job.live:
            _resume(state, job, now_ms)
    for session in sorted(event.sessions, key=lambda s: (s.used_ms, s.identity, s.session_id)):
        spending.restore(state, session, now_ms)
    state.drains = {drain.pool_id: drain for drain in event.drains}
    if event != Recovered():
        # Not a new journal: there were hosts before, which are on their way back.
        state.hosts_due_ms = now_ms + state.config.reattach_grace_ms


def _dispatched(job: Job, dispatch: DispatchRecord, now_ms: int) -> None:
    job.attempts_made = max(job.attempts_made, dispatch.attempt)
    job.note_decision(dispatch.decision)
    job.mixed = job.mixed or job.replica_set not in (None, dispatch.replica_set)
    job.replica_set = dispatch.replica_set
    job.failures = dispatch.failures
    job.tried_replicas = set(dispatch.tried)
    job.refusals = dispatch.refusals
    if job.first_dispatch_ms is None:
        job.first_dispatch_ms = dispatch.sent_ms
    job.attempt = _attempt(job, dispatch, now_ms)


def _followed(job: Job, former: DispatchRecord | None, now_ms: int) -> None:
    """The last attempt may never have reached its host: the one before it has the text. LO-304."""
    job.unreleased = None if former is None else _attempt(job, former, now_ms)


def _attempt(job: Job, dispatch: DispatchRecord, now_ms: int) -> Attempt:
    return Attempt(
        job_id=dispatch.job_id,
        number=dispatch.attempt,
        pool_id=dispatch.pool_id,
        replica_id=dispatch.replica_id,
        host_id=dispatch.host_id,
        sent_ms=dispatch.sent_ms,
        est_kv_bytes=job.spec.est_kv_bytes or 0,
        last_progress_ms=now_ms,
        detached=True,
        recovered=True,
        boot_id=dispatch.boot_id,
        mode=_mode(dispatch, job),
    )


def _ended(state: State, job: Job, terminal: TerminalRecord, now_ms: int) -> None:
    job.drop_payload()
    job.unreleased = None
    job.state, job.outcome = terminal.state, terminal.outcome
    job.usage, job.ended_ms = terminal.usage, terminal.ended_ms
    retain(state, job, now_ms)


def _job(accept: AcceptRecord) -> Job:
    return Job(
        spec=accept.spec,
        seq=accept.seq,
        accepted_ms=accept.accepted_ms,
        position_at_admission=accept.position,
        predicted_start_ms=accept.predicted_start_ms,
        predicted_end_ms=accept.predicted_end_ms,
        plain_start_ms=accept.plain_start_ms,
        recovered=True,
    )


def _mode(dispatch: DispatchRecord, job: Job) -> StartMode:
    """How an attempt began; where that was not written, a later one may be a replay."""
    if dispatch.mode is not None:
        return dispatch.mode
    replays = dispatch.attempt > 1 and job.spec.failover is Failover.VERIFIED_REPLAY
    return StartMode.VERIFIED_REPLAY if replays else StartMode.FRESH


def _remember(state: State, accept: AcceptRecord, now_ms: int) -> None:
    spec = accept.spec
    receipt = Receipt(
        job_id=spec.job_id,
        position=accept.position,
        predicted_start_ms=accept.predicted_start_ms,
        predicted_end_ms=accept.predicted_end_ms,
        on_time_probability=None,
        backoff_ms=0,
        seed=spec.seed,
        from_catalog=spec.from_catalog,
    )
    state.remember(spec, receipt, accept.accepted_ms, now_ms)


def _resume(state: State, job: Job, now_ms: int) -> None:
    if job.attempt is None:
        enter_queue(state, job, now_ms)
    else:
        attempt = job.attempt
        job.state, job.delivered = JobState.DISPATCHED, True
        state.attempts[attempt.key] = attempt
        due_ms = now_ms + state.config.reattach_grace_ms
        state.timers.set(TimerKind.REATTACH, attempt.host_id, due_ms)
        watch_attempt(state, job, now_ms)
        if job.spec.deadline_ms is not None:
            state.timers.set(TimerKind.JOB_DEADLINE, job.job_id, job.spec.deadline_ms)
    watch_audience(state, job, now_ms)
