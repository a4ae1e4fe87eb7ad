"""Fleets: files, copies, what-if changes, and offered load."""

from pathlib import Path

import pytest

from orchestrator_core.simulator.fleets import PoolSpec, load_fleet, random_fleet, what_if
from orchestrator_core.simulator.load import capacity_per_ms, offered_load, scaled
from orchestrator_core.simulator.traces import Request
from tests.unit.orchestrator_core.simulator.cases import HOMELAB

POOL = '{ id = "a", slots = 2, prefill = 100, decode = 10 }'
TWO_T4 = (
    PoolSpec("t4-01", slots=4, prefill=1, decode=1),
    PoolSpec("t4-02", slots=4, prefill=1, decode=1),
)


def ids(fleet: tuple[PoolSpec, ...]) -> list[str]:
    """Names of the pools, in order."""
    return [pool.id for pool in fleet]


def load(folder: Path, text: str, name: str = "x") -> tuple[PoolSpec, ...]:
    """Reads a fleet from text."""
    path = folder / "fleets.toml"
    path.write_text(text, encoding="utf-8")
    return load_fleet(path, name)


def test_a_count_makes_copies_with_numbered_names(tmp_path: Path) -> None:
    """A pool without a count keeps its name."""
    fleet = load(
        tmp_path,
        "[fleets.x]\npools = ["
        '{ id = "h", count = 2, slots = 8, prefill = 9, decode = 5, compute_capability = "9.0" },'
        f"{POOL}]",
    )

    assert ids(fleet) == ["h-01", "h-02", "a"]
    assert fleet[0].compute_capability == (9, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = ", r"fleets\.toml: "),
        ("[fleets]\nx = 3", r"fleet x: must be a table with pools"),
        ("[fleets.x]\npools = [3]", r"fleet x: must be a table with pools"),
        ("[other]", r"no \[fleets\.NAME\] table"),
        (f"[fleets.y]\npools = [{POOL}]", r"no fleet 'x'; it has y"),
        ("[fleets.x]\npools = []", r"a fleet has 1 to 10000 pools, this one 0"),
        (f"[fleets.x]\npools = [{POOL}, {POOL}]", r"two pools are named 'a'"),
        (
            '[fleets.x]\npools = [{ id = "a", slots = 2, prefill = 1 }]',
            r"pool 1: decode is missing",
        ),
        (f"[fleets.x]\npools = [{POOL[:-1]}, speed = 3 }}]", r"unknown key 'speed'"),
        (f"[fleets.x]\npools = [{POOL.replace('2', '0')}]", r"slots must be 1 to 1024, is 0"),
        (f"[fleets.x]\npools = [{POOL.replace('= 10 ', '= nan ')}]", r"decode must be positive"),
        (f"[fleets.x]\npools = [{POOL[:-1]}, compute_capability = 8 }}]", r'look like "8\.6"'),
    ],
)
def test_a_wrong_fleet_is_refused_with_what_to_change(
    tmp_path: Path, text: str, message: str
) -> None:
    """The file, the fleet and the pool are named."""
    with pytest.raises(ValueError, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("+t4", ["t4-01", "t4-02", "t4-03"]),
        ("+t4*2", ["t4-01", "t4-02", "t4-03", "t4-04"]),
        ("-t4", ["t4-01"]),
        ("-t4-01", ["t4-02"]),
        ("+new:slots=2,prefill=100,decode=5", ["t4-01", "t4-02", "new"]),
        ("+new:slots=2,prefill=100,decode=5 -t4*2", ["new"]),
    ],
)
def test_what_if_adds_and_removes_pools(change: str, expected: list[str]) -> None:
    """Copies get the next free number."""
    assert ids(what_if(TWO_T4, change)) == expected


def test_a_copy_has_the_numbers_of_its_model() -> None:
    """A second card is as good as the first."""
    second = what_if(HOMELAB, "+fast")[-1]

    assert (second.id, second.slots, second.decode) == ("fast-02", 4, 85)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("+a100", r"has no pool 'a100'; it has t4"),
        ("-t4*3", r"has no pool 't4'|this one 0"),
        ("-t4*2", r"this one 0"),
        ("t4", r"must look like \+NAME"),
        ("+t4*0", r"must look like \+NAME"),
        ("+new:slots=2,prefill=fast,decode=5", r"prefill must be a number, is 'fast'"),
        ("+new:slots=2,prefill=5", r"decode is missing"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused(change: str, message: str) -> None:
    """With what the fleet has."""
    with pytest.raises(ValueError, match=message):
        what_if(TWO_T4, change)


def test_a_random_fleet_depends_on_its_seed_only() -> None:
    """And can always be simulated."""
    assert random_fleet(3) == random_fleet(3)
    assert random_fleet(3) != random_fleet(4)


def test_load_is_the_arrival_rate_over_what_full_pools_serve() -> None:
    """Two slots, 2 s a job when both are busy: one job a second; two a second is load 2."""
    fleet = (PoolSpec("p", slots=2, prefill=1000, decode=20, slope=1.0),)
    requests = tuple(Request(500.0 * n, 1000, 10) for n in range(11))

    assert capacity_per_ms(fleet, requests) == pytest.approx(2 / 2000)
    assert offered_load(fleet, requests) == pytest.approx(2.0)


def test_scaling_reaches_the_load_and_leaves_the_jobs_alone() -> None:
    """Only arrivals move."""
    requests = tuple(Request(100.0 * n * n, 1000 + n, 10) for n in range(20))

    stretched = scaled(requests, HOMELAB, 0.7)

    assert offered_load(HOMELAB, stretched) == pytest.approx(0.7)
    assert [r.prompt_tokens for r in stretched] == [r.prompt_tokens for r in requests]


def test_a_trace_without_a_rate_cannot_be_scaled() -> None:
    """Everything at once has no load."""
    with pytest.raises(ValueError, match="no arrival rate"):
        scaled((Request(0.0, 1, 1), Request(0.0, 1, 1)), HOMELAB, 0.7)
