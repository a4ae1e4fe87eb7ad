"""What is done to which process, drawn from a seed. Pure."""

import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

ENGINE = "engine"
PAUSE_MS = (0, 800)
STOP_MS = (100, 8_000)
SHORT_STOP_MS = 1_500
MOMENT_MS = (100, 2_000)
PASSES_MAX = 4
# Points on the way to readiness are passed once in a life.
ONCE = frozenset({"journal.opened", "listening", "register.before", "register.after"})


class Action(StrEnum):
    """What happens to a process."""

    KILL = "kill"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of one process.

    At the `passes`-th pass through failpoint `point`, or after `moment_ms` where `point` is empty.
    A stop lasts `stop_ms`; after a kill the process is started again after `pause_ms`. The process
    is the one named `target`; `ENGINE` is any engine of any host.
    """

    target: str
    action: Action
    point: str = ""
    passes: int = 1
    moment_ms: int = 0
    stop_ms: int = 0
    pause_ms: int = 0
    tries: int = 1

    @property
    def failpoint(self) -> str:
        """The value of the environment variable."""
        return f"{self.point}:{self.passes}:{self.action}" if self.point else ""


def plan(seed: str, points: Mapping[str, Collection[str]]) -> Iterator[Fault]:
    """Each point of each target with a kill and every third with a stop too, then chance for ever.

    Between two points there is a fault at a random moment now and then, of an engine or of a
    target.
    """
    chance = random.Random(seed)  # noqa: S311 - a seed is asked for
    todo: list[Fault] = []
    for target, names in points.items():
        ordered = sorted(names)
        stops = set(chance.sample(ordered, len(ordered) // 3))
        todo += [_at(chance, target, point, Action.KILL) for point in ordered]
        todo += [_at(chance, target, point, Action.STOP) for point in ordered if point in stops]
    chance.shuffle(todo)
    for fault in todo:
        if chance.random() < 0.4:  # noqa: PLR2004 - two in five
            yield _moment(chance, list(points))
        yield fault
    while True:
        yield _moment(chance, list(points))


def _moment(chance: random.Random, targets: list[str]) -> Fault:
    return Fault(
        chance.choice([*targets, ENGINE, ENGINE]),
        Action.STOP if chance.random() < 0.4 else Action.KILL,  # noqa: PLR2004 - two in five
        moment_ms=chance.randint(*MOMENT_MS),
        stop_ms=_stop_ms(chance),
        pause_ms=chance.randint(*PAUSE_MS),
    )


def _at(chance: random.Random, target: str, point: str, action: Action) -> Fault:
    return Fault(
        target,
        action,
        point=point,
        passes=1 if point in ONCE else chance.randint(1, PASSES_MAX),
        stop_ms=_stop_ms(chance),
        pause_ms=chance.randint(*PAUSE_MS),
    )


def _stop_ms(chance: random.Random) -> int:
    """Short stops are the rule, some last past the heartbeat timeout."""
    longest = STOP_MS[1] if chance.random() < 0.3 else SHORT_STOP_MS  # noqa: PLR2004
    return chance.randint(STOP_MS[0], longest)
