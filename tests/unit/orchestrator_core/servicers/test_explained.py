"""Explanations of fleets that are larger than a message. LO-207."""

from dataclasses import replace

from orchestrator_core.core.decision import Decision, Exclusion, ExclusionReason, Shortfall
from orchestrator_core.core.explain import Explained
from orchestrator_core.grpc_options import MESSAGE_BYTES_MAX
from orchestrator_core.servicers.explained import decisions, waiting
from orchestrator_core.servicers.paging import PAGE_BYTES_MAX
from tests.unit.orchestrator_core.core.bench import Bench
from tests.unit.orchestrator_core.core.build import snapshot

POOLS = 20_000


def exclusions(count: int) -> tuple[Exclusion, ...]:
    """What pools lack, told as at length as real ones do."""
    lacking = Shortfall(ExclusionReason.MODEL, "m" * 60, "n" * 60)
    return tuple(Exclusion(f"host-{at:05d}-pool", (lacking,)) for at in range(count))


def made() -> Decision:
    """A short decision."""
    bench = Bench(snapshot("p"))
    bench.enqueue("a")
    (decision,) = bench.core.jobs["a"].decisions
    return decision


def test_what_all_pools_lack_fits_into_half_a_message() -> None:
    """The first of very many, in order; all of a usual fleet."""
    all_of_them = exclusions(POOLS)

    told = waiting(all_of_them)

    assert 1_000 < len(told) < POOLS
    assert [each.pool_id for each in told] == [each.pool_id for each in all_of_them[: len(told)]]
    assert sum(each.ByteSize() for each in told) <= MESSAGE_BYTES_MAX // 2
    assert len(waiting(all_of_them[:1_000])) == 1_000


def test_the_latest_decisions_are_told_in_full_as_far_as_there_is_room() -> None:
    """Those before them in short; none is missing."""
    short = [replace(made(), attempt=number) for number in (1, 2, 3)]
    lacking = exclusions(12_000)
    full = {
        each.attempt: Explained(replace(each, exclusions=lacking, exclusions_total=12_000), ())
        for each in short
    }

    told = decisions(short, full, PAGE_BYTES_MAX)

    assert [each.attempt for each in told] == [1, 2, 3]
    assert [len(each.exclusions) for each in told] == [0, 0, 12_000]
    assert sum(each.ByteSize() for each in told) <= PAGE_BYTES_MAX
