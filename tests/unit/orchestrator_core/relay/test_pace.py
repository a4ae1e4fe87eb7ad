"""When readers are woken: at once, or together while output comes in many small pieces."""

import asyncio

from orchestrator_core.relay.pace import FRAMES_MANY, GATHER_S, Pace


class Clock:
    """The loop's clock, set by hand."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.now_s = self.loop.time() + 1_000.0
        self.timers: list[tuple[float, object]] = []

    def time(self) -> float:
        return self.now_s

    def call_at(self, when_s: float, callback: object) -> None:
        self.timers.append((when_s, callback))


class Paced:
    """A pace on a clock that is set by hand, and what was woken."""

    def __init__(self, monkeypatch: object) -> None:
        self.clock = Clock()
        monkeypatch.setattr(asyncio, "get_running_loop", lambda: self.clock)  # type: ignore[attr-defined]
        self.pace = Pace()
        self.woken: list[int] = []

    def frame(self, number: int, after_s: float) -> None:
        """A frame comes, with output for one reader; timers that are due run first."""
        self.pass_s(after_s)
        self.pace.frame()
        self.pace.wake(lambda: self.woken.append(number))

    def pass_s(self, seconds: float) -> None:
        """Lets time pass."""
        self.clock.now_s += seconds
        due = [it for it in self.clock.timers if it[0] <= self.clock.now_s]
        self.clock.timers = [it for it in self.clock.timers if it not in due]
        for _, callback in due:
            callback()  # type: ignore[operator]


async def test_few_frames_wake_their_readers_at_once(monkeypatch: object) -> None:
    """One busy host sends a frame in five milliseconds: nobody waits."""
    paced = Paced(monkeypatch)

    for number in range(20):
        paced.frame(number, GATHER_S * 1.01)

        assert paced.woken == list(range(number + 1))


async def test_many_frames_wake_their_readers_together_within_the_bound(
    monkeypatch: object,
) -> None:
    """From the second window on: in order, all, and none later than `GATHER_S`."""
    paced = Paced(monkeypatch)
    step_s = GATHER_S / (FRAMES_MANY + 1)
    came_s: dict[int, float] = {}
    releases = 0

    for number in range(100):
        before = len(paced.woken)
        came_s[number] = paced.clock.now_s + step_s
        paced.frame(number, step_s)
        releases += len(paced.woken) > before
        held = range(len(paced.woken), number + 1)
        assert all(paced.clock.now_s - came_s[it] <= GATHER_S for it in held)
    paced.pass_s(GATHER_S)

    assert paced.woken == list(range(100))
    assert releases < 100 // FRAMES_MANY + FRAMES_MANY * 2


async def test_after_a_pause_nobody_waits(monkeypatch: object) -> None:
    """How much came before a pause says nothing of what comes after it."""
    paced = Paced(monkeypatch)
    for number in range(3 * FRAMES_MANY):
        paced.frame(number, GATHER_S / (2 * FRAMES_MANY))
    assert len(paced.woken) < 3 * FRAMES_MANY

    paced.pass_s(3 * GATHER_S)
    paced.frame(99, 0.0)

    assert paced.woken == [*range(3 * FRAMES_MANY), 99]
