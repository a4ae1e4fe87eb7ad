"""Fixtures shared with the tests of orchestratord."""

from tests.integration.orchestrator.conftest import start_orchestrator

__all__ = ["start_orchestrator"]
