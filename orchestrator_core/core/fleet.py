"""Hosts and their pools: registration, snapshots, loss, and what becomes of held attempts."""

from dataclasses import replace

from orchestrator_core.core import cataloging, draining
from orchestrator_core.core.effects import AttemptClosed, SendCancel, SendVerdicts, Verdict
from orchestrator_core.core.events import HeldAttempt, HostLost, HostRegistered, SnapshotsReported
from orchestrator_core.core.feasibility import kv_needed_bytes
from orchestrator_core.core.job import Attempt, Job
from orchestrator_core.core.keeping import keep_adopted
from orchestrator_core.core.lifecycle import (
    REFUSALS_MAX,
    close_attempt,
    close_for_retry,
    release_former,
    requeue,
    retry_or_fail,
    send_cancel,
)
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.scheduler import schedule
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.core.spec import StartMode
from orchestrator_core.core.state import Host, State
from orchestrator_core.core.states import AttemptState, JobState
from orchestrator_core.core.timers import TimerKind


def host_registered(state: State, event: HostRegistered, now_ms: int) -> None:
    """A host opened its Dispatch stream: its pools and held attempts are the truth from here on."""
    host = state.hosts.setdefault(event.host_id, Host(event.host_id, None))
    host.link_id, host.boot_id = event.link_id, event.boot_id
    state.timers.clear_all((TimerKind.REATTACH, TimerKind.HOST), event.host_id)
    present = {snapshot.pool_id for snapshot in event.snapshots}
    for pool_id in [p for p in host.pool_ids if p not in present]:
        _remove_pool(state, host, pool_id)
        draining.end(state, pool_id)
    refused: list[tuple[str, str]] = []
    for snapshot in event.snapshots:
        why = pool_refusal(state, event.host_id, snapshot.pool_id)
        if why is None:
            _put_pool(state, host, snapshot, now_ms)
        else:
            refused.append((snapshot.pool_id, why))
    verdicts = tuple(
        (held.job_id, held.attempt, _verdict(state, held, event.host_id)) for held in event.held
    )
    state.emit(SendVerdicts(event.host_id, event.link_id, verdicts, tuple(refused)))
    _settle_attempts(state, event, verdicts, now_ms)
    keep_adopted(state, event, verdicts)
    for pool_id in host.pool_ids:
        draining.tell_registered(state, state.pools[pool_id], now_ms)
        state.refresh(state.pools[pool_id], now_ms)
    schedule(state, now_ms)


def pool_refusal(state: State, host_id: str, pool_id: str) -> str | None:
    """Why a host cannot register a pool, for people; None when it can.

    A pool stays with its host while that is connected, or may come back to attempts that run there.
    """
    pool = state.pools.get(pool_id)
    if pool is None:
        if len(state.pools) < state.config.pools_max:
            return None
        count = len(state.pools)
        return f"there are {count} pools, with those of lost hosts, as many as pools.max allows"
    owner_id = pool.snapshot.host_id
    if owner_id == host_id or not (pool.connected or pool.own):
        return None
    return (
        f"pool_id {pool_id} is in use at host {owner_id}:"
        f" set a different pool_id in the configuration of {host_id} or of {owner_id}"
    )


def host_lost(state: State, event: HostLost, now_ms: int) -> None:
    """A Dispatch stream ended: nothing more is placed there, its attempts get a grace to return."""
    host = state.hosts.get(event.host_id)
    if host is None or host.link_id != event.link_id:
        return
    host.link_id = None
    _forget_if_empty(state, host)
    for pool_id in host.pool_ids:
        pool = state.pools[pool_id]
        pool.connected = False
        state.refresh(pool, now_ms)
    state.fleet_changed()
    if host.pool_ids:
        due_ms = now_ms + state.config.host_retention_ms
        state.timers.set(TimerKind.HOST, event.host_id, due_ms)
    if any(attempt.host_id == event.host_id for attempt in state.attempts.values()):
        due_ms = now_ms + state.config.reattach_grace_ms
        state.timers.set(TimerKind.REATTACH, event.host_id, due_ms)
    # Who waited for a faster pool of this host need not wait for the next report of another.
    schedule(state, now_ms)


