"""What sessions may spend, have spent and have set aside. ORCH-3021, ORCH-3022, ORCH-3099.

An accepted job sets aside all that it may take: the estimated prompt, `max_tokens`, time and cost.
Its end settles that with what it really took. So what is spent and what is set aside never exceed a
budget together, but by what prompts were longer than estimated: there is no tokenizer here. Tokens
that are generated again after a failure are free, and so is what failed without any output.
"""

from dataclasses import dataclass

from orchestrator_core.core.allowance import (
    cost_micros,
    hold_for,
    least,
    less,
    within,
)
from orchestrator_core.core.job import Job
from orchestrator_core.core.outcome import NO_USAGE, Usage
from orchestrator_core.core.plain_init import plain_init
from orchestrator_core.core.records import SessionForgotten, SessionRecord
from orchestrator_core.core.session import Hold, Session, Spent, session_key
from orchestrator_core.core.spec import NO_BUDGETS, Budgets, JobSpec
from orchestrator_core.core.state import State
from orchestrator_core.core.states import JobState
from orchestrator_core.core.timers import TimerKind


@plain_init
@dataclass(frozen=True, slots=True)
class Balance:
    """The budgets in force, what is set aside and left of them, and when the session ends.

    `left` is None without budgets, `expires_ms` while jobs have not ended.
    """

    budgets: Budgets
    reserved: Spent
    left: Budgets | None
    expires_ms: int | None


def find(state: State, identity: str, session_id: str, now_ms: int) -> Session | None:
    """The session of a client, while it lives. O(1)."""
    known = state.sessions.get(session_key(identity, session_id)) if session_id else None
    return None if known is None or _over(state, known, now_ms) else known


def warm_session_of(state: State, job: Job, now_ms: int) -> Session | None:
    """The session whose keys and values a job wants to find again; after a failure none does.

    With `kv_hint` NONE nobody looks for them. ORCH-3009.
    """
    if not job.spec.kv_reuse or job.failures:
        return None
    return find(state, job.spec.identity, job.spec.session_id, now_ms)


def expires_ms(state: State, session: Session) -> int | None:
    """When a session ends if it stays silent; None while it has jobs that have not ended."""
    return None if session.held else session.used_ms + state.config.session_ttl_ms


def budgets_of(state: State, session: Session) -> Budgets:
    """The budgets in force: what the client asked for, within what every session may spend."""
    return within(session.budgets, state.config.session_budgets)


def left(state: State, session: Session) -> Budgets | None:
    """What further jobs of a session may spend; None where it has no budgets. Never negative."""
    budgets = budgets_of(state, session)
    return None if budgets == NO_BUDGETS else less(budgets, session.spent, session.reserved())


def account(state: State, session: Session) -> Balance:
    """Everything about a session's budgets at once. O(jobs that have not ended)."""
    return Balance(
        budgets_of(state, session),
        session.reserved(),
        left(state, session),
        expires_ms(state, session),
    )


# --- turns


def join(state: State, job: Job, now_ms: int) -> None:
    """Gives an accepted job its turn in its session, which is opened if need be."""
    spec = job.spec
    if not spec.session_id:
        return
    session = find(state, spec.identity, spec.session_id, now_ms)
    if session is None:
        session = _open(state, spec, now_ms)
    session.held[job.job_id] = hold_for(state, spec, budgets_of(state, session))
    session.turns += 1
    session.used_ms = now_ms
    _changed(state, session)


def _open(state: State, spec: JobSpec, now_ms: int) -> Session:
    """Opens a session; beyond the bound the least recently used idle one is forgotten."""
    sessions = state.sessions
    former = sessions.get(session_key(spec.identity, spec.session_id))
    if former is None and len(sessions) >= state.config.sessions_max:
        former = sessions.oldest_idle()
    if former is not None:
        forget(state, former)
    made = Session(spec.identity, spec.session_id, now_ms, now_ms, spec.session_budgets)
    sessions.add(made)
    due_ms = now_ms + state.config.session_ttl_ms
    state.timers.set_by(TimerKind.SESSION, made.key, due_ms)
    return made


# --- the end


def give_back(state: State, job: Job) -> None:
    """Takes a turn back that was never accepted; a session that had no other was never opened."""
    session = _holding(state, job)
    if session is None:
        return
    del session.held[job.job_id]
    session.turns -= 1
    if not session.turns and not session.held:
        forget(state, session)
    else:
        _changed(state, session)


def settle(state: State, job: Job, usage: Usage, now_ms: int) -> None:
    """Charges what a job really took instead of what was set aside for it. Once per job.

    A job that ended while a pool was still at it waits for that pool's word.
    """
    session = _holding(state, job)
    if session is None:
        return
    hold = session.held.pop(job.job_id)
    session.spend(_used(state, job, hold, usage, now_ms))
    if job.first_dispatch_ms is None:
        session.turns -= 1
    session.used_ms = now_ms
    _changed(state, session)


def served(state: State, job: Job, usage: Usage) -> None:
    """Notes where the session's keys and values are now. Due before the job is settled."""
    session, attempt = _holding(state, job), job.attempt
    pool = None if attempt is None else state.pools.get(attempt.pool_id)
    if session is None or attempt is None or pool is None:
        return
    if pool.snapshot.deterministic or pool.snapshot.replica_id != attempt.replica_id:
        state.sessions.cool(session)
        return
    counted = usage.tokens_in is not None and usage.tokens_out is not None
    tokens = (usage.tokens_in or 0) + (usage.tokens_out or 0) if counted else None
    slots = pool.snapshot.slots_total
    state.sessions.warm(session, attempt.pool_id, attempt.replica_id, tokens, slots)


