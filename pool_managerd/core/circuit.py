"""The circuit breaker of one engine incarnation: errors in, "take no more work" out. ORCH-3040.

An engine may live, answer its health check and still fail what it is asked. Its circuit then opens:
the pool takes no work, and after a pause a probe says whether it does again. Time and jitter come
with the calls.
"""

from collections import deque
from dataclasses import dataclass

from pool_managerd.core.backoff import Backoff


@dataclass(frozen=True, slots=True)
class CircuitLimits:
    """`errors` of the last `2 * errors - 1` attempts open the circuit by failing in `window_ms`.

    So it opens once failures are the greater part of them. `pause` is the wait before each probe;
    after `probes_max` failed ones the engine is given up.
    """

    errors: int
    window_ms: int
    pause: Backoff
    probes_max: int

    def __post_init__(self) -> None:
        if min(self.errors, self.window_ms, self.probes_max) <= 0:
            raise ValueError("limits of a circuit are positive")


class Circuit:
    """Closed until most of the last attempts fail; then open until a probe succeeds."""

    def __init__(self, limits: CircuitLimits) -> None:
        self._limits = limits
        self._open = False
        self._failed_probes = 0
        # Of so many outcomes `errors` are the greater part; older ones no longer count.
        self._errors_at_ms: deque[int | None] = deque(maxlen=2 * limits.errors - 1)

    @property
    def open(self) -> bool:
        """True while no work is to be taken."""
        return self._open

    @property
    def given_up(self) -> bool:
        """True once so many probes failed that the engine is to be replaced."""
        return self._failed_probes >= self._limits.probes_max

    def succeeded(self) -> None:
        """Notes an attempt that the engine carried out."""
        self._errors_at_ms.append(None)

    def failed(self, now_ms: int) -> bool:
        """Notes an attempt that the engine broke; True when that opens the circuit. O(errors)."""
        self._errors_at_ms.append(now_ms)
        since_ms = now_ms - self._limits.window_ms
        recent = sum(at_ms is not None and at_ms > since_ms for at_ms in self._errors_at_ms)
        opens = not self._open and recent >= self._limits.errors
        self._open = self._open or opens
        return opens

    def pause_ms(self, jitter: float) -> int:
        """Milliseconds until the next probe, with `jitter` in [0, 1)."""
        return self._limits.pause.delay_ms(self._failed_probes + 1, jitter)

    def probed(self, *, passed: bool) -> None:
        """Notes how a probe ended: it closes the circuit, or the next pause is longer."""
        if not passed:
            self._failed_probes += 1
            return
        self._open = False
        self._failed_probes = 0
        self._errors_at_ms.clear()
