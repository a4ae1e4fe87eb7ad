# SPDX-License-Identifier: Apache-2.0
"""When a failed call is made again, and after how long."""

from llamaorch_client.errors import LlamaOrchError, RejectedError
from llamaorch_client.options import RetryOptions, Timing


class RetryRow:
    """Attempts in a row without success; each call or stream has its own."""

    def __init__(self, options: RetryOptions, timing: Timing) -> None:
        self._options = options
        self._timing = timing
        self._failures = 0
        self._started_ms = timing.now_ms()

    @property
    def failures(self) -> int:
        """Failures so far in this row."""
        return self._failures

    def reset(self) -> None:
        """Begins a new row, after progress."""
        self._failures = 0
        self._started_ms = self._timing.now_ms()

    def exclude(self, span_ms: int) -> None:
        """Takes a span out of the row's time, e.g. that of a call which was open all the while."""
        self._started_ms = min(self._started_ms + span_ms, self._timing.now_ms())

    def next_delay_ms(self, error: LlamaOrchError | None) -> float | None:
        """Counts a failure and returns the wait before the next attempt, or None to give up.

        `error` None stands for a break without an error. The server's delay is kept exactly as the
        lower bound (ORCH-2007, ORCH-3017).
        """
        self._failures += 1
        options = self._options
        if self._failures >= options.attempts_max or not self._allowed(error):
            return None
        told_ms = error.retry_after_ms if error is not None else None
        if told_ms is not None:
            delay_ms = told_ms + options.jitter_max_ms * self._timing.fraction()
        else:
            # The exponent is bounded so that the power stays a small number.
            doubled_ms = options.backoff_initial_ms * 2 ** min(self._failures - 1, 20)
            delay_ms = min(options.backoff_max_ms, doubled_ms) * (0.5 + self._timing.fraction() / 2)
        elapsed_ms = self._timing.now_ms() - self._started_ms
        return delay_ms if elapsed_ms + delay_ms <= options.time_max_ms else None

    def _allowed(self, error: LlamaOrchError | None) -> bool:
        if error is None:
            return True
        if isinstance(error, RejectedError) and not self._options.retry_rejected:
            return False
        return error.retriable
