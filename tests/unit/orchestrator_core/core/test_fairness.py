"""Fairness between identities: who was served the fewest tokens goes first. LO-104."""

from orchestrator_core.core.effects import SendStart
from orchestrator_core.core.outcome import Usage
from tests.unit.orchestrator_core.core.bench import Bench, only
from tests.unit.orchestrator_core.core.build import snapshot


def _served_in_order(bench: Bench, jobs: int, usage: Usage) -> list[str]:
    """Ends whatever runs, one job after the other; returns who ran."""
    order: list[str] = []
    running = [key[0] for key in bench.state.attempts]
    while running and len(order) < jobs:
        order.append(running[0])
        bench.now_ms += 1_000
        bench.report(snapshot(version=bench.now_ms))
        started = only(bench.end(running[0], usage=usage), SendStart)
        running = [effect.spec.job_id for effect in started]
    return order


def _line(bench: Bench, *, fair_to: tuple[str, ...]) -> None:
    """Three jobs of each identity, all of the first before all of the second."""
    for identity in fair_to:
        for number in range(3):
            bench.enqueue(f"{identity}{number}", identity=identity, expected_tokens=10)


def test_identities_take_turns_when_their_jobs_are_alike() -> None:
    """LO-104: the flood of one does not keep the other waiting; each one's own order holds."""
    bench = Bench(snapshot(), token_fairness=True)

    _line(bench, fair_to=("a", "b"))

    served = _served_in_order(bench, 6, Usage(tokens_in=1, tokens_out=10))
    assert served == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_without_the_gate_arrival_alone_counts() -> None:
    """Identities do not matter."""
    bench = Bench(snapshot())

    _line(bench, fair_to=("a", "b"))

    served = _served_in_order(bench, 6, Usage(tokens_in=1, tokens_out=10))
    assert served == ["a0", "a1", "a2", "b0", "b1", "b2"]


def test_what_the_engine_counted_replaces_what_was_expected() -> None:
    """A job that wrote ten times more than expected puts its identity back for longer."""
    bench = Bench(snapshot(), token_fairness=True)
    _line(bench, fair_to=("a", "b"))

    bench.report(snapshot(version=2))
    bench.now_ms += 1_000
    bench.end("a0", usage=Usage(tokens_in=1, tokens_out=100))

    served = _served_in_order(bench, 4, Usage(tokens_in=1, tokens_out=10))
    assert served == ["b0", "b1", "b2", "a1"]


def test_nobody_saves_up_while_away() -> None:
    """Who returns starts at the least counter of those that wait, and does not run alone."""
    bench = Bench(snapshot(), token_fairness=True)
    bench.enqueue(*(f"a{n}" for n in range(6)), identity="a", expected_tokens=10)
    _served_in_order(bench, 2, Usage(tokens_in=1, tokens_out=10))

    bench.enqueue("b0", "b1", "b2", identity="b", expected_tokens=10)

    assert bench.state.served["b"] == bench.state.served["a"] > 0.0
    served = _served_in_order(bench, 5, Usage(tokens_in=1, tokens_out=10))
    assert served == ["a2", "b0", "a3", "b1", "a4"]
