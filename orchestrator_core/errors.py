"""Exceptions of the shell. The core has none: there, an expected refusal is a value.

OrchestratorError
├── CannotStartError    the server cannot start as configured (`server`)
└── RefusalError        carries a typed refusal to the edge, where the error table makes it a status
"""

from orchestrator_core.core.outcome import Refusal


class OrchestratorError(Exception):
    """Base of what the orchestrator's shell raises."""


class RefusalError(OrchestratorError):
    """A typed refusal on its way to the caller."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
