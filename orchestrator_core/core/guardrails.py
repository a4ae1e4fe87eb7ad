"""What can be refused before it is queued, from the request alone. Pure functions. ORCH-3014.

There is no tokenizer here. What is *certain* about a prompt is a lower bound: a token covers at
most `token_bytes_max` bytes, so a prompt of n bytes has at least n / token_bytes_max tokens. Only
what exceeds a limit by that bound is refused. The ratio seen in earlier prompts is no such bound,
as the next prompt may consist of the longest tokens alone; it is used for estimates only.
"""

from collections.abc import Sequence
from dataclasses import replace

from orchestrator_core.core.config import Guardrails, Price
from orchestrator_core.core.outcome import FieldViolation, Reason, Refusal
from orchestrator_core.core.spec import Budgets, JobSpec

# Largest value of the wire's max_tokens, a uint32.
MAX_TOKENS_MAX = 2**32 - 1

BUDGET = "budget"
PRICE_KEY = "admission.price_micros_per_1k_tokens"


def certain_prompt_tokens(prompt_bytes: int, token_bytes_max: int) -> int:
    """The fewest tokens that a prompt of so many bytes can have."""
    return -(-prompt_bytes // token_bytes_max)


def certain_ctx(spec: JobSpec, rails: Guardrails) -> int:
    """Tokens of context that the job needs for certain: prompt and what may be generated.

    `max_tokens` and `required_ctx` count as they are given; without `max_tokens` one token must
    have room.
    """
    prompt = certain_prompt_tokens(spec.prompt_bytes, rails.token_bytes_max)
    return max(prompt + (spec.max_tokens or 1), spec.needs.required_ctx or 0)


def with_certain_ctx(spec: JobSpec, needed: int, ctx_sizes: Sequence[int]) -> JobSpec:
    """Keeps pools out whose context is certainly too small, where others are large enough.

    `ctx_sizes` are the sizes that feasible pools offer, ascending, the last one at least `needed`.
    The requirement is rounded up to one of them, so that jobs of all lengths share few lanes.
    """
    if needed <= ctx_sizes[0]:
        return spec
    enough = next(size for size in ctx_sizes if size >= needed)
    return replace(spec, needs=replace(spec.needs, certain_ctx=enough))


def ctx_field(spec: JobSpec, ctx_max: int, rails: Guardrails) -> FieldViolation:
    """Names the field that makes a job too large for a context, and what to change."""
    prompt = certain_prompt_tokens(spec.prompt_bytes, rails.token_bytes_max)
    if prompt + 1 > ctx_max:
        what = f"has at least {prompt} tokens and the context holds {ctx_max}: shorten it"
        return FieldViolation("spec.input", what)
    room = ctx_max - prompt
    what = f"must be at most {room}: the context holds {ctx_max} and the prompt at least {prompt}"
    return FieldViolation("spec.sampling.max_tokens", what)


def output_left(budgets: Budgets, prompt_tokens: int, price: Price) -> int | None:
    """Tokens of output that budgets for tokens and cost allow after a prompt; None: any number.

    Not positive where they do not allow the first one.
    """
    left = None if budgets.tokens is None else budgets.tokens - prompt_tokens
    if budgets.cost_micros is not None:
        affordable = price.affordable(budgets.cost_micros, prompt_tokens)
        if affordable is not None:
            left = affordable if left is None else min(left, affordable)
    return left


def over_budget(spec: JobSpec, rails: Guardrails) -> Refusal | None:
    """Refuses a job that its own budgets cannot hold, or a cost without a price."""
    price = rails.price_of(spec.needs.model_id)
    if not price:
        for field, budgets in (
            ("spec.budgets.cost_micros", spec.budgets),
            ("spec.session_budgets.cost_micros", spec.session_budgets),
        ):
            if budgets.cost_micros is not None:
                return _without_price(spec, field)
    budgets = spec.budgets
    prompt, output = certain_prompt_tokens(spec.prompt_bytes, rails.token_bytes_max), 1
    if spec.max_tokens is not None:
        output = spec.max_tokens
    for field, has, needed in (
        ("spec.budgets.tokens", budgets.tokens, prompt + output),
        ("spec.budgets.cost_micros", budgets.cost_micros, price.cost_micros(prompt, output)),
    ):
        if has is not None and needed > has:
            return _over(spec, field, has, needed, prompt)
    return None


def _without_price(spec: JobSpec, field: str) -> Refusal:
    what = f"needs a price: set {PRICE_KEY} at the server, or leave this budget out"
    return Refusal(
        Reason.INVALID_PARAMS,
        f"{field} {what}",
        engine=spec.needs.engine,
        violations=(FieldViolation(field, what),),
    )


def _over(spec: JobSpec, field: str, has: int, needed: int, prompt: int) -> Refusal:
    output = f"max_tokens of {spec.max_tokens}" if spec.max_tokens else "one token of output"
    what = f"is {has}, and a prompt of at least {prompt} tokens with {output} takes {needed}"
    advice = "raise it, shorten the input" + (" or lower max_tokens" if spec.max_tokens else "")
    return Refusal(
        Reason.ADMISSION_REJECT,
        f"{field} {what}: {advice}",
        None,
        BUDGET,
        spec.needs.engine,
        resource=field,
        violations=(FieldViolation(field, f"{what}: {advice}"),),
    )


def capped(spec: JobSpec, prompt_tokens: int, ctx_max: int, rails: Guardrails) -> JobSpec:
    """Bounds what may be generated by what the budgets leave after the estimated prompt.

    At least one token is left: an estimate refuses nobody. Where no bound was asked for and the
    context `ctx_max` is the tighter one, none is set: engines refuse more than fits.
    """
    left = output_left(spec.budgets, prompt_tokens, rails.price_of(spec.needs.model_id))
    if left is None or (spec.max_tokens is None and prompt_tokens + left >= ctx_max):
        return spec
    left = min(max(1, left), MAX_TOKENS_MAX)
    if spec.max_tokens is not None and spec.max_tokens <= left:
        return spec
    return replace(spec, max_tokens=left)
