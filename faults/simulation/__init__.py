"""Runs both services and their clients on virtual time, with faults drawn from a seed."""
