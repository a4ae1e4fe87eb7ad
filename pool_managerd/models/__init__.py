"""Models that the pool manager can make by itself."""
