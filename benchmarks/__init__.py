"""Benchmarks: commands that measure, and say whether the result meets its bar."""
