"""What a key does to the screen of `llorch top`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaorch_client.cli.top import view
from llamaorch_client.cli.top.grid import UNICODE
from llamaorch_client.cli.top.state import Act, Mark, Order, Pane, in_order
from tests.unit.llamaorch_client.top import sample

MARKS: list[Mark] = [("queue", "a"), ("running", "b"), ("ended", "c")]


def test_arrows_move_the_selection_and_stop_at_the_ends() -> None:
    """The first press selects the nearest end; nothing wraps around."""
    screen = sample.busy()
    screen.drawn(MARKS)

    seen = []
    for key in ("down", "down", "down", "down", "up", "up", "up"):
        assert screen.press(key) is Act.NOTHING
        seen.append(screen.selected)

    assert [mark and mark[1] for mark in seen] == ["a", "b", "c", "c", "b", "a", "a"]


def test_a_selected_job_stays_selected_where_it_goes() -> None:
    """From the queue to a pool, and from there to the ended ones."""
    screen = sample.busy()
    screen.drawn(MARKS)
    screen.press("down")

    screen.drawn([("running", "x"), ("running", "a")])
    moved = screen.selected
    screen.drawn([("running", "x")])

    assert moved == ("running", "a")
    assert screen.selected == ("running", "x")
    screen.drawn([])
    assert screen.selected is None


def test_pause_keeps_what_is_shown_and_goes_on_with_the_newest() -> None:
    """Answers that come meanwhile change nothing."""
    screen = sample.busy()
    before = screen.overview

    screen.press("p")
    screen.show(sample.overview())
    screen.show_pools([])
    paused = (screen.overview, len(screen.pools))
    screen.press("p")
    screen.show(newest := sample.overview(ended_total=7))

    assert paused == (before, 2)
    assert screen.overview is newest


def test_explain_opens_a_pane_for_the_selected_job_only() -> None:
    """Without a selection there is nothing to explain; escape closes the pane, q ends all."""
    screen = sample.busy()
    screen.drawn(MARKS)

    nothing = screen.press("e")
    screen.press("down")
    asked = screen.press("enter")
    pane = screen.pane
    screen.press("escape")

    assert (nothing, asked) == (Act.NOTHING, Act.EXPLAIN)
    assert pane == Pane("a")
    assert screen.pane is None
    assert screen.press("q") is Act.QUIT


def test_a_pane_scrolls_within_its_text() -> None:
    """However often a key is pressed, the last line stays on the screen."""
    screen = sample.busy()
    screen.pane = Pane("run-0", sample.explanation())
    for _ in range(30):
        screen.press("page-down")

    lines = view.frame(screen, 80, 10, UNICODE)

    assert any("0af7651916cd43dd8448eb211c80319c" in line.plain for line in lines)
    screen.press("up")
    assert screen.pane is not None
    assert 0 < screen.pane.scroll < 30


@pytest.mark.parametrize(
    ("presses", "order", "first"),
    [(0, Order.START, "old"), (1, Order.ETA, "soon"), (2, Order.PROGRESS, "far"), (4, None, "old")],
)
def test_s_sorts_running_jobs(presses: int, order: Order | None, first: str) -> None:
    """Each press takes the next order, and after the last the first again."""
    jobs = (
        sample.running("old", predicted_end_ms=None, pool_id="z"),
        sample.running("soon", predicted_end_ms=5, pool_id="y"),
        sample.running("far", output_pieces=9, expected_tokens=10, predicted_end_ms=9),
    )
    screen = sample.busy()

    for _ in range(presses):
        screen.press("s")

    assert order is None or screen.order is order
    assert in_order(jobs, screen.order)[0].job_id == first


@given(
    st.lists(st.sampled_from(["up", "down", "e", "escape", "s", "p", "x", "page-down"])),
    st.lists(st.lists(st.sampled_from([*MARKS, ("queue", "d"), ("running", "e")]), unique=True)),
)
def test_the_selection_is_always_one_of_the_lines(
    keys: list[str], frames: list[list[Mark]]
) -> None:
    """Whatever is pressed between whatever frames."""
    screen = sample.busy()
    for index, marks in enumerate(frames):
        screen.drawn(marks)
        assert screen.selected is None or screen.selected in marks
        for key in keys[index::2]:
            screen.press(key)
            assert screen.selected is None or screen.selected in screen.marks
