"""A log that was begun anew is filled from the host of an earlier attempt. LO-304, LO-305."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from faults.simulation.virtual_time import VirtualLoop
from orchestrator_core.core.job import Attempt
from orchestrator_core.hosts import bringing
from orchestrator_core.hosts.bringing import Bringing
from orchestrator_core.hosts.link import HostLink, LinkTerms
from orchestrator_core.hosts.refilling import refill
from orchestrator_core.hosts.registry import Hosts
from orchestrator_core.relay.items import Frame
from orchestrator_core.relay.relay import Relay, RelayLimits
from orchestrator_core.relay.sides import PATIENCE_S
from tests.unit.orchestrator_core.relay.logs import frames

GRACE_S = 10.0
WORDS = [[f"word{number} "] for number in range(5)]
KEY = ("job", 1)


@dataclass(slots=True)
class Bench:
    """A job whose first attempt ran on `old`, and a log that knows nothing of it."""

    hosts: Hosts = field(default_factory=Hosts)
    relay: Relay = field(default_factory=lambda: Relay(RelayLimits()))
    former: Attempt = field(default_factory=lambda: Attempt("job", 1, "p", "p#1", "old", sent_ms=0))
    told: list[int] = field(default_factory=list)
    took_s: float = -1.0

    def __post_init__(self) -> None:
        """After a restart."""
        self.relay.log("job").doubtful = True

    def tell(self, former: Attempt) -> None:
        """Notes how much text readers had when they heard of the attempt."""
        if not self.told:
            self.told.append(self.relay.log("job").next_offset)

    def connect(self, *, holds: bool = True) -> HostLink:
        """The host registers; its output is kept, and not taken."""
        link = HostLink("old", "boot", 1, LinkTerms(1, 1, 1, 1))
        if holds:
            link.bindings.bind(KEY)
            link.unbind(KEY)
            self.former.held_bytes = sum(frame.text_bytes for frame in self.frames())
        self.hosts.connect(link)
        return link

    def frames(self) -> list[Frame]:
        """What the host has."""
        return frames(WORDS)

    def send(self, link: HostLink, frame: Frame) -> None:
        """A frame arrives, if it is taken."""
        if link.counts(KEY):
            self.relay.append_text("job", frame)

    async def refilled(self) -> bool:
        """True when the log is whole."""
        began_s = asyncio.get_running_loop().time()
        await refill(self.relay, self.hosts, self.former, self.tell, GRACE_S)
        self.took_s = asyncio.get_running_loop().time() - began_s
        return not self.relay.log("job").doubtful


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a story in virtual time."""
    loop = VirtualLoop()
    try:
        loop.run_until_complete(story())
    finally:
        loop.clean_up()
        loop.close()


def asked(link: HostLink) -> list[int]:
    """From which pieces on the host was asked."""
    return [command.seek.first_index for command in link._outbox if command.HasField("seek")]


def test_all_that_the_host_holds_comes_into_the_log() -> None:
    """Readers hear of the attempt before its text; afterwards nothing more of it is taken."""
    bench = Bench()

    async def story() -> None:
        link = bench.connect()
        waiting = asyncio.create_task(bench.refilled())
        await asyncio.sleep(1)
        for frame in bench.frames():
            bench.send(link, frame)

        assert await waiting
        assert asked(link) == [0]
        assert not link.counts(KEY)

    run(story)

    log = bench.relay.log("job")
    assert bench.told == [0]
    assert (log.attempt, log.next_offset) == (1, bench.former.held_bytes)
    assert not log.followed


def test_a_host_that_is_away_is_waited_for() -> None:
    """For the grace; then the log stays doubtful."""
    late, never = Bench(), Bench()

    async def comes() -> None:
        waiting = asyncio.create_task(late.refilled())
        await asyncio.sleep(GRACE_S - 1)
        link = late.connect()
        await asyncio.sleep(0)
        for frame in late.frames():
            late.send(link, frame)
        assert await waiting

    async def stays_away() -> None:
        assert not await never.refilled()

    run(comes)
    run(stays_away)

    assert never.took_s == pytest.approx(GRACE_S, abs=0.1)
    assert never.told == []


def test_a_host_without_the_text_costs_no_time() -> None:
    """It registered and did not name the attempt."""
    bench = Bench()

    async def story() -> None:
        bench.connect(holds=False)
        assert not await bench.refilled()

    run(story)

    assert bench.took_s == pytest.approx(0, abs=0.1)
    assert bench.told == []


def test_what_came_before_the_connection_broke_is_not_asked_for_again() -> None:
    """The host comes back and goes on."""
    bench = Bench()

    async def story() -> None:
        first = bench.connect()
        waiting = asyncio.create_task(bench.refilled())
        await asyncio.sleep(1)
        for frame in bench.frames()[:3]:
            bench.send(first, frame)
        bench.hosts.disconnect(first)
        await asyncio.sleep(PATIENCE_S + 1)
        second = bench.connect()
        await asyncio.sleep(1)
        for frame in bench.frames()[3:]:
            bench.send(second, frame)

        assert await waiting
        assert (asked(first), asked(second)) == ([0], [3])

    run(story)

    assert len(bench.told) == 1


def test_a_silent_host_is_asked_a_few_times() -> None:
    """As long as one that is away."""
    bench = Bench()

    async def story() -> None:
        bench.connect()
        assert not await bench.refilled()

    run(story)

    assert bench.took_s == pytest.approx(GRACE_S + PATIENCE_S, abs=0.1)


def test_a_host_that_sends_slowly_is_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece starts the patience anew; in all it may take `TEXT_S` after its coming."""
    monkeypatch.setattr(bringing, "TEXT_S", 12.0)
    outcomes: list[tuple[float, bool]] = []
    slow, slower = Bench(), Bench()

    async def story(bench: Bench, pause_s: float) -> None:
        loop = asyncio.get_running_loop()
        link = bench.connect()
        over = asyncio.Event()
        bringing_ = Bringing(bench.relay, bench.hosts)
        bringing_.refill(("job", 2), bench.former, GRACE_S, bench.tell, over.set, over.set)
        for frame in bench.frames():
            await asyncio.sleep(pause_s)
            bench.send(link, frame)
        await over.wait()
        outcomes.append((loop.time(), bench.relay.log("job").doubtful))

    run(lambda: story(slow, 4.0))
    run(lambda: story(slower, 4.9))

    assert outcomes[0] == (pytest.approx(20.0, abs=0.1), False)
    assert outcomes[1] == (pytest.approx(24.5, abs=0.1), True)
