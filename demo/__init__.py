"""Runs both services on this machine: `make demo`, `make up`, and the acceptance tests."""
