"""Processes that put load on a relay: GPU hosts, clients, a bare relay, a sink for telemetry."""
