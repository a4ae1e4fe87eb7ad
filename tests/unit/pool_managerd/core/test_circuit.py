"""The circuit breaker against a naive model. ORCH-3040."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool_managerd.core.backoff import Backoff
from pool_managerd.core.circuit import Circuit, CircuitLimits

LIMITS = CircuitLimits(errors=3, window_ms=1_000, pause=Backoff(100, 400), probes_max=3)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 500)), max_size=60))
def test_it_opens_when_errors_prevail_within_the_window(script: list[tuple[bool, int]]) -> None:
    """Three errors of the last five outcomes, all within the window, and never anything else."""
    circuit, history, now_ms = Circuit(LIMITS), [], 0
    for passed, elapsed_ms in script:
        now_ms += elapsed_ms
        history.append((passed, now_ms))
        recent = [at for ok, at in history[-5:] if not ok and at > now_ms - 1_000]
        if passed:
            circuit.succeeded()
            continue

        opened = circuit.failed(now_ms)

        assert opened == (len(recent) >= 3)
        if opened:
            assert circuit.open
            assert not circuit.failed(now_ms), "it opens once"
            return
        assert not circuit.open


def test_probes_close_it_or_wait_longer_and_end() -> None:
    """Each failed probe doubles the pause; after three the engine is given up."""
    circuit = Circuit(LIMITS)
    for _ in range(3):
        circuit.failed(0)
    pauses = []
    for _ in range(3):
        pauses.append(circuit.pause_ms(0.0))
        assert not circuit.given_up
        circuit.probed(passed=False)

    assert pauses == [100, 200, 400]
    assert circuit.given_up
    assert circuit.open


def test_a_passed_probe_forgets_the_past() -> None:
    """After it the circuit needs as many errors again."""
    circuit = Circuit(LIMITS)
    for _ in range(3):
        circuit.failed(0)
    circuit.probed(passed=True)

    assert not circuit.open
    assert [circuit.failed(1) for _ in range(3)] == [False, False, True]


def test_a_circuit_without_a_bound_is_refused() -> None:
    """Zero errors would open it for nothing."""
    with pytest.raises(ValueError, match="positive"):
        CircuitLimits(0, 1_000, Backoff(1, 1), 1)
