"""The streams to the orchestrator: what is received there, and what is sent."""