def snapshots_reported(state: State, event: SnapshotsReported, now_ms: int) -> None:
    """Takes newer snapshots over; those of pools that the host never registered are ignored."""
    host = state.hosts.get(event.host_id)
    if host is None or host.link_id is None:
        return
    for snapshot in event.snapshots:
        pool = state.pools.get(snapshot.pool_id)
        if pool is None or pool.snapshot.host_id != event.host_id or not _newer(pool, snapshot):
            continue
        if _static_part(pool.snapshot) != _static_part(snapshot):
            state.fleet_changed()
        pool.apply(snapshot, min(event.as_of_ms, now_ms))
        cataloging.judge(state, pool)
        pool.rates = state.predictor.pool_rates(snapshot)
        _free_replaced(state, pool)
        state.refresh(pool, now_ms)
    schedule(state, now_ms)


def _newer(pool: Pool, snapshot: PoolSnapshot) -> bool:
    """False for an older report, one of a former incarnation, and one in another host's name."""
    known = pool.snapshot
    if snapshot.host_id != known.host_id or snapshot.replica_id in pool.former_replica_ids:
        return False
    return snapshot.replica_id != known.replica_id or snapshot.version >= known.version


def grace_ended(state: State, host_id: str, now_ms: int) -> None:
    """A host did not come back in time: its attempts are lost."""
    for attempt in [a for a in state.attempts.values() if a.host_id == host_id]:
        _lose(state, attempt, f"host {host_id} did not come back", now_ms)
    schedule(state, now_ms)


def retention_ended(state: State, host_id: str, now_ms: int) -> None:
    """A host was away for so long that its pools are forgotten, as if it had never been there.

    But for an operator's word: a machine may be off for days because its pool was drained.
    """
    host = state.hosts.get(host_id)
    if host is None or host.link_id is not None:
        return
    for pool_id in list(host.pool_ids):
        _remove_pool(state, host, pool_id)
    _forget_if_empty(state, host)
    schedule(state, now_ms)


def _static_part(snapshot: PoolSnapshot) -> tuple[object, ...]:
    """What feasibility and the outlook of lanes depend on."""
    return (
        snapshot.replica_id,
        snapshot.state,
        snapshot.replica_set,
        snapshot.model_id,
        snapshot.deterministic,
        snapshot.slots_total,
        snapshot.ctx_max,
        snapshot.device_ids,
        snapshot.device_memory_bytes,
        snapshot.tensor_split,
        snapshot.compute_capability,
        snapshot.vram_total_bytes,
        snapshot.perf_scale,
        snapshot.quantizations,
        snapshot.extensions,
    )


def _put_pool(state: State, host: Host, snapshot: PoolSnapshot, now_ms: int) -> None:
    """Registers a pool, or takes it over from a host that is gone."""
    pool = state.pools.get(snapshot.pool_id)
    if pool is None:
        pool = state.pools[snapshot.pool_id] = Pool(snapshot, now_ms)
    else:
        if pool.snapshot.host_id != host.host_id:
            # Other devices, of whose speed nothing is known.
            state.predictor.forget_pool(snapshot.pool_id)
        former = state.hosts.get(pool.snapshot.host_id)
        if former is not None and former is not host:
            former.pool_ids.pop(snapshot.pool_id, None)
            _forget_if_empty(state, former)
    pool.ended_at_frame.clear()
    pool.apply(snapshot, now_ms)
    cataloging.judge(state, pool)
    pool.rates = state.predictor.pool_rates(snapshot)
    pool.connected = True
    host.pool_ids[snapshot.pool_id] = None
    state.fleet_changed()


def _forget_if_empty(state: State, host: Host) -> None:
    """Keeps no host that has neither a link nor a pool: its name may never be heard again.

    Attempts name their host themselves, so theirs come back without it.
    """
    if host.link_id is None and not host.pool_ids:
        state.hosts.pop(host.host_id, None)
        state.timers.clear(TimerKind.HOST, host.host_id)


