"""Kills and stops real processes at random moments and at every failpoint: `make chaos`."""
