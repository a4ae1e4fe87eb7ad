"""The pure core: every decision, as `step(event, now_ms) -> effects`. No I/O, no clock, no randomness."""
