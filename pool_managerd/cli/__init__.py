"""Commands of `pool-managerd` besides the one that runs it."""
