"""When a call is made again: bounds, lower bounds, jitter."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaorch_client import (
    ClientOptions,
    ErrorDetail,
    LlamaOrchError,
    NotFoundError,
    RejectedError,
    RetryOptions,
    StreamOptions,
    Timing,
    UnavailableError,
)
from llamaorch_client.retry import RetryRow


def _rejected(retry_after_ms: int | None) -> LlamaOrchError:
    return RejectedError(ErrorDetail("full", retry_after_ms=retry_after_ms))


@given(
    told_ms=st.integers(0, 10_000),
    fraction=st.floats(0, 1, exclude_max=True),
    jitter_max_ms=st.integers(0, 1_000),
)
def test_the_servers_delay_is_a_lower_bound_with_bounded_jitter(
    told_ms: int, fraction: float, jitter_max_ms: int
) -> None:
    """ORCH-3017: never earlier than told, never later than told plus the jitter's bound."""
    options = RetryOptions(jitter_max_ms=jitter_max_ms)
    row = RetryRow(options, Timing(now_ms=lambda: 0, fraction=lambda: fraction))

    delay_ms = row.next_delay_ms(_rejected(told_ms))

    assert delay_ms is not None
    assert told_ms <= delay_ms <= told_ms + jitter_max_ms


def test_waits_without_a_told_delay_double_up_to_the_bound() -> None:
    """Backoff grows and stays bounded, also after very many failures."""
    options = RetryOptions(attempts_max=100, time_max_ms=86_400_000, backoff_max_ms=1_000)
    row = RetryRow(options, Timing(now_ms=lambda: 0, fraction=lambda: 1.0))

    delays = [row.next_delay_ms(None) for _ in range(99)]

    assert delays[:5] == [100, 200, 400, 800, 1_000]
    assert set(delays[5:]) == {1_000}
    assert row.next_delay_ms(None) is None


def test_a_reset_begins_a_new_row() -> None:
    """After progress attempts and time count from zero."""
    now_ms = [0]
    options = RetryOptions(attempts_max=2, time_max_ms=1_000)
    row = RetryRow(options, Timing(now_ms=lambda: now_ms[0], fraction=lambda: 0.0))
    assert row.next_delay_ms(None) is not None
    assert row.next_delay_ms(None) is None

    now_ms[0] = 5_000
    row.reset()

    assert row.next_delay_ms(None) is not None


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (_rejected(5), True),
        (_rejected(None), False),
        (UnavailableError(ErrorDetail("away")), True),
        (UnavailableError(ErrorDetail("away", metadata={"retriable": "false"})), False),
        (NotFoundError(ErrorDetail("no")), False),
        (NotFoundError(ErrorDetail("no", metadata={"retriable": "true"})), True),
    ],
)
def test_only_what_can_succeed_later_is_retried(error: LlamaOrchError, again: bool) -> None:
    """ORCH-3016: the server's word decides, else the kind of error."""
    row = RetryRow(RetryOptions(), Timing(now_ms=lambda: 0))

    assert (row.next_delay_ms(error) is not None) is again


@pytest.mark.parametrize(
    "change",
    [
        {"attempts_max": 0},
        {"attempts_max": 10**9},
        {"time_max_ms": -1},
        {"backoff_initial_ms": 0},
        {"backoff_max_ms": 1},
        {"jitter_max_ms": 10**9},
    ],
)
def test_unbounded_or_senseless_retry_options_are_refused(change: dict[str, int]) -> None:
    """Everything is bounded, and the error names the option."""
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(RetryOptions(), **change)


def test_other_options_are_bounded_too() -> None:
    """Timeouts and totals cannot be switched off; secrets are not shown."""
    with pytest.raises(ValueError, match="rpc_timeout_ms"):
        ClientOptions(rpc_timeout_ms=0)
    with pytest.raises(ValueError, match="close_wait_ms"):
        StreamOptions(close_wait_ms=0)
    with pytest.raises(ValueError, match="resumes_max"):
        StreamOptions(resumes_max=-1)
    assert "hidden" not in repr(ClientOptions(token="hidden"))  # noqa: S106 - a made-up token
