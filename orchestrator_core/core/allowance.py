"""Arithmetic of budgets: what a job may take, and what amounts leave of a budget. ORCH-3099."""

from orchestrator_core.core.config import SessionBudgets
from orchestrator_core.core.guardrails import MAX_TOKENS_MAX, certain_prompt_tokens
from orchestrator_core.core.session import Hold, Spent
from orchestrator_core.core.spec import Budgets, JobSpec
from orchestrator_core.core.state import State


def prompt_tokens(state: State, spec: JobSpec) -> int:
    """Estimated tokens of a prompt, at least those that are certain."""
    rails = state.config.guardrails
    certain = certain_prompt_tokens(spec.prompt_bytes, rails.token_bytes_max)
    return max(certain, int(state.predictor.shape(spec).prompt_tokens))


def ctx_max(state: State, spec: JobSpec) -> int:
    """Largest context that a feasible pool offers, tokens; a bound of the wire if not known."""
    sizes = state.feasible(spec.needs).ctx_sizes
    return sizes[-1] if sizes else MAX_TOKENS_MAX


def cost_micros(state: State, spec: JobSpec, prompt: int, output: int) -> int:
    """What so many tokens of the job's model cost."""
    price = state.config.guardrails.price_of(spec.needs.model_id)
    return price.cost_micros(prompt, output)


def hold_for(state: State, spec: JobSpec, budgets: Budgets) -> Hold:
    """All that a job may take under budgets of its session.

    Where no `max_tokens` bounds its output and a budget counts it, the context does.
    """
    prompt, output = prompt_tokens(state, spec), spec.max_tokens
    if output is None:
        counted = budgets.tokens is not None or budgets.cost_micros is not None
        output = max(1, ctx_max(state, spec) - prompt) if counted else 0
    cost = cost_micros(state, spec, prompt, output)
    return Hold(prompt, output, spec.budgets.time_ms or 0, cost)


def within(asked: Budgets, limits: SessionBudgets) -> Budgets:
    """What a client asked for, bounded by what every session may spend."""
    allowed = Budgets(limits.tokens or None, limits.time_ms or None, limits.cost_micros or None)
    return least(asked, allowed)


def least(one: Budgets, other: Budgets) -> Budgets:
    """The tighter of two, kind by kind."""
    return Budgets(
        _lower(one.tokens, other.tokens),
        _lower(one.time_ms, other.time_ms),
        _lower(one.cost_micros, other.cost_micros),
    )


def less(budgets: Budgets, *amounts: Spent) -> Budgets:
    """What amounts leave of budgets; not less than nothing."""
    tokens, time_ms, cost = budgets.tokens, budgets.time_ms, budgets.cost_micros
    for used in amounts:
        tokens = None if tokens is None else max(0, tokens - used.tokens)
        time_ms = None if time_ms is None else max(0, time_ms - used.time_ms)
        cost = None if cost is None else max(0, cost - used.cost_micros)
    return Budgets(tokens, time_ms, cost)


def _lower(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
