"""Token relay: what pools generate, to whoever follows a job; it never passes through the core."""
