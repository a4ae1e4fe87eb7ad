"""The orchestrator's end of the streams that GPU hosts open."""
