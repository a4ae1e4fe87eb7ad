"""What a runtime is given where a test has no use for the real thing."""

from collections.abc import Sequence

from orchestrator_core.core.effects import Effect
from orchestrator_core.core.machine import Core


class Silent:
    """Sees nothing."""

    def observe(self, effects: Sequence[Effect], core: Core, now_ms: int) -> None:
        """Nothing to do."""

    def dispatch_traceparent(self, job_id: str, attempt: int) -> str:
        """No trace."""
        return ""


class HandClock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.ms = 1_000

    def now_ms(self) -> int:
        """The time that was set."""
        return self.ms

    def ahead_ms(self) -> int:
        """There is no other clock."""
        return 0
