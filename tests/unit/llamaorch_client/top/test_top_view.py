"""Frames of `llorch top`: as large as the terminal, whatever is in them."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from llamaorch_client.cli.top import grid, view
from llamaorch_client.cli.top.grid import ASCII, UNICODE, Bar, Column, Line, Section
from llamaorch_client.cli.top.state import Pane, Screen
from llamaorch_client.errors import ErrorDetail
from llamaorch_client.model import ExclusionReason, Explanation, JobState, WaitCause
from tests.unit.llamaorch_client.top import sample


def plain(screen: Screen, width: int = 80, height: int = 24) -> list[str]:
    """The lines of a frame."""
    return [line.plain for line in view.frame(screen, width, height, UNICODE)]


@pytest.mark.parametrize("seed", range(80))
def test_a_frame_has_exactly_the_size_of_the_terminal(seed: int) -> None:
    """No line is wider, none is missing, and nothing in it can move the cursor."""
    rng = random.Random(seed)  # noqa: S311 - a seeded test
    screen, glyphs = sample.any_screen(rng), rng.choice([UNICODE, ASCII])
    width = rng.choice([1, 2, 20, 79, 80, 149, 150, rng.randrange(1, 250)])
    height = rng.choice([1, 2, 3, 10, 24, rng.randrange(1, 80)])

    lines = view.frame(screen, width, height, glyphs)

    assert len(lines) == height
    for line in lines:
        assert cell_len(line.plain) <= width
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202e\u2028\u2066]", line.plain)


def test_everything_has_a_place_at_80_by_24() -> None:
    """Each section has its title and a line, with the numbers that an operator looks for."""
    shown = plain(sample.busy(waiting=12, runs=6, over=20, pools=4))

    text = "\n".join(shown)
    for word in ("POOLS 4", "QUEUE 12 of 100", "RUNNING 6", "DECISIONS", "ENDED 20"):
        assert word in text
    assert "interactive: 12 waiting, the last starts in 10.8 s" in text
    pool = next(line for line in shown if "gpu-0" in line)
    for word in ("READY", "1/4", "12.0/24.0", "75%", "71 C", "45.2"):
        assert word in pool
    run = next(line for line in shown if "run-0" in line)
    assert "10/64" in run
    assert "-> gpu-a" in text.replace("→", "->")
    assert "FINISHED length" in text


def test_a_wide_terminal_shows_what_happened_beside_what_is() -> None:
    """Pools and ended jobs stand side by side, and more columns have room."""
    shown = plain(sample.busy(), 220, 30)

    assert any("POOLS 2" in line and "DECISIONS" in line for line in shown)
    assert any("desk" in line for line in shown)


def test_a_failed_job_and_an_unwell_pool_say_why() -> None:
    """The reason of the error stands beside the state, and below the pool."""
    error = ErrorDetail(code="ABORTED", reason="WORKER_RESET", message="gone")
    told = sample.overview(ended=(sample.ended("e", JobState.FAILED, error=error),))
    pool = sample.pool("gpu-a", "UNREADY", state_reason="DEVICE_ERROR: GPU is lost")
    text = "\n".join(plain(Screen("s", [pool], told)))

    assert "FAILED WORKER_RESET" in text
    assert "DEVICE_ERROR: GPU is lost" in text


def test_trouble_stands_in_the_first_line() -> None:
    """A lost server, a silent journal, a drain and a pause are all told there."""
    lost, silent, drains, paused = (sample.busy() for _ in range(4))
    lost.problems["overview"] = "trying again: 127.0.0.1:7070 does not answer"
    silent.overview = sample.overview(store_unavailable=True)
    drains.overview = sample.overview(draining=True)
    paused.press("p")

    assert "does not answer" in plain(lost)[0]
    assert "journal" in plain(silent)[0]
    assert "shuts down" in plain(drains)[0]
    assert "PAUSED" in plain(paused)[0]
    assert "connecting" in plain(Screen("s"))[0]


def test_the_first_line_says_how_many_pools_are_ready_unless_all_are() -> None:
    """Whether it is healthy is seen without reading the table; what is away has no free slots."""
    screen = sample.busy()
    well = plain(screen)[0]
    screen.pools = [*screen.pools, sample.pool("away", "DISCONNECTED", connected=False)]

    lines = plain(screen)

    assert "pools" not in well
    assert lines[0].endswith("2 running, 3 waiting, 2 of 3 pools ready")
    (away,) = [line for line in lines if "DISCONNECTED" in line]
    assert not re.search(r"\d/\d", away.partition("DISCONNECTED")[2][:12])


def test_pools_in_trouble_come_first() -> None:
    """Of a hundred a terminal shows five, and nobody scrolls there."""
    pools = [sample.pool(f"gpu-{number:03}") for number in range(100)]
    pools[60] = sample.pool("gpu-060", "UNREADY")
    pools[70] = sample.pool("gpu-070", "DISCONNECTED")

    shown = [line.split()[0] for line in plain(Screen("s", pools, sample.overview()))[2:5]]

    assert shown == ["gpu-060", "gpu-070", "gpu-000"]


def test_a_list_that_is_withheld_is_not_told_as_empty() -> None:
    """While the journal is silent, or where all of it belongs to others."""
    silent = plain(Screen("s", (), sample.overview(ended_total=7, store_unavailable=True)))
    others = plain(Screen("s", (), sample.overview(ended_total=7, running_total=2)))
    fresh = plain(Screen("s", (), sample.overview()))

    assert "  not told while the journal does not answer" in silent
    assert others.count("  none that may be seen here") == 2
    assert "  nothing runs" in fresh
    assert fresh.count("  none yet") == 2


def test_the_selected_line_is_marked_and_in_sight() -> None:
    """Also where its section has no room for it: that scrolls, and says what it shows."""
    screen = sample.busy(waiting=40)
    screen.selected = ("queue", "wait-39")

    shown = plain(screen)

    assert any(line.startswith("> wait-39") for line in shown)
    assert any(re.search(r"QUEUE 40 of 100 \(\d+-41\)", line) for line in shown)


def test_the_pane_shows_candidates_with_scores_and_why_others_were_not() -> None:
    """The winner is marked; an excluded pool says what it lacks."""
    screen = sample.busy()
    screen.pane = Pane("run-0", sample.explanation())

    text = "\n".join(plain(screen))

    assert "why: job run-0" in text
    assert re.search(r"\* gpu-a +900 ms", text)
    assert re.search(r"  gpu-b +1400 ms", text)
    assert "decided by score" in text
    assert re.search(r"gpu-c +COMPUTE_CAP +8.6 +7.5", text)


def test_the_pane_says_why_a_job_waits_in_whole_sentences() -> None:
    """What would help stands at their ends, so they are broken and not cut."""
    screen = sample.busy()
    cause = WaitCause(
        reason=ExclusionReason.NOT_READY,
        sentence="98 pools drained by an operator: gpu-00, gpu-01, gpu-02 and 95 more",
        remedy="`llorch undrain gpu-00` or `llorch undrain gpu-01` lets it take work again",
        pools_total=98,
        pool_ids=("gpu-00",),
    )
    told = Explanation(
        sample.job("wait-0"), (), (), "", 98, "What could serve it is drained.", "", (cause,)
    )
    screen.pane = Pane("wait-0", told)

    lines = [line.rstrip() for line in plain(screen, 60)]

    at = lines.index("WAITS BECAUSE")
    assert " ".join(" ".join(lines[at + 1 : lines.index("TRACE")]).split()) == (
        f"{told.wait_summary} {cause.sentence} helps: {cause.remedy}"
    )


def test_without_unicode_only_ascii_is_drawn() -> None:
    """For terminals that cannot show blocks and arrows."""
    lines = view.frame(sample.busy(), 80, 24, ASCII)

    assert all(line.plain.isascii() for line in lines)
    assert any("####" in line.plain for line in lines)


@given(st.lists(st.integers(0, 60), max_size=6), st.integers(0, 120))
def test_lines_are_shared_fairly(wanted: list[int], room: int) -> None:
    """Never more than there is or than is wanted; none is left while somebody wants it."""
    given_ = grid.allot(wanted, room)

    assert sum(given_) == min(room, sum(wanted))
    assert all(got <= want for got, want in zip(given_, wanted, strict=True))
    # Who has the least got all that it wanted, or as much as others give or take a line.
    short = [got for got, want in zip(given_, wanted, strict=True) if got < want]
    if short and room >= 3 * len(wanted):
        assert max(given_) <= min(short) + 1 or max(given_) <= 3


@given(
    st.lists(
        st.builds(
            Column,
            st.uuids().map(str),
            st.integers(1, 20),
            st.integers(0, 5),
            st.booleans(),
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 200),
)
def test_columns_give_way_in_their_order(columns: list[Column], width: int) -> None:
    """What fits is shown in order; what was dropped was more dispensable than what stays."""
    shown = grid.fit(columns, width)

    assert list(shown) == [column for column in columns if column in shown]
    dropped = [column.drop for column in columns if column not in shown]
    assert all(column.drop <= min(dropped) for column in shown) if dropped else True
    taken = sum(shown.values()) + len(shown) - 1
    assert taken <= width or not any(column.drop for column in shown)
    if any(column.grow for column in shown) and taken <= width:
        assert taken == width


def test_a_bar_is_as_long_as_its_share() -> None:
    """Empty, half and full; where there is no room, or no number, only the words are left."""
    column = Column("X", 14)

    def drawn(share: float | None, width: int = 14) -> str:
        section = Section("T", (Column("X", width),), [Line((Bar(share, "9/9", "red"),))])
        return grid.draw(section, 2 + width, 2, None, ASCII)[1].plain[2:]

    assert [drawn(share) for share in (0.0, 0.5, 1.0, 2.0)] == [
        ".......... 9/9",
        "#####..... 9/9",
        "########## 9/9",
        "########## 9/9",
    ]
    assert (drawn(None), drawn(0.5, 5)) == ("9/9", "9/9")
    assert column.width == 14
