"""What `llorch explain` shows of a decision: what differs, and what fits."""

import re
from dataclasses import replace

import pytest

from llamaorch_client.cli import deciding
from llamaorch_client.cli.cells import gib
from llamaorch_client.model import (
    Candidate,
    Decision,
    Exclusion,
    ExclusionReason,
    Shortfall,
    SnapshotFacts,
)

FACTS = SnapshotFacts(
    slots_total=2,
    slots_free=1,
    vram_total_bytes=None,
    vram_free_bytes=None,
    kv_free_bytes=0,
    first_token_ms=None,
    perf_tokens_per_s=40.0,
    prefill_tokens_per_s=900.0,
)
CPU = Candidate(
    pool_id="pool-0",
    replica_id="r",
    predicted_end_ms=900,
    first_token_ms=100,
    decode_ms=800,
    kv_warm=False,
    slots_free=1,
    vram_headroom_bytes=0,
    snapshot_version=7,
    snapshot_age_ms=40,
    prompt_ms=60,
    snapshot=FACTS,
)
GPU = replace(
    CPU,
    pool_id="pool-1",
    kv_warm=True,
    vram_headroom_bytes=2**31,
    perf_scale=0.5,
    snapshot=replace(FACTS, vram_free_bytes=2**32),
)


def decision(*candidates: Candidate) -> Decision:
    """A decision between them; the first was chosen."""
    return Decision(
        rules_version=1,
        job_id="j",
        attempt=1,
        decided_at=None,
        pool_id=candidates[0].pool_id,
        decided_by="score",
        candidates=candidates,
        candidates_total=len(candidates),
        exclusions=(),
        exclusions_total=0,
        waited_ms=0,
    )


def test_a_column_that_says_nothing_is_left_out() -> None:
    """Without a GPU there is no memory to speak of; cold caches and full clocks are the rule."""
    silent = {"KV", "HEADROOM", "VRAM FREE", "CLOCKS"}

    titles, rows, gone = deciding.candidates(decision(CPU), 400)
    both, _, _ = deciding.candidates(decision(CPU, GPU), 400)

    assert silent.isdisjoint(titles)
    assert gone == ()
    assert rows[0][0] == "* pool-0"
    assert dict(zip(titles, rows[0], strict=True))["FREE SLOTS"] == "1/2"
    assert silent < set(both)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
def test_what_does_not_fit_is_named(width: int) -> None:
    """The columns that a decision cannot be read without stay, even on a tiny terminal."""
    titles, rows, gone = deciding.candidates(decision(CPU, GPU), width)
    every, _, _ = deciding.candidates(decision(CPU, GPU), 400)

    columns = zip(titles, *rows, strict=True)
    assert sum(max(map(len, column)) + 2 for column in columns) - 2 <= max(width, 62)
    assert {*titles, *gone} == set(every)
    assert {"  POOL", "SCORE", "FIRST TOKEN", "DECODE", "KV", "FREE SLOTS"} <= set(titles)


@pytest.mark.parametrize(
    ("size_bytes", "told"),
    [(None, "-"), (0, "0 MiB"), (5 * 2**20, "5 MiB"), (2**29, "0.5 GiB"), (2**34, "16.0 GiB")],
)
def test_little_memory_is_not_told_as_none(size_bytes: int | None, told: str) -> None:
    """A small cache of a small model is not 0.0 GiB."""
    assert gib(size_bytes) == told


def lacking(pool_id: str, reason: ExclusionReason, required: str, offered: str) -> Exclusion:
    """A pool that lacks one thing."""
    return Exclusion(pool_id, (Shortfall(reason, required, offered),))


def test_pools_that_lack_the_same_share_a_row() -> None:
    """A hundred rows that say the same hide the one that does not."""
    excluded = [
        lacking("small", ExclusionReason.VRAM_TOTAL, str(2**34), str(2**33)),
        *(lacking(f"p{n}", ExclusionReason.MODEL, "m", "n") for n in range(98)),
        lacking("split", ExclusionReason.DEVICE_SHARE, f"{2**33} on GPU-1", str(2**32)),
    ]

    rows = deciding.exclusions(excluded)

    assert rows == [
        ("p0, p1, p2 +95", "MODEL", "m", "n"),
        ("small", "VRAM_TOTAL", "16.0 GiB", "8.0 GiB"),
        ("split", "DEVICE_SHARE", "8.0 GiB on GPU-1", "4.0 GiB"),
    ]


def test_what_differs_by_a_byte_is_told_to_the_byte() -> None:
    """Needs 6.0 GiB, has 6.0 GiB would be no answer."""
    excluded = [lacking("p", ExclusionReason.KV_ROOM, str(6 * 2**30), str(6 * 2**30 - 1))]

    assert deciding.exclusions(excluded) == [("p", "KV_ROOM", "6442450944", "6442450943")]


def test_pools_of_which_each_lacks_something_else_are_counted_in_the_end() -> None:
    """The table stays within a screen."""
    excluded = [lacking(f"p{n}", ExclusionReason.CONTEXT, "99", str(n)) for n in range(90)]

    rows = deciding.exclusions(excluded)

    assert len(rows) == deciding.GROUPS_SHOWN + 1
    assert rows[-1] == (f"{90 - deciding.GROUPS_SHOWN} more", "(--json has them)", "", "")


def test_instants_of_the_servers_clock_are_times_of_day() -> None:
    """Nobody reads milliseconds since 1970."""
    excluded = [
        lacking("p", ExclusionReason.NOT_READY, "ready", "refused, closed until 1763801234567")
    ]

    ((_, _, _, offered),) = deciding.exclusions(excluded)

    assert re.fullmatch(r"refused, closed until \d\d:\d\d:14", offered)
