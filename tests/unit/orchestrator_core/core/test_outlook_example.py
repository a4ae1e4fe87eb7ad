"""The worked example of docs/placement.md is what the code computes. LO-202."""

from collections.abc import Iterator
from pathlib import Path

from orchestrator_core.core.outlook import IDLE_MARGIN, Advice, Tier, Traffic, outlook, weigh
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.prediction import ModelStats, Predictor
from orchestrator_core.core.spec import Shape
from tests.unit.orchestrator_core.core.build import snapshot

PAGE = Path(__file__).parents[4] / "docs" / "placement.md"
ARRIVALS_PER_MS = 0.7 / 1000
MEAN, SHORT = Shape(512.0, 256.0), Shape(64.0, 32.0)
DOES = {Advice.TAKE: "takes it", Advice.PASS_ON: "passes it on"}


def _pool(
    pool_id: str, slots: int, decode: float, prefill: float, first_ms: int, busy: int
) -> Pool:
    told = snapshot(
        pool_id,
        slots_total=slots,
        slots_free=slots - busy,
        perf_tokens_per_s=decode,
        prefill_tokens_per_s=prefill,
        first_token_ms=first_ms,
    )
    made = Pool(told, 0)
    made.apply(told, 0)
    made.rates = Predictor().pool_rates(told)
    made.note(0, 5_000)
    return made


POOLS = [
    _pool("rtx3090", 4, 85.0, 3200.0, 50, busy=4),
    _pool("rtx3060", 2, 38.0, 1400.0, 80, busy=2),
    _pool("gtx1080", 1, 14.0, 350.0, 150, busy=0),
]
VIEW = outlook(POOLS, ModelStats(), learned=0, fleet=0)


def _s(value_ms: float) -> str:
    return f"{value_ms / 1000:.1f} s"


def _here_ms(shape: Shape) -> int:
    offered = POOLS[-1]
    first_ms = offered.first_base_ms + offered.prompt_token_ms * shape.prompt_tokens
    return int(first_ms + offered.next_token_ms * shape.output_tokens)


def _delay_ms(waiting: int, tiers: tuple[Tier, ...]) -> float:
    rate = sum(tier.jobs_per_ms for tier in tiers)
    service_ms = sum(tier.jobs_per_ms * tier.mean_ms for tier in tiers) / rate
    return waiting / (rate - ARRIVALS_PER_MS) + service_ms


def _tiers() -> Iterator[str]:
    for pool, tier in zip(POOLS, VIEW.tiers, strict=True):
        rate = f"{tier.jobs_per_ms * 1000:.2f} jobs/s"
        yield f"| {pool.snapshot.pool_id} | {tier.slots} | {_s(tier.mean_ms)} | {rate} |"


def _first_question() -> Iterator[str]:
    for waiting in (1, 4, 6, 7, 8):
        fast, both = _delay_ms(waiting, VIEW.tiers[:1]), _delay_ms(waiting, VIEW.tiers[:2])
        traffic = Traffic(waiting, ARRIVALS_PER_MS)
        weighed = weigh(VIEW, traffic, MEAN, POOLS[-1], _here_ms(MEAN), 0)
        used = "stays idle" if weighed.advice is Advice.LEAVE_IDLE else "is used"
        least = _s(min(fast, both) * (1.0 + IDLE_MARGIN))
        yield f"| {waiting} | {_s(fast)} | {_s(both)} | {least} | {used} |"


def _second_question() -> Iterator[str]:
    traffic = Traffic(8, ARRIVALS_PER_MS)
    for place, name in ((1, "1st"), (2, "2nd"), (3, "3rd"), (8, "8th")):
        cells = [name]
        for shape in (MEAN, SHORT):
            weighed = weigh(VIEW, traffic, shape, POOLS[-1], _here_ms(shape), place - 1)
            taken = weighed.advice is Advice.TAKE
            cells += ["-" if taken else _s(weighed.elsewhere_ms), DOES[weighed.advice]]
        yield f"| {' | '.join(cells)} |"


def test_the_page_shows_what_the_code_computes() -> None:
    """Each row of the three tables stands in the page as it is computed."""
    page = PAGE.read_text(encoding="utf-8").splitlines()

    for row in (*_tiers(), *_first_question(), *_second_question()):
        assert row in page, row
    assert any(f"end on the 1080 in {_s(_here_ms(MEAN))}" in line for line in page)
    assert any(f"{_s(_here_ms(SHORT))} on the 1080" in line for line in page)


def test_the_last_of_equal_jobs_loses_least() -> None:
    """Who waits longest elsewhere has least to lose on the slow pool."""
    traffic = Traffic(8, ARRIVALS_PER_MS)

    losses = [weigh(VIEW, traffic, MEAN, POOLS[-1], _here_ms(MEAN), n).loss for n in range(8)]

    assert losses == sorted(losses, reverse=True)
