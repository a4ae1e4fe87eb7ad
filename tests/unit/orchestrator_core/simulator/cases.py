"""Small fleets and traces for the tests of the simulator."""

from hypothesis import strategies as st

from orchestrator_core.simulator.fleets import PoolSpec
from orchestrator_core.simulator.traces import Request, from_zero

HOMELAB = (
    PoolSpec("fast", slots=4, prefill=3200, decode=85, slope=0.12, vram_gib=24),
    PoolSpec("slow", slots=1, prefill=350, decode=14, slope=0.3, compute_capability=(6, 1)),
)


@st.composite
def pools(draw: st.DrawFn) -> PoolSpec:
    """A pool with any plausible numbers."""
    return PoolSpec(
        id=f"p{draw(st.integers(0, 10**9))}",
        slots=draw(st.integers(1, 5)),
        prefill=draw(st.floats(10, 5000)),
        decode=draw(st.floats(1, 200)),
        slope=draw(st.sampled_from((0.0, 0.05, 0.3, 1.0, 2.5))),
    )


def fleets(most: int = 3) -> st.SearchStrategy[tuple[PoolSpec, ...]]:
    """A few pools of different names."""
    return st.lists(pools(), min_size=1, max_size=most, unique_by=lambda p: p.id).map(tuple)


def traces(most: int = 25) -> st.SearchStrategy[tuple[Request, ...]]:
    """A few requests, some of them at one instant."""
    request = st.builds(
        Request,
        arrival_ms=st.integers(0, 20_000).map(float),
        prompt_tokens=st.integers(0, 3000),
        output_tokens=st.integers(1, 300),
    )
    return st.lists(request, min_size=1, max_size=most).map(from_zero)