def remaining(state: State, job: Job, now_ms: int) -> Budgets | None:
    """What would be left if the job ended now: of its own budgets and its session's, the less.

    What other jobs of the session have set aside does not count as left. None without budgets.
    """
    session = _holding(state, job)
    hold = hold_for(state, job.spec, NO_BUDGETS) if session is None else session.held[job.job_id]
    usage = job.usage if not job.live else NO_USAGE
    used = _used(state, job, hold, usage, now_ms)
    found = less(job.spec.budgets, used)
    if session is not None:
        others = session.reserved()
        others = Spent(
            others.tokens - hold.tokens,
            others.time_ms - hold.time_ms,
            others.cost_micros - hold.cost_micros,
        )
        found = least(found, less(budgets_of(state, session), session.spent, others, used))
    return None if found == NO_BUDGETS else found


def _used(state: State, job: Job, hold: Hold, usage: Usage, now_ms: int) -> Spent:
    """What a job took so far. Output is counted by the engine at the end, else in pieces.

    A job that failed without output took nothing, nor did one that no engine took up. Time is that
    of the present attempt, and never more than was set aside: what a restart adds is free.
    """
    if usage.tokens_out is not None:
        prompt, output = usage.tokens_in, usage.tokens_out
    elif job.pieces or (job.started_ms is not None and job.state is not JobState.FAILED):
        prompt, output = None, job.pieces
    else:
        return Spent()
    prompt = hold.prompt_tokens if prompt is None else prompt
    time_ms = 0 if job.attempt is None else now_ms - job.attempt.sent_ms
    if hold.time_ms:
        time_ms = min(time_ms, hold.time_ms)
    return Spent(prompt + output, time_ms, cost_micros(state, job.spec, prompt, output))


# --- time and restarts


def look_again(state: State, key: str, now_ms: int) -> None:
    """Forgets a session that was silent for its time to live, or sets the next look."""
    session = state.sessions.get(key)
    if session is None:
        return
    _drop_orphans(state, session)
    if _over(state, session, now_ms):
        forget(state, session)
        return
    due_ms = max(now_ms + 1, session.used_ms + state.config.session_ttl_ms)
    if session.held:
        due_ms = now_ms + state.config.session_ttl_ms
    state.timers.set(TimerKind.SESSION, key, due_ms)


def forget(state: State, session: Session) -> None:
    """Forgets affinity, turns and budgets. Its jobs run on and are charged to nobody."""
    state.sessions.forget(session)
    state.timers.clear(TimerKind.SESSION, session.key)
    state.emit(SessionForgotten(session.identity, session.session_id))


def restore(state: State, record: SessionRecord, now_ms: int) -> None:
    """Takes a session over from the journal, once its jobs are known again.

    What was set aside for a job that has ended meanwhile, so that only its pool could have told
    what it took, is charged in full.
    """
    session = Session(
        record.identity,
        record.session_id,
        record.opened_ms,
        record.used_ms,
        record.budgets,
        record.turns,
        record.spent,
        dict(record.held),
    )
    state.sessions.add(session)
    if record.pool_id:
        everybody = len(state.sessions)
        warmth = (record.pool_id, record.replica_id, record.kv_tokens)
        state.sessions.warm(session, *warmth, slots=everybody)
    look_again(state, session.key, now_ms)


def _drop_orphans(state: State, session: Session) -> None:
    """Charges what is set aside for jobs of which nobody will report any more."""
    gone = [job_id for job_id in session.held if not _awaited(state, job_id)]
    for job_id in gone:
        hold = session.held.pop(job_id)
        session.spend(Spent(hold.tokens, hold.time_ms, hold.cost_micros))
    if gone:
        _changed(state, session)


def _awaited(state: State, job_id: str) -> bool:
    """True while a job is live, or a pool has to confirm that it stopped."""
    job = state.jobs.get(job_id)
    if job is None:
        return False
    return job.live or (job.attempt is not None and job.attempt.key in state.attempts)


# --- helpers


def _over(state: State, session: Session, now_ms: int) -> bool:
    due_ms = expires_ms(state, session)
    return due_ms is not None and due_ms <= now_ms


def _holding(state: State, job: Job) -> Session | None:
    """The session that has something set aside for a job."""
    spec = job.spec
    if not spec.session_id:
        return None
    session = state.sessions.get(session_key(spec.identity, spec.session_id))
    return session if session is not None and job.job_id in session.held else None


def _changed(state: State, session: Session) -> None:
    """Writes a session down as it is now. Due after every change of what must outlive a crash."""
    state.sessions.touch(session)
    state.emit(
        SessionRecord(
            identity=session.identity,
            session_id=session.session_id,
            opened_ms=session.opened_ms,
            used_ms=session.used_ms,
            budgets=session.budgets,
            turns=session.turns,
            spent=session.spent,
            held=tuple(session.held.items()),
            pool_id=session.pool_id,
            replica_id=session.replica_id,
            kv_tokens=session.kv_tokens,
        )
    )
