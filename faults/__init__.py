"""Proof that jobs survive faults: histories, their checker, and a deterministic simulation."""
