"""The plan of a chaos campaign: nothing is left out, and a seed says it all."""

from collections import Counter
from itertools import islice

from faults.chaos.plan import ENGINE, PASSES_MAX, STOP_MS, Action, Fault, plan

POINTS = {"orchestratord": [f"o{n}" for n in range(12)], "host-1": [f"h{n}" for n in range(9)]}
MANY = 400


def faults(seed: str) -> list[Fault]:
    """The first faults of a plan."""
    return list(islice(plan(seed, POINTS), MANY))


def test_every_point_of_every_target_is_killed_at_once() -> None:
    """Each exactly one time, and every third is stopped at too."""
    at_points = [fault for fault in faults("a") if fault.point]

    killed = Counter((f.target, f.point) for f in at_points if f.action is Action.KILL)
    stopped = Counter((f.target, f.point) for f in at_points if f.action is Action.STOP)

    assert killed == Counter({(t, p): 1 for t, names in POINTS.items() for p in names})
    assert sum(stopped.values()) == 12 // 3 + 9 // 3
    assert set(stopped) <= set(killed)


def test_random_moments_hit_everything_and_never_end() -> None:
    """Engines too; stops keep to their bounds."""
    moments = [fault for fault in faults("b") if not fault.point]

    assert {fault.target for fault in moments} == {*POINTS, ENGINE}
    assert {fault.action for fault in moments} == {Action.KILL, Action.STOP}
    assert all(STOP_MS[0] <= fault.stop_ms <= STOP_MS[1] for fault in moments)
    assert len(faults("b")) == MANY


def test_a_seed_gives_the_same_plan_and_another_seed_another() -> None:
    """A campaign can be asked for again."""
    assert faults("c") == faults("c") != faults("d")


def test_a_failpoint_is_written_as_the_services_read_it() -> None:
    """Name, pass and action."""
    (fault, *_) = [fault for fault in faults("e") if fault.point]

    name, count, action = fault.failpoint.split(":")

    assert (name, action) == (fault.point, fault.action)
    assert 1 <= int(count) <= PASSES_MAX