def _remove_pool(state: State, host: Host, pool_id: str) -> None:
    del host.pool_ids[pool_id]
    state.pools.pop(pool_id, None)
    state.available.pop(pool_id, None)
    state.predictor.forget_pool(pool_id)
    state.timers.clear(TimerKind.POOL_STALE, pool_id)
    state.timers.clear(TimerKind.POOL_REOPENS, pool_id)
    state.fleet_changed()


def _verdict(state: State, held: HeldAttempt, host_id: str) -> Verdict:
    """ADOPT what counts, also an ended job's output while it may be asked for; forget the rest.

    Where it is known which host an attempt was sent to, no other is believed to hold it.
    """
    job = state.jobs.get(held.job_id)
    attempt = state.attempts.get((held.job_id, held.attempt))
    forget = Verdict.RELEASE if held.ended else Verdict.ABORT
    if job is None or not _may_hold(host_id, job, attempt, held):
        return forget
    if attempt is not None and attempt.replica_id == held.replica_id:
        return Verdict.ADOPT
    if _is_proof(job, held):
        return Verdict.ADOPT
    if job.live or job.acknowledged or held.attempt != job.attempts_made:
        return forget
    return Verdict.ADOPT if held.ended or _stops(job, held) else forget


def _may_hold(host_id: str, job: Job, live: Attempt | None, held: HeldAttempt) -> bool:
    """False where it is known that the attempt was sent to another host."""
    known = (live, job.attempt, job.unreleased)
    key = held.job_id, held.attempt
    return all(each.host_id == host_id for each in known if each is not None and each.key == key)


def _stops(job: Job, held: HeldAttempt) -> bool:
    """True for an attempt that still runs although its job ended: its output may be asked for.

    Not once it was acknowledged: a release is on its way then, after which nobody tells the end.
    """
    last = job.attempt
    if held.ended or last is None or job.live or job.state is JobState.FINISHED:
        return False
    if job.acknowledged:
        return False
    return last.key == (held.job_id, held.attempt) and last.replica_id == held.replica_id


def _stop_again(state: State, job: Job, now_ms: int) -> None:
    """Takes the attempt of an ended job up again until its host confirms the end."""
    assert job.attempt is not None
    # The former one is closed, or was never opened in this run.
    attempt = replace(job.attempt, state=AttemptState.CANCELLING, detached=False)
    job.attempt = state.attempts[attempt.key] = attempt
    _attach(state, attempt, ended=False)
    _cancel_anew(state, attempt, now_ms)


def _cancel_anew(state: State, attempt: Attempt, now_ms: int) -> None:
    """Cancels on a new link: what was unconfirmed on the former one is open again."""
    attempt.cancels = 0
    pool = state.pools.get(attempt.pool_id)
    if pool is not None:
        pool.unconfirmed.discard(attempt.key)
    send_cancel(state, attempt, now_ms)


def _is_proof(job: Job, held: HeldAttempt) -> bool:
    """True for an attempt that was given up, and must be kept until the next one is durable."""
    former = job.unreleased
    return former is not None and former.key == (held.job_id, held.attempt)


def _settle_attempts(
    state: State,
    event: HostRegistered,
    verdicts: tuple[tuple[str, int, Verdict], ...],
    now_ms: int,
) -> None:
    """Re-attaches adopted attempts; what the host no longer holds is lost for certain."""
    adopted = {(job_id, number) for job_id, number, verdict in verdicts if verdict is Verdict.ADOPT}
    over = {(held.job_id, held.attempt) for held in event.held if held.ended}
    for attempt in [a for a in state.attempts.values() if a.host_id == event.host_id]:
        if attempt.key in adopted:
            attempt.detached = False
            # Its output comes in one piece now: that teaches nothing of how fast it was made.
            attempt.paused_ms = now_ms - attempt.sent_ms
            _attach(state, attempt, ended=attempt.key in over)
            if attempt.state is AttemptState.CANCELLING:
                _cancel_anew(state, attempt, now_ms)
        else:
            _not_held(state, attempt, event.boot_id, now_ms)
    for held in event.held:
        _settle_leftover(state, held, event.host_id, now_ms)


