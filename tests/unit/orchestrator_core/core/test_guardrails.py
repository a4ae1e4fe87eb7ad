"""What is certain about a request before it is queued. ORCH-3014."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.core.config import Guardrails, Price
from orchestrator_core.core.guardrails import (
    MAX_TOKENS_MAX,
    capped,
    certain_ctx,
    certain_prompt_tokens,
    ctx_field,
    output_left,
    over_budget,
    with_certain_ctx,
)
from orchestrator_core.core.outcome import Reason
from orchestrator_core.core.spec import Budgets, JobSpec, Needs
from tests.unit.orchestrator_core.core.build import spec
from tests.unit.orchestrator_core.core.settings import STEADY

RAILS = Guardrails(token_bytes_max=10, price=Price(2_000, 2_000))
MAYBE = st.none() | st.integers(1, 500)


@STEADY
@given(st.lists(st.integers(1, 10), max_size=40))
def test_no_tokenizer_within_the_bound_makes_fewer_tokens(token_bytes: list[int]) -> None:
    """However a text is cut into tokens of at most the bound, there are at least that many."""
    assert certain_prompt_tokens(sum(token_bytes), 10) <= len(token_bytes)


@pytest.mark.parametrize(
    ("prompt_bytes", "max_tokens", "required_ctx", "needed"),
    [
        (0, None, None, 1),
        (1, None, None, 2),
        (10, None, None, 2),
        (11, None, None, 3),
        (11, 50, None, 52),
        (11, 50, 40, 52),
        (11, 50, 60, 60),
    ],
)
def test_the_context_that_is_needed_for_certain(
    prompt_bytes: int, max_tokens: int | None, required_ctx: int | None, needed: int
) -> None:
    """The prompt at its shortest with all that may be generated, or what was asked for."""
    job = spec(
        prompt_bytes=prompt_bytes,
        max_tokens=max_tokens,
        needs=Needs("m", required_ctx=required_ctx),
    )

    assert certain_ctx(job, RAILS) == needed


@pytest.mark.parametrize(
    ("needed", "required"), [(100, None), (101, 200), (200, 200), (201, 400), (400, 400)]
)
def test_a_requirement_is_rounded_up_to_a_size_that_is_offered(
    needed: int, required: int | None
) -> None:
    """Jobs of all lengths share as many lanes as there are sizes, and small ones their own."""
    assert with_certain_ctx(spec(), needed, (100, 200, 400)).needs.certain_ctx == required


def test_the_field_to_change_is_named() -> None:
    """The input where it alone is too long, else the output that was asked for."""
    prompt = ctx_field(spec(prompt_bytes=1_000, max_tokens=5), 100, RAILS)
    output = ctx_field(spec(prompt_bytes=100, max_tokens=91), 100, RAILS)

    assert (prompt.field, output.field) == ("spec.input", "spec.sampling.max_tokens")
    assert "at least 100 tokens" in prompt.description
    assert "at most 90" in output.description


SPECS = st.builds(
    lambda prompt_bytes, max_tokens, tokens, cost: spec(
        prompt_bytes=prompt_bytes,
        max_tokens=max_tokens,
        budgets=Budgets(tokens=tokens, cost_micros=cost),
    ),
    st.integers(1, 3_000),
    MAYBE,
    MAYBE,
    MAYBE,
)


def _affords(job: JobSpec, tokens: int) -> bool:
    """The budgets in their own units, not turned into tokens."""
    budgets = job.budgets
    within = budgets.tokens is None or tokens <= budgets.tokens
    return within and (budgets.cost_micros is None or tokens * 2_000 <= budgets.cost_micros * 1_000)


@STEADY
@given(SPECS)
def test_a_job_is_refused_exactly_when_its_budget_cannot_hold_it(job: JobSpec) -> None:
    """Even with the shortest prompt; and the refusal names the budget that is too small."""
    least = -(-job.prompt_bytes // 10) + (job.max_tokens or 1)

    refused = over_budget(job, RAILS)

    assert (refused is None) == _affords(job, least)
    if refused is not None:
        assert refused.reason is Reason.ADMISSION_REJECT
        assert (refused.policy_label, refused.retry_after_ms) == ("budget", None)
        (wrong,) = refused.violations
        which = {"spec.budgets.tokens": "tokens", "spec.budgets.cost_micros": "cost_micros"}
        asked = getattr(job.budgets, which[wrong.field])
        assert f"is {asked}," in wrong.description
        if job.max_tokens:
            assert "lower max_tokens" in wrong.description


@STEADY
@given(SPECS, st.integers(1, 400))
def test_what_may_be_generated_is_what_the_budget_leaves(job: JobSpec, prompt: int) -> None:
    """Never more than was asked for, never nothing, never beyond the budget if it can be helped."""
    cap = capped(job, prompt, 10**6, RAILS).max_tokens

    if output_left(job.budgets, prompt, RAILS.price) is None:
        assert cap == job.max_tokens
        return
    assert cap is not None
    assert cap >= 1
    assert job.max_tokens is None or cap <= job.max_tokens
    assert _affords(job, prompt + cap) or cap == 1
    if job.max_tokens is None or cap < job.max_tokens:
        assert not _affords(job, prompt + cap + 1), "not a token less than there is"


def test_a_cap_fits_the_wire() -> None:
    """A budget may be larger than any max_tokens."""
    job = capped(spec(budgets=Budgets(tokens=2**63)), 1, 2**64, RAILS)

    assert job.max_tokens == MAX_TOKENS_MAX


def test_a_budget_that_the_context_keeps_anyway_sets_no_cap() -> None:
    """An engine would refuse a max_tokens that does not fit; what was asked for stays."""
    wide = Budgets(tokens=100)

    assert capped(spec(budgets=wide), 1, 100, RAILS).max_tokens is None
    assert capped(spec(budgets=wide), 1, 101, RAILS).max_tokens == 99
    assert capped(spec(budgets=wide, max_tokens=60), 1, 50, RAILS).max_tokens == 60


def test_a_cost_without_a_price_names_the_key_to_set() -> None:
    """Nothing is invented: the operator has to say what a token costs."""
    refused = over_budget(spec(budgets=Budgets(cost_micros=5)), Guardrails())

    assert refused is not None
    assert refused.reason is Reason.INVALID_PARAMS
    assert refused.violations[0].field == "spec.budgets.cost_micros"
    assert "admission.price_micros_per_1k_tokens" in refused.message


@pytest.mark.parametrize("bad", [0, -1])
def test_rails_out_of_range_are_refused(bad: int) -> None:
    """A token has a byte."""
    with pytest.raises(ValueError, match="must"):
        Guardrails(bad)


@pytest.mark.parametrize("bad", [(-1, 0), (0, -1)])
def test_nobody_is_paid_for_tokens(bad: tuple[int, int]) -> None:
    """A price is not negative."""
    with pytest.raises(ValueError, match="must not be negative"):
        Price(*bad)


@STEADY
@given(st.integers(0, 5_000), st.integers(0, 5_000), st.integers(0, 300), st.integers(0, 5_000))
def test_what_a_cost_affords_is_exactly_what_it_pays_for(
    per_input: int, per_output: int, prompt: int, cost: int
) -> None:
    """ORCH-3099: in whole millionths, rounded up for the client; one token more is too dear."""
    price = Price(per_input, per_output)

    affordable = price.affordable(cost, prompt)

    if affordable is None:
        assert price.cost_micros(prompt, 10**9) <= cost
    elif affordable < 0:
        assert price.cost_micros(prompt, 0) > cost
    else:
        assert (
            price.cost_micros(prompt, affordable)
            <= cost
            < price.cost_micros(prompt, affordable + 1)
        )
