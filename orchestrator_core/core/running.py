"""What pools report about attempts: started, output, ended, refused."""

from orchestrator_core.core import fairness, spending
from orchestrator_core.core.effects import JobStarted, SendRelease
from orchestrator_core.core.events import (
    AttemptEnded,
    AttemptError,
    AttemptErrorKind,
    AttemptRefused,
    AttemptStarted,
    OutputAcknowledged,
    OutputProgressed,
)
from orchestrator_core.core.gates import settle
from orchestrator_core.core.job import Attempt, Job, disturbed
from orchestrator_core.core.keeping import keep_output, release_output
from orchestrator_core.core.lifecycle import (
    CANCELLED,
    REFUSALS_MAX,
    close_attempt,
    end_job,
    expire_job,
    fail_job,
    release_former,
    requeue,
    retry_or_fail,
)
from orchestrator_core.core.outcome import Finish, Outcome, Reason, Refusal
from orchestrator_core.core.prediction import Observation
from orchestrator_core.core.scheduler import schedule
from orchestrator_core.core.spec import StartMode
from orchestrator_core.core.state import State
from orchestrator_core.core.states import (
    AttemptState,
    AttemptTrigger,
    JobState,
    JobTrigger,
    next_attempt_state,
    next_job_state,
)
from orchestrator_core.core.timers import TimerKind

# The reason of a refusal that is for good: this replica can never run the attempt.
UNSUPPORTED = "unsupported"
# An attempt that its host takes up so long after it was decided waited for the journal, or for a
# text to follow: its first token says nothing of the engine.
LATE_START_MS = 1_000
# Another replica would answer the same, so these end the job at once.
_FINAL = frozenset(
    {
        AttemptErrorKind.INVALID_REQUEST,
        AttemptErrorKind.CONTEXT_OVERFLOW,
        AttemptErrorKind.OUTPUT_TOO_LARGE,
    }
)


def attempt_started(state: State, event: AttemptStarted, now_ms: int) -> None:
    """The engine took an attempt up; `started` goes out unless the job ended meanwhile.

    ORCH-3009.
    """
    attempt = state.attempts.get((event.job_id, event.attempt))
    if attempt is None or attempt.state is AttemptState.RUNNING:
        return
    attempt.state = next_attempt_state(attempt.state, AttemptTrigger.START)
    attempt.started_ms = now_ms
    job = state.jobs.get(event.job_id)
    if job is None or job.attempt is not attempt or not job.live:
        return
    job.state = next_job_state(job.state, JobTrigger.START)
    if job.started_ms is None:
        job.started_ms = now_ms
    pool = state.pools.get(attempt.pool_id)
    if pool is not None:
        pool.refusals = 0
    state.displaced.pop(job.job_id, None)
    release_former(state, job)
    attempt.last_progress_ms = now_ms
    # After a failure nobody counts on a cache, whatever the new pool may hold. ORCH-3009.
    attempt.kv_warmth = event.kv_warmth and job.spec.kv_reuse and not job.failures
    state.emit(JobStarted(job.job_id, attempt.number, attempt.mode, attempt.kv_warmth))


def output_progressed(state: State, event: OutputProgressed, now_ms: int) -> None:
    """Output was relayed: the idle watchdog starts anew."""
    attempt = state.attempts.get((event.job_id, event.attempt))
    job = state.jobs.get(event.job_id)
    if attempt is None or job is None or job.attempt is not attempt or not job.live:
        return
    if attempt.first_output_ms is None:
        attempt.first_output_ms = now_ms
        pool = state.pools.get(attempt.pool_id)
        attempt.first_output_area = pool.busy_area_at(now_ms) if pool else 0
    if job.first_output_ms is None:
        job.first_output_ms = now_ms
    job.delivered = True
    job.pieces = max(job.pieces, event.pieces)
    attempt.last_progress_ms = now_ms


def output_acknowledged(state: State, event: OutputAcknowledged) -> None:
    """Lets the host forget the output of an ended job before its retention does. LO-306.

    An attempt that the pool has not confirmed as ended is kept: its slot is still taken.
    """
    job = state.jobs.get(event.job_id)
    if job is None or job.live or job.attempt is None or job.attempt.key in state.attempts:
        return
    job.acknowledged = True
    release_output(state, job)


