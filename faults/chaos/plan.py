"""What is done to each process, drawn from a seed. Pure."""

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum

PAUSE_MS = (0, 800)
STOP_MS = (100, 8_000)
MOMENT_MS = (1_000, 9_000)
PASSES_MAX = 4
# Points on the way to readiness are passed once in a life.
ONCE = frozenset({"journal.opened", "listening", "register.before", "register.after"})


class Action(StrEnum):
    """What happens to a process."""

    KILL = "kill"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Life:
    """One life of a process: what happens to it, and when.

    At the `passes`-th pass through failpoint `point`, or `moment_ms` after its start where `point`
    is empty. A stop lasts `stop_ms`; the life goes on then for `moment_ms` and ends with a kill.
    The next life begins `pause_ms` after the end of this one.
    """

    action: Action
    point: str = ""
    passes: int = 1
    moment_ms: int = 0
    stop_ms: int = 0
    pause_ms: int = 0

    @property
    def failpoint(self) -> str:
        """The value of the environment variable."""
        return f"{self.point}:{self.passes}:{self.action}" if self.point else ""


def lives(seed: str, points: Collection[str]) -> Iterator[Life]:
    """Each point once with a kill and every third with a stop too, then random moments for ever.

    Between two points there is a random moment now and then.
    """
    chance = random.Random(seed)  # noqa: S311 - a seed is asked for
    ordered = sorted(points)
    todo = [_at(chance, point, Action.KILL) for point in ordered]
    todo += [_at(chance, point, Action.STOP) for point in chance.sample(ordered, len(ordered) // 3)]
    chance.shuffle(todo)
    for life in todo:
        if chance.random() < 0.25:  # noqa: PLR2004 - one in four
            yield moment(chance)
        yield life
    while True:
        yield moment(chance)


def moment(chance: random.Random) -> Life:
    """A life that ends at a random moment."""
    action = Action.STOP if chance.random() < 0.4 else Action.KILL  # noqa: PLR2004 - two in five
    return Life(
        action,
        moment_ms=chance.randint(*MOMENT_MS),
        stop_ms=_stop_ms(chance),
        pause_ms=chance.randint(*PAUSE_MS),
    )


def _at(chance: random.Random, point: str, action: Action) -> Life:
    return Life(
        action,
        point=point,
        passes=1 if point in ONCE else chance.randint(1, PASSES_MAX),
        moment_ms=chance.randint(*MOMENT_MS) // 4,
        stop_ms=_stop_ms(chance),
        pause_ms=chance.randint(*PAUSE_MS),
    )


def _stop_ms(chance: random.Random) -> int:
    """Short stops are the rule, some last past the heartbeat timeout."""
    longest = STOP_MS[1] if chance.random() < 0.3 else 1_500  # noqa: PLR2004 - three in ten
    return chance.randint(STOP_MS[0], longest)
