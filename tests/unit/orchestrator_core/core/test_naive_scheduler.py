"""Every placement in random worlds is the one that a naive scheduler makes. ORCH-3008, LO-103."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest

from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.effects import Effect
from orchestrator_core.core.events import Event
from orchestrator_core.core.job import Job
from orchestrator_core.core.records import DispatchRecord
from tests.unit.orchestrator_core.core.bench import only
from tests.unit.orchestrator_core.core.naive_scheduler import kept_for_somebody, next_placement
from tests.unit.orchestrator_core.core.world import World
from tests.unit.orchestrator_core.core.world_settings import config_of

STEPS = 220


class Judge:
    """Asks the naive scheduler just before each placement, and once more when a step is over."""

    def __init__(self) -> None:
        self.expected: list[tuple[str, str] | None] = []
        self.placements: Counter[str] = Counter()

    def before(self, world: World) -> None:
        """A new core after a crash is watched too."""
        state = world.core._state
        self.expected = []

        def ask(_job: Job, kept: Mapping[str, str], now_ms: int) -> None:
            lacking = kept_for_somebody(state, now_ms)
            assert all(pool_id in lacking for pool_id in kept if state.pools[pool_id].open)
            self.expected.append(next_placement(state, kept, now_ms))

        state.on_placement = ask

    def after(self, world: World, _event: Event, effects: list[Effect]) -> None:
        """What was placed is what was expected, in order, and nothing more was to be placed."""
        made = [(record.job_id, record.pool_id) for record in only(effects, DispatchRecord)]
        assert made == self.expected
        state, now_ms = world.core._state, world.core._last_ms
        assert next_placement(state, kept_for_somebody(state, now_ms), now_ms) is None
        self.placements.update(pool_id for _, pool_id in made)


def judged(seed: int, config: CoreConfig) -> Judge:
    """One world under the eyes of the naive scheduler."""
    judge = Judge()
    # The naive scheduler knows no caches.
    world = World(seed, config, memory=seed % 2 == 0, faults=seed % 7 != 0, sessions=False)
    world.before, world.observe = judge.before, judge.after
    world.run(STEPS)
    return judge


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_who_is_placed_where_is_what_the_naive_scheduler_says(first: int) -> None:
    """Order of arrival, turns of the classes, memory kept for the older, predicted ends, ties."""
    placements: Counter[str] = Counter()
    for seed in range(first, first + 20):
        weights = (None, (1, 2), (3, 2))[seed % 3]
        config = replace(config_of(seed), decline_offers=False, class_weights=weights)
        placements += judged(seed, config).placements

    assert all(placements[pool_id] > 50 for pool_id in ("p1", "p2", "p3", "p4")), placements