def attempt_ended(state: State, event: AttemptEnded, now_ms: int) -> None:
    """A pool confirmed the end of an attempt: the slot is free, the job may be over."""
    key = (event.job_id, event.attempt)
    attempt = state.attempts.get(key)
    if attempt is None:
        return
    job = state.jobs.get(event.job_id)
    counts = job is not None and job.attempt is attempt and job.live
    if job is not None and job.attempt is attempt:
        # Progress is told once a second; what came since is delivered, and charged, too.
        job.pieces = max(job.pieces, event.pieces)
    if job is not None and job.attempt is attempt and not job.live:
        # It was stopped before; only now it is known what it took.
        spending.settle(state, job, event.usage, now_ms)
    if job is not None and counts and event.error is None:
        # Before the slot is given on: the next placement counts with what this one took.
        _learn(state, job, attempt, event, now_ms)
    close_attempt(state, attempt, event.frame_seq, now_ms)
    if job is not None and counts and _was_silent(attempt, event):
        job.delivered = False
    if event.error is not None and event.error.kind is AttemptErrorKind.ENGINE_DIED:
        _rest_pool(state, attempt, now_ms)
    if job is not None and counts:
        _settle(state, job, attempt, event, now_ms)
    elif job is not None and job.attempt is attempt:
        # It was stopped before; only now it is known what it took.
        settle(state, job, event.usage, now_ms)
        fairness.settle(state, job, event.usage)
    if job is not None and job.attempt is attempt and not job.live:
        keep_output(state, attempt)
    schedule(state, now_ms)


def _was_silent(attempt: Attempt, event: AttemptEnded) -> bool:
    """True when nothing can have been delivered, although a restart had left that open."""
    first = attempt.recovered and attempt.mode is StartMode.FRESH
    return first and not event.text_bytes and attempt.first_output_ms is None


def attempt_refused(state: State, event: AttemptRefused, now_ms: int) -> None:
    """A pool did not start an attempt: the job goes back, the pool rests. Not a failed try.

    Except where the replica says that it never can, or pools have refused the job too often.
    """
    attempt = state.attempts.get((event.job_id, event.attempt))
    if attempt is None:
        return
    close_attempt(state, attempt, 0, now_ms)
    _rest_pool(state, attempt, now_ms)
    state.emit(SendRelease(attempt.host_id, event.job_id, event.attempt))
    job = state.jobs.get(event.job_id)
    if job is not None and job.attempt is attempt and job.live:
        _after_refusal(state, job, event, now_ms)
    schedule(state, now_ms)


def _after_refusal(state: State, job: Job, event: AttemptRefused, now_ms: int) -> None:
    job.refusals += 1
    pool_id = job.attempt.pool_id if job.attempt else ""
    if job.state is JobState.RUNNING:
        gone = Refusal(Reason.WORKER_RESET, event.message, pool_id=pool_id)
        retry_or_fail(state, job, gone, now_ms, replica_gone=True)
    elif event.reason == UNSUPPORTED or job.refusals > REFUSALS_MAX:
        refused = Refusal(Reason.ENGINE_ERROR, event.message, pool_id=pool_id)
        retry_or_fail(state, job, refused, now_ms, replica_gone=False)
    else:
        requeue(state, job, now_ms)


def _rest_pool(state: State, attempt: Attempt, now_ms: int) -> None:
    """Closes a pool that refused or died for a while, longer each time in a row.

    Its next report says how it is; a new incarnation opens it again.
    """
    pool = state.pools.get(attempt.pool_id)
    if pool is None or pool.snapshot.replica_id != attempt.replica_id:
        return
    config = state.config
    rest_ms = min(
        config.refusal_backoff_ms << min(pool.refusals, 16), config.refusal_backoff_max_ms
    )
    pool.refusals += 1
    pool.closed_until_ms = now_ms + rest_ms
    state.timers.set(TimerKind.POOL_REOPENS, attempt.pool_id, pool.closed_until_ms)
    state.refresh(pool, now_ms)


