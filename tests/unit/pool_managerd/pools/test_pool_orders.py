"""One pool in any order of events, in virtual time. ORCH-3001, ORCH-3038, ORCH-3040, ORCH-3053."""

import asyncio

from hypothesis import example, given, settings
from hypothesis import strategies as st

from faults.simulation.virtual_time import VirtualLoop
from pool_managerd.core.replica import PoolState, Reason
from tests.unit.pool_managerd.pools.pool_world import ACTIONS, CLOSED_WITHIN_S, NO, World, make_pool

STEPS = st.tuples(
    st.sampled_from(sorted(set(ACTIONS) - {"open", "cured", "revived"})),
    st.sampled_from([0, 0, 0, 1, 50, 150, 1_000, 10_000]),
)
BEGINS = ([("open", 1_000)], [("open", 0)], [("hold", 0), ("open", 0)])
CURE = [
    *((name, 0) for name in ("whole", "starts", "well", "end", "undrain", "unhold")),
    ("well", 30_000),
    ("cured", 0),
    ("reload", 30_000),
    ("revived", 0),
]
"""Then the pool serves; one that gave up serves once it is told to try again."""


def check(world: World, held: bool, drained: bool) -> None:
    """What holds at every instant."""
    state, reason, _ = world.pool.state()
    assert len(world.running) <= 1
    if state is PoolState.READY:
        assert world.pool.accepts_work
        assert (held, drained, world.pool.incarnation.circuit.open) == (False, False, False)
        assert world.running == [world.pool.incarnation.engine]
        assert world.claims == {"p"}
    if world.pool.accepts_work:
        assert (state, reason) == (PoolState.READY, NO)


async def play(world: World, script: list[tuple[str, int]]) -> None:
    """Does one thing after the other, at the end perhaps what cures all, and closes the pool."""
    pool = make_pool(world)
    held = drained = False
    for name, wait_ms in script:
        if name in ("cured", "revived"):
            gave_up = name == "cured" and pool.state()[1] is Reason.RESTART_STORM
            assert gave_up or pool.accepts_work, pool.state()
        ACTIONS[name](world)
        held = (held or name == "hold") and name != "unhold"
        drained = (drained or name == "drain") and name != "undrain"
        check(world, held, drained)
        # Either one round of the loop, in which much is half done, or some time.
        await asyncio.sleep(wait_ms / 1000)
        check(world, held, drained)
    pool.close()
    async with asyncio.timeout(CLOSED_WITHIN_S):
        await pool.closed.wait()
        await asyncio.gather(*world.tasks, return_exceptions=True)
    assert not world.running
    assert not world.claims
    for task in world.tasks:
        assert task.cancelled() or task.exception() is None


@settings(deadline=None)
@example(BEGINS[0], [("attempts_fail", 0), ("ends", 1_000)], True)
@example(BEGINS[0], [("slow_stop", 0), ("ends", 1), ("reload", 1_000)], True)
@example(BEGINS[0], [("endless_stop", 0), ("ends", 10_000)], True)
@given(st.sampled_from(BEGINS), st.lists(STEPS, max_size=25), st.booleans())
def test_in_any_order_one_engine_at_a_time_and_none_after_close(
    begin: list[tuple[str, int]], script: list[tuple[str, int]], is_cured: bool
) -> None:
    """READY with a running engine alone, and never while held, drained or tripped.

    Memory is claimed for that engine alone. Whatever happened, the pool serves again once nothing
    is wrong any more, and it can be closed.
    """
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    try:
        world = World(loop)
        loop.run_until_complete(play(world, [*begin, *script, *(CURE if is_cured else [])]))
    finally:
        loop.clean_up()
        asyncio.set_event_loop(None)
        loop.close()
