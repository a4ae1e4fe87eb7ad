"""The state tables of jobs and attempts, as data. `docs/state_machine.md` is drawn from them."""

import enum


class _Row(enum.Enum):
    """A key of the tables. Members are single, so the hash of the object serves.

    That of an enum is computed from its name, in Python, at each look-up.
    """

    __hash__ = object.__hash__


class JobState(_Row):
    """Where a job is in its life."""

    QUEUED = "queued"
    DISPATCHED = "dispatched"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DROPPED = "dropped"
    FAILED = "failed"

    @property
    def terminal(self) -> bool:
        """True when nothing follows."""
        return self in TERMINAL


class JobTrigger(_Row):
    """What moves a job."""

    PLACE = "placed"
    START = "engine took it up"
    RETRY = "attempt lost, retry allowed"
    FINISH = "engine ended it"
    CANCEL = "cancelled"
    EXPIRE = "deadline, queue timeout or watchdog"
    DROP = "displaced by a newer job"
    FAIL = "cannot be completed"


class AttemptState(_Row):
    """Where an attempt is in its life. The slot belongs to it until ENDED."""

    SENT = "sent"
    RUNNING = "running"
    CANCELLING = "cancelling"
    ENDED = "ended"


class AttemptTrigger(_Row):
    """What moves an attempt."""

    START = "engine took it up"
    STOP = "its job ended"
    END = "pool confirmed the end, refused it, or its incarnation is gone"


TERMINAL = frozenset(
    {JobState.FINISHED, JobState.CANCELLED, JobState.EXPIRED, JobState.DROPPED, JobState.FAILED}
)

_ENDINGS = {
    JobTrigger.CANCEL: JobState.CANCELLED,
    JobTrigger.EXPIRE: JobState.EXPIRED,
    JobTrigger.FAIL: JobState.FAILED,
}

JOB_TABLE: dict[JobState, dict[JobTrigger, JobState]] = {
    JobState.QUEUED: {
        JobTrigger.PLACE: JobState.DISPATCHED,
        JobTrigger.DROP: JobState.DROPPED,
        **_ENDINGS,
    },
    JobState.DISPATCHED: {
        JobTrigger.START: JobState.RUNNING,
        JobTrigger.RETRY: JobState.QUEUED,
        JobTrigger.FINISH: JobState.FINISHED,
        **_ENDINGS,
    },
    JobState.RUNNING: {
        JobTrigger.RETRY: JobState.QUEUED,
        JobTrigger.FINISH: JobState.FINISHED,
        **_ENDINGS,
    },
    **{state: {} for state in JobState if state in TERMINAL},
}

ATTEMPT_TABLE: dict[AttemptState, dict[AttemptTrigger, AttemptState]] = {
    AttemptState.SENT: {
        AttemptTrigger.START: AttemptState.RUNNING,
        AttemptTrigger.STOP: AttemptState.CANCELLING,
        AttemptTrigger.END: AttemptState.ENDED,
    },
    AttemptState.RUNNING: {
        AttemptTrigger.STOP: AttemptState.CANCELLING,
        AttemptTrigger.END: AttemptState.ENDED,
    },
    AttemptState.CANCELLING: {
        AttemptTrigger.START: AttemptState.CANCELLING,
        AttemptTrigger.END: AttemptState.ENDED,
    },
    AttemptState.ENDED: {},
}


class IllegalTransitionError(Exception):
    """A transition that the table does not have: a bug in the core."""


def next_job_state(state: JobState, trigger: JobTrigger) -> JobState:
    """Looks a transition up. Raises `IllegalTransitionError` when the table has none."""
    target = JOB_TABLE[state].get(trigger)
    if target is None:
        raise IllegalTransitionError(f"job: {trigger.name} in {state.name}")
    return target


def next_attempt_state(state: AttemptState, trigger: AttemptTrigger) -> AttemptState:
    """Looks a transition up. Raises `IllegalTransitionError` when the table has none."""
    target = ATTEMPT_TABLE[state].get(trigger)
    if target is None:
        raise IllegalTransitionError(f"attempt: {trigger.name} in {state.name}")
    return target
