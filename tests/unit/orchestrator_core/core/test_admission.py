"""The admission policy, every policy in every state of the queue. ORCH-3005, LO-102."""

from itertools import product

import pytest

from orchestrator_core.core.admission import Accept, QueueState, Reject, admission_policy
from orchestrator_core.core.config import QueuePolicy
from orchestrator_core.core.spec import Priority

CAPACITY = 2
DEPTHS = (0, CAPACITY - 1, CAPACITY, CAPACITY + 1)
STATES = [
    QueueState(policy, depth, newcomer, batch, interactive, batch and "new", free, 7)
    for policy, depth, newcomer, batch, interactive, free in product(
        QueuePolicy, DEPTHS, Priority, (None, "old batch"), (None, "old interactive"), (False, True)
    )
]


def expected(state: QueueState) -> Accept | Reject:
    """The four policies as design 5.2 words them."""
    full = state.depth >= CAPACITY
    refused = Reject(state.policy.value, 7)
    if state.policy is QueuePolicy.FAIL_FAST:
        return refused if full or not state.slot_free_now else Accept()
    if not full:
        return Accept()
    interactive = state.newcomer is Priority.INTERACTIVE
    victims: list[str | None] = []
    if state.policy is QueuePolicy.DROP_LRU:
        victims = [state.oldest_batch] + [state.oldest_interactive] * interactive
    elif state.policy is QueuePolicy.SHED_LOW_PRIORITY:
        victims = [state.newest_batch] * interactive
    for victim in victims:
        if victim is not None:
            return Accept(displaces=victim)
    return refused


@pytest.mark.parametrize("policy", QueuePolicy)
def test_each_policy_answers_as_it_is_worded(policy: QueuePolicy) -> None:
    """Who is let in, who must go for it, and under which label the others are refused."""
    for state in STATES:
        if state.policy is policy:
            assert admission_policy(state, CAPACITY) == expected(state), state


def test_nobody_of_a_higher_class_is_displaced() -> None:
    """A BATCH newcomer never costs an INTERACTIVE job its place, whatever the policy."""
    for state in STATES:
        verdict = admission_policy(state, CAPACITY)
        if state.newcomer is Priority.BATCH and isinstance(verdict, Accept):
            assert verdict.displaces != "old interactive", state