def _settle(state: State, job: Job, attempt: Attempt, event: AttemptEnded, now_ms: int) -> None:
    """Draws the job's consequence from the end of its present attempt."""
    if event.error is not None:
        _settle_error(state, job, attempt, event.error, now_ms)
        return
    if event.finish is Finish.CANCELLED and event.job_cancelled and attempt.recovered:
        # Before a restart, which came before the journal had the end.
        job.usage = event.usage
        end_job(state, job, JobTrigger.CANCEL, CANCELLED, now_ms, why="client")
        return
    if event.finish is Finish.CANCELLED:
        # Not at the wish of its client: it was given up before a restart, or by its host.
        stopped = Refusal(
            Reason.WORKER_RESET, "the attempt was stopped at its host", pool_id=attempt.pool_id
        )
        retry_or_fail(state, job, stopped, now_ms, replica_gone=True)
        return
    usage = job.usage = event.usage
    spending.served(state, job, usage)
    outcome = Outcome(
        finish=event.finish, text_bytes=event.text_bytes, text_digest=event.text_digest
    )
    end_job(state, job, JobTrigger.FINISH, outcome, now_ms)


def _settle_error(
    state: State, job: Job, attempt: Attempt, error: AttemptError, now_ms: int
) -> None:
    engine = job.replica_set[0] if job.replica_set else job.spec.needs.engine
    refusal = Refusal(
        Reason.WORKER_RESET if error.kind is AttemptErrorKind.ENGINE_DIED else Reason.ENGINE_ERROR,
        error.message,
        engine=engine,
        pool_id=attempt.pool_id,
        metadata={"kind": error.kind.value},
    )
    if error.kind is AttemptErrorKind.TIMEOUT:
        expire_job(
            state, job, Reason.DEADLINE, "the pool's backstop for the deadline fired", now_ms
        )
    elif error.kind is AttemptErrorKind.REPLAY_MISMATCH:
        message = (
            "the replay produced other output than was delivered; only a pool with "
            "`deterministic = true` reproduces its output for certain"
        )
        reset = Refusal(Reason.WORKER_RESET, message, engine=engine, pool_id=attempt.pool_id)
        fail_job(state, job, reset, now_ms)
    elif error.kind is AttemptErrorKind.OUTPUT_LOST:
        reset = Refusal(Reason.WORKER_RESET, error.message, engine=engine, pool_id=attempt.pool_id)
        fail_job(state, job, reset, now_ms)
    elif error.kind in _FINAL:
        fail_job(state, job, refusal, now_ms)
    else:
        died = error.kind is AttemptErrorKind.ENGINE_DIED
        retry_or_fail(state, job, refusal, now_ms, replica_gone=died)


def _mean_concurrency(state: State, attempt: Attempt, now_ms: int) -> float:
    """Streams that shared the engine while an attempt decoded, on average; at least its own."""
    pool, first_ms = state.pools.get(attempt.pool_id), attempt.first_output_ms
    if pool is None or first_ms is None or now_ms <= first_ms:
        return 1.0
    area = pool.busy_area_at(now_ms) - attempt.first_output_area
    return max(1.0, area / (now_ms - first_ms))


def _learn(
    state: State,
    job: Job,
    attempt: Attempt,
    event: AttemptEnded,
    now_ms: int,
) -> None:
    """Feeds the predictor with what the attempt really took. LO-206.

    The output of a recovered attempt arrives in one piece, long after it was sent, and a replay or
    a continuation is not what its model's jobs are like. What a former incarnation took says
    nothing of the present one, which may run another model, or be another host's.
    """
    pool = state.pools.get(attempt.pool_id)
    if pool is None or attempt.mode is not StartMode.FRESH:
        return
    same = pool.snapshot.replica_id == attempt.replica_id
    timed = same and not attempt.recovered
    timed = timed and not disturbed(attempt.paused_ms, now_ms - attempt.sent_ms)
    first_ms = attempt.first_output_ms if timed else None
    first_token_ms = None
    if first_ms is not None and (attempt.started_ms or 0) - attempt.sent_ms < LATE_START_MS:
        first_token_ms = first_ms - attempt.sent_ms
    state.predictor.observe(
        pool.rates,
        Observation(
            model_id=job.spec.needs.model_id,
            concurrency=_mean_concurrency(state, attempt, now_ms),
            prompt_bytes=job.spec.prompt_bytes,
            uncached_tokens=attempt.uncached_tokens,
            tokens_in=event.usage.tokens_in,
            tokens_out=event.usage.tokens_out,
            first_token_ms=first_token_ms,
            decode_ms=None if first_ms is None else now_ms - first_ms,
            perf_scale=pool.snapshot.perf_scale,
        ),
    )
