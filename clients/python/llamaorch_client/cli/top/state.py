# SPDX-License-Identifier: Apache-2.0
"""What is on the screen and what a key does to it. Pure; bounded by the answers of the server."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, StrEnum

from llamaorch_client.model import Explanation, Job, Overview
from llamaorch_client.model_fleet import Pool

# A selected line of the screen: its section, and the job that it shows.
Mark = tuple[str, str]
PAGE_LINES = 10


class Order(StrEnum):
    """What running jobs are sorted by."""

    START = "start"
    ETA = "eta"
    PROGRESS = "progress"
    POOL = "pool"


class Act(Enum):
    """What a key asks of the program beyond the screen."""

    NOTHING = "nothing"
    QUIT = "quit"
    EXPLAIN = "explain"


@dataclass(slots=True)
class Pane:
    """The explanation of one job, in front of everything. `explanation` comes a little later."""

    job_id: str
    explanation: Explanation | None = None
    problem: str = ""
    scroll: int = 0


@dataclass(slots=True)
class Screen:
    """Everything that a frame is drawn from.

    `problems` say why what is shown is old, by what could not be read. `marks` are the lines of the
    last frame that can be selected, from top to bottom.
    """

    server: str
    pools: Sequence[Pool] = ()
    overview: Overview | None = None
    problems: dict[str, str] = field(default_factory=dict)
    paused: bool = False
    order: Order = Order.START
    selected: Mark | None = None
    pane: Pane | None = None
    marks: list[Mark] = field(default_factory=list)

    def show_pools(self, pools: Sequence[Pool]) -> None:
        """Takes newer pools, unless it is paused."""
        self.problems.pop("pools", None)
        if not self.paused:
            self.pools = pools

    def show(self, overview: Overview) -> None:
        """Takes a newer overview, unless it is paused."""
        self.problems.pop("overview", None)
        if not self.paused:
            self.overview = overview

    def press(self, key: str) -> Act:
        """Does what a key means."""
        if key in ("q", "Q"):
            return Act.QUIT
        if self.pane is not None:
            self._press_in_pane(self.pane, key)
            return Act.NOTHING
        match key:
            case "p" | "P" | " ":
                self.paused = not self.paused
            case "s" | "S":
                orders = list(Order)
                self.order = orders[(orders.index(self.order) + 1) % len(orders)]
            case "up" | "k":
                self._move(-1)
            case "down" | "j":
                self._move(1)
            case "escape":
                self.selected = None
            case "enter" | "e" | "E" if self.selected in self.marks and self.selected is not None:
                self.pane = Pane(self.selected[1])
                return Act.EXPLAIN
            case _:
                pass
        return Act.NOTHING

    def drawn(self, marks: list[Mark]) -> None:
        """Notes what can be selected now; a selection that is gone moves to its neighbour."""
        if self.selected is not None and self.selected not in marks:
            self.selected = self._follow(self.selected, marks)
        self.marks = marks

    def _follow(self, gone: Mark, marks: list[Mark]) -> Mark | None:
        # A job that goes on, e.g. from the queue to a pool, stays selected.
        same_job = [mark for mark in marks if mark[1] == gone[1]]
        if same_job or not marks:
            return same_job[0] if same_job else None
        at = self.marks.index(gone) if gone in self.marks else 0
        return marks[min(at, len(marks) - 1)]

    def _move(self, by: int) -> None:
        if not self.marks:
            return
        if self.selected not in self.marks or self.selected is None:
            self.selected = self.marks[0 if by > 0 else -1]
            return
        at = self.marks.index(self.selected) + by
        self.selected = self.marks[max(0, min(at, len(self.marks) - 1))]

    def _press_in_pane(self, pane: Pane, key: str) -> None:
        steps = {"up": -1, "k": -1, "down": 1, "j": 1}
        steps |= {"page-up": -PAGE_LINES, "page-down": PAGE_LINES}
        if key in ("escape", "enter", "e", "E", "left"):
            self.pane = None
        elif key in steps:
            pane.scroll = max(0, pane.scroll + steps[key])


def in_order(jobs: Sequence[Job], order: Order) -> list[Job]:
    """Running jobs as they are shown; what is not known comes last."""
    match order:
        case Order.START:
            return list(jobs)
        case Order.ETA:
            return sorted(jobs, key=lambda job: _last(job.predicted_end_ms))
        case Order.PROGRESS:
            return sorted(jobs, key=lambda job: -progress(job))
        case Order.POOL:
            return sorted(jobs, key=lambda job: (job.pool_id, job.job_id))


def progress(job: Job) -> float:
    """Share of the expected output that has arrived, 0 to 1; 0 where it is not known."""
    if not job.output_pieces or not job.expected_tokens:
        return 0.0
    return min(1.0, job.output_pieces / job.expected_tokens)


def age_ms(now: datetime | None, then: datetime | None) -> int | None:
    """Milliseconds between two instants of one clock, not below 0; None when one is missing."""
    if now is None or then is None:
        return None
    return max(0, round((now - then).total_seconds() * 1000))


def _last(value: int | None) -> float:
    return float("inf") if value is None else value
