"""Spans, metrics and log lines of orchestratord, derived from the core's effects. Design §8."""
