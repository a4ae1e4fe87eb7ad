"""Whether a job is let in: a pure function of the queue's state and its capacity. ORCH-3005."""

from dataclasses import dataclass

from orchestrator_core.core.config import QueuePolicy
from orchestrator_core.core.plain_init import plain_init
from orchestrator_core.core.spec import Priority


@plain_init
@dataclass(frozen=True, slots=True)
class QueueState:
    """What admission looks at. `slot_free_now` says whether the newcomer could start at once."""

    policy: QueuePolicy
    depth: int
    newcomer: Priority
    oldest_batch: str | None
    oldest_interactive: str | None
    newest_batch: str | None
    slot_free_now: bool
    retry_after_ms: int


@plain_init
@dataclass(frozen=True, slots=True)
class Accept:
    """Let in; `displaces` names the job that must go for it."""

    displaces: str | None = None


@plain_init
@dataclass(frozen=True, slots=True)
class Reject:
    """Turned away under `policy_label`; trying again makes sense after `retry_after_ms`."""

    policy_label: str
    retry_after_ms: int


def admission_policy(queue: QueueState, capacity: int) -> Accept | Reject:
    """Decides on one newcomer. O(1). LO-102."""
    if queue.policy is QueuePolicy.FAIL_FAST:
        if queue.slot_free_now and queue.depth < capacity:
            return Accept()
        return Reject(queue.policy.value, queue.retry_after_ms)
    if queue.depth < capacity:
        return Accept()
    victim = _victim(queue)
    if victim is not None:
        return Accept(displaces=victim)
    return Reject(queue.policy.value, queue.retry_after_ms)


def _victim(queue: QueueState) -> str | None:
    """The job that a full queue gives up for the newcomer; never one of a class above its own."""
    if queue.policy is QueuePolicy.DROP_LRU:
        if queue.newcomer is Priority.BATCH:
            return queue.oldest_batch
        return queue.oldest_batch or queue.oldest_interactive
    if queue.policy is QueuePolicy.SHED_LOW_PRIORITY and queue.newcomer is Priority.INTERACTIVE:
        return queue.newest_batch
    return None
