"""Exceptions of the shell. The core has none: there, an expected refusal is a value.

OrchestratorError
├── CannotStartError       the server cannot start as configured (`server`)
├── MalformedOutputError   a host sent output that is not what its frame says (`relay`)
└── RefusalError           carries a refusal to the edge, where the error table makes it a status
"""

from orchestrator_core.core.outcome import Refusal


class OrchestratorError(Exception):
    """Base of what the orchestrator's shell raises."""


class CannotStartError(OrchestratorError):
    """The server cannot start as configured; the message says what to change."""


class MalformedOutputError(OrchestratorError):
    """A host sent output that cannot be read, or that is not what its frame says."""


class RefusalError(OrchestratorError):
    """A typed refusal on its way to the caller."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
