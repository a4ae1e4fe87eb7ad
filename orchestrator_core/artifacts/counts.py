"""What happened to artifacts since the start, in numbers that only grow. ORCH-3028."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from orchestrator_core.core.outcome import Refusal
from orchestrator_core.errors import RefusalError

IN, OUT, HOST = "in", "out", "host"
"""From clients; to clients; to hosts, as inputs of jobs."""

# What alerts and panels ask for is there before it first happens.
ROOM_REASONS = ("artifact-quota", "artifact-identity-quota", "artifact-count")


@dataclass(slots=True, eq=False)
class ArtifactCounts:
    """`refused` is by reason, of those at admission by rule; `moved_bytes` by direction.

    `damaged` counts readings of content that was not what had been put, or not there.
    """

    refused: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROOM_REASONS, 0))
    moved_bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys((IN, OUT, HOST), 0))
    damaged: int = 0

    def moved(self, direction: str, size_bytes: int) -> None:
        """Content came or went."""
        self.moved_bytes[direction] += size_bytes

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Counts the refusal with which the block ends, if it does."""
        try:
            yield
        except RefusalError as error:
            reason = _reason(error.refusal)
            self.refused[reason] = self.refused.get(reason, 0) + 1
            raise


def _reason(refusal: Refusal) -> str:
    """The rule that a refusal names, else its reason: a bounded number of words."""
    return refusal.policy_label or refusal.reason.value
