"""Exponential backoff with a cap.

The caller supplies the jitter, so equal inputs give equal waits.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Wait before the n-th retry: `initial_ms` doubling up to `cap_ms`, of which half is jitter.

    Raises:
        ValueError: when a bound is not positive or the cap is below the first wait.
    """

    initial_ms: int
    cap_ms: int

    def __post_init__(self) -> None:
        if self.initial_ms <= 0 or self.cap_ms < self.initial_ms:
            raise ValueError("backoff needs 0 < initial_ms <= cap_ms")

    def delay_ms(self, failures: int, jitter: float) -> int:
        """Milliseconds to wait after `failures` failures in a row, with `jitter` in [0, 1).

        The wait lies in [full / 2, full], so hosts that failed together do not return together.
        """
        if failures <= 0:
            return 0
        # The exponent is bounded so that a long outage does not build a huge integer.
        full_ms = min(self.cap_ms, self.initial_ms << min(failures - 1, 32))
        return full_ms - int((full_ms // 2) * jitter)
