"""Pure logic of the pool manager: no I/O, no clock, no randomness."""
