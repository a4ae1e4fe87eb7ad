"""Worlds that have run for a while."""

import hashlib

from tests.unit.orchestrator_core.core.checks import Checks
from tests.unit.orchestrator_core.core.world import World
from tests.unit.orchestrator_core.core.world_settings import config_of, other_config

STEPS = 220


def played(seed: int, steps: int = 260) -> World:
    """A world in the middle of its life, whose orchestrator does not crash."""
    world = World(seed, config_of(seed), memory=seed % 2 == 0)
    world.crash = lambda: None  # type: ignore[method-assign]
    world.catalog = seed % 3 == 0
    world.run(steps)
    return world


def play(seed: int, steps: int = STEPS) -> World:
    """One world, checked after every step."""
    checks = Checks()
    world = World(seed, config_of(seed), memory=seed % 2 == 0, faults=seed % 7 != 0)
    world.drains = seed % 3 == 0
    world.other_config = other_config if seed % 4 == 3 else None
    world.catalog = seed % 4 == 1
    world.before, world.observe = checks.before, checks.after
    world.run(steps)
    return world


def digest_of(seed: int) -> str:
    """Digest of everything that the core answered in one world."""
    return hashlib.sha256(repr(play(seed).outputs).encode()).hexdigest()