def _settle_leftover(state: State, held: HeldAttempt, host_id: str, now_ms: int) -> None:
    """Stops what a host still runs and nobody waits for, although its output is kept."""
    job = state.jobs.get(held.job_id)
    if job is None:
        return
    former = job.unreleased
    if former is not None and _is_proof(job, held):
        former.held_bytes = held.text_bytes
        state.emit(SendCancel(host_id, held.job_id, held.attempt))
        state.emit(AttemptClosed(held.job_id, held.attempt, "superseded", retried=False))
    elif (held.job_id, held.attempt) not in state.attempts and _stops(job, held):
        _stop_again(state, job, now_ms)


def _attach(state: State, attempt: Attempt, *, ended: bool) -> None:
    """Gives an adopted attempt its slot, unless it has only its end to tell.

    That is so for one that ended at its host meanwhile, and for one of a former incarnation.
    """
    attempt.ended_at_host = ended
    pool = state.pools.get(attempt.pool_id)
    if pool is None:
        return
    if pool.snapshot.replica_id == attempt.replica_id and not ended:
        pool.own[attempt.key] = attempt
        job = state.jobs.get(attempt.job_id)
        if job is not None:
            # After a restart this is the first that is known of the pool.
            attempt.est_kv_bytes = kv_needed_bytes(job.spec, pool.snapshot) or 0
    else:
        pool.own.pop(attempt.key, None)


def _not_held(state: State, attempt: Attempt, boot_id: str, now_ms: int) -> None:
    """Settles an attempt that its host does not hold after it registered anew.

    A pool manager holds what it was given until it is released, whatever becomes of the engine. So
    if its run goes on, an attempt that never started did not reach it, was refused, or was released
    for a silent retry: it was no try, and after a restart it is known not to have delivered
    anything.
    """
    job, pool = state.jobs.get(attempt.job_id), state.pools.get(attempt.pool_id)
    lives = pool is not None and pool.snapshot.replica_id == attempt.replica_id
    lives = lives or attempt.boot_id == boot_id != ""
    never_ran = attempt.state is AttemptState.SENT and attempt.detached == attempt.recovered
    if not (lives and never_ran) or job is None or job.refusals >= REFUSALS_MAX:
        _lose(state, attempt, f"host {attempt.host_id} no longer holds the attempt", now_ms)
        return
    job.refusals += 1
    close_attempt(state, attempt, 0, now_ms)
    close_for_retry(state, job, attempt)
    if attempt.recovered and attempt.mode is StartMode.FRESH:
        job.delivered = False
    requeue(state, job, now_ms)


def _free_replaced(state: State, pool: Pool) -> None:
    """A new incarnation runs none of the former one's attempts: they hold no slot any more.

    They are not lost yet. Their host keeps what they made and tells how each ended; a report may
    overtake the end of one that finished before its engine was started anew.
    """
    replica_id = pool.snapshot.replica_id
    for attempt in [a for a in pool.own.values() if a.replica_id != replica_id]:
        _attach(state, attempt, ended=True)


def _lose(state: State, attempt: Attempt, why: str, now_ms: int) -> None:
    """An attempt is gone without an end: its incarnation died or forgot it."""
    close_attempt(state, attempt, 0, now_ms)
    job = state.jobs.get(attempt.job_id)
    if job is None or job.attempt is not attempt or not job.live:
        return
    if attempt.recovered and attempt.started_ms is None:
        # Before the restart it may have added to what the former one proves.
        release_former(state, job)
    refusal = Refusal(Reason.WORKER_RESET, why, pool_id=attempt.pool_id)
    retry_or_fail(state, job, refusal, now_ms, replica_gone=True)
