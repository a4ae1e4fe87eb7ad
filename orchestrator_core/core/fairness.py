"""Token fairness between identities: who was served least goes first. LO-104, behind a gate.

Each identity has a counter of the tokens that it was served, output counting double since a
decode step costs more than reading a token. One that returns after a pause starts at the least
counter of those that wait, or of the one that was placed last when nobody does, so that nobody
saves up. `State.served` has that one last. Source: Sheng et al., "Fairness in Serving
Large Language Models" (virtual token counter), OSDI 2024.
"""

from orchestrator_core.core.job import Job
from orchestrator_core.core.outcome import Usage
from orchestrator_core.core.spec import JobSpec, Shape
from orchestrator_core.core.state import State

OUTPUT_WEIGHT = 2.0
IDENTITIES_MAX = 10_000


def served_tokens(state: State, identity: str) -> float:
    """The counter of an identity."""
    return state.served.get(identity, 0.0)


def lift(state: State, spec: JobSpec) -> None:
    """Notes that a job of an identity begins to wait. O(lanes) when none of its jobs waited."""
    if not state.config.token_fairness:
        return
    waiting = {lane.identity: None for lane in state.queue.lanes}
    if spec.identity in waiting:
        return
    rivals = waiting or [next(reversed(state.served), spec.identity)]
    least = min(served_tokens(state, identity) for identity in rivals)
    mine = max(served_tokens(state, spec.identity), least)
    state.served.pop(spec.identity, None)
    if len(state.served) >= IDENTITIES_MAX:
        state.served.popitem(last=False)
    state.served[spec.identity] = mine


def charge(state: State, job: Job, shape: Shape) -> None:
    """Counts a placed job by what it is expected to take; one that is placed again only once."""
    if state.config.token_fairness:
        _count(state, job, shape.prompt_tokens + OUTPUT_WEIGHT * shape.output_tokens)
        if job.spec.identity in state.served:
            state.served.move_to_end(job.spec.identity)


def settle(state: State, job: Job, usage: Usage) -> None:
    """Replaces the expectation by what the engine counted."""
    if not state.config.token_fairness or usage.tokens_out is None:
        return
    _count(state, job, (usage.tokens_in or 0) + OUTPUT_WEIGHT * usage.tokens_out)


def give_back(state: State, job: Job) -> None:
    """Takes back what was counted for a job that was never accepted."""
    if state.config.token_fairness:
        _count(state, job, 0.0)


def switch(state: State) -> None:
    """Goes on with fairness, or without, as is configured now. O(jobs log jobs).

    All who wait begin with equal counters, and what was counted before is forgotten.
    """
    state.served.clear()
    for job in state.jobs.values():
        job.tokens_served = 0.0
    state.queue.regroup(per_identity=state.config.token_fairness)
    if state.config.token_fairness:
        for lane in state.queue.lanes:
            if len(state.served) < IDENTITIES_MAX:
                state.served.setdefault(lane.identity, 0.0)


def _count(state: State, job: Job, tokens: float) -> None:
    """Replaces what was counted for a job."""
    identity, more = job.spec.identity, tokens - job.tokens_served
    job.tokens_served = tokens
    if identity in state.served:
        state.served[identity] = max(0.0, state.served[identity] + more)
