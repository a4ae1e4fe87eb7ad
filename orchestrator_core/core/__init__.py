"""The pure core: every decision, as `step(event, now_ms) -> effects`.

No I/O, no clock, no randomness: ids, seeds and time enter as event data. Reading order: `job`,
`pool`, `events`, `effects`, `states`, `queue`, `admission`, `placement`, `machine`.
"""
