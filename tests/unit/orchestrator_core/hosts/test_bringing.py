"""How long a continuation waits for text that another host is to bring. LO-304."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from structlog.testing import capture_logs

from faults.simulation.virtual_time import VirtualLoop
from orchestrator_core.core.job import Attempt
from orchestrator_core.hosts.bringing import BRINGS_MAX, TEXT_S, Bringing
from orchestrator_core.hosts.link import HostLink, LinkTerms
from orchestrator_core.hosts.registry import Hosts
from orchestrator_core.relay.items import Item
from orchestrator_core.relay.relay import Relay, RelayLimits
from orchestrator_core.relay.sides import PATIENCE_S
from tests.unit.orchestrator_core.relay.logs import frames

GRACE_S = 10.0
JOBS = 3 * BRINGS_MAX
WORDS = [[f"word{number} "] for number in range(10)]


@dataclass(slots=True)
class Bench:
    """Jobs whose former host `old` holds text that was evicted here; when each went on, and how."""

    hosts: Hosts = field(default_factory=Hosts)
    relay: Relay = field(default_factory=lambda: Relay(RelayLimits()))
    brought_s: list[float] = field(default_factory=list)
    failed: int = 0

    def begin(self, bringing: Bringing, name: str, host_id: str = "old") -> None:
        """A job that follows an attempt on a host."""
        self.relay.log(name).oldest_offset = 9
        former = Attempt(name, 1, "p", "p#1", host_id, sent_ms=0)
        bringing.begin((name, 2), former, GRACE_S, self.brought, self.failed_once)

    def brought(self, items: list[Item]) -> None:
        """Goes on without text, which no host here has."""
        assert not items
        self.brought_s.append(asyncio.get_running_loop().time())

    def failed_once(self) -> None:
        """Ends."""
        self.failed += 1


def link(host_id: str) -> HostLink:
    """The stream of a host that never answers, on which the first attempt of each job is bound."""
    stream = HostLink(host_id, "boot", 1, LinkTerms(1, 1, 1, 1))
    for number in range(JOBS):
        stream.bindings.bind((f"job-{number}", 1))
    return stream


@dataclass(slots=True)
class SlowBench:
    """Jobs with texts of which all but the end was evicted here, and a host that sends them again.

    It sends a frame every `frame_s`, of each text in turn, from where it was asked last.
    """

    frame_s: float
    hosts: Hosts = field(default_factory=Hosts)
    relay: Relay = field(default_factory=lambda: Relay(RelayLimits(job_bytes=100)))
    ended: list[tuple[float, bool]] = field(default_factory=list)

    def begin(self, bringing: Bringing, name: str) -> None:
        """A job that follows an attempt on the host."""
        for frame in frames(WORDS):
            self.relay.append_text(name, frame)
        former = Attempt(name, 1, "p", "p#1", "old", sent_ms=0)
        missing = self.relay.log(name).oldest_offset
        assert missing > 0

        def brought(items: list[Item]) -> None:
            whole = bool(items) and items[-1].end >= missing
            self.ended.append((asyncio.get_running_loop().time(), whole))

        bringing.begin((name, 2), former, GRACE_S, brought, lambda: None)

    async def answer(self, link: HostLink) -> None:
        """Sends, until cancelled."""
        asked: dict[str, tuple[int, int]] = {}
        names = {link.bindings.handle((f"job-{n}", 1)): f"job-{n}" for n in range(JOBS)}
        while True:
            await asyncio.sleep(self.frame_s)
            for command in link._outbox:
                seek = command.seek
                asked[names[seek.handle]] = (seek.first_index, command.dispatch_seq)
            link._outbox.clear()
            for name, (index, seq) in asked.items():
                if name in self.relay.sides._reads and index < len(WORDS):
                    del asked[name]
                    asked[name] = (index + 1, seq)
                    self.relay.sides.offer(name, frames(WORDS)[index], seq)
                    break


async def _bring_all(bench: SlowBench) -> None:
    stream = link("old")
    bench.hosts.connect(stream)
    for number in range(JOBS):
        bench.relay.log(f"job-{number}").begin_attempt(1)
    bringing = Bringing(bench.relay, bench.hosts)
    answering = asyncio.create_task(bench.answer(stream))
    for number in range(JOBS):
        bench.begin(bringing, f"job-{number}")
    await asyncio.sleep(10 * TEXT_S)
    answering.cancel()


def test_a_slow_host_is_listened_to_as_long_as_it_sends() -> None:
    """Many texts from one host take longer than its silence may last, and none is lost."""
    bench = SlowBench(frame_s=0.2)

    run(lambda: _bring_all(bench))

    assert [whole for _, whole in bench.ended] == [True] * JOBS
    assert 2 * (GRACE_S + PATIENCE_S) < bench.ended[-1][0] < TEXT_S


def test_a_host_that_sends_for_ever_keeps_no_slot_for_ever() -> None:
    """What did not come in `TEXT_S` is lost, whatever else came."""
    bench = SlowBench(frame_s=0.3)

    run(lambda: _bring_all(bench))

    assert len(bench.ended) == JOBS
    assert bench.ended[-1] == (pytest.approx(TEXT_S, abs=0.1), False)
    assert any(whole for _, whole in bench.ended)


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a story in virtual time."""
    loop = VirtualLoop()
    try:
        loop.run_until_complete(story())
    finally:
        loop.clean_up()
        loop.close()


def test_a_dead_host_costs_its_jobs_one_grace_however_many_they_are() -> None:
    """Each holds a slot of a healthy pool meanwhile: they do not wait in turn."""
    bench = Bench()

    async def story() -> None:
        bringing = Bringing(bench.relay, bench.hosts)
        for number in range(JOBS):
            bench.begin(bringing, f"job-{number}")
        await asyncio.sleep(100 * GRACE_S)

    run(story)

    assert bench.brought_s == pytest.approx([GRACE_S] * JOBS, abs=0.1)


def test_a_dead_host_takes_no_place_of_others() -> None:
    """Who can be told at once that its host has nothing is told at once."""
    bench = Bench()

    async def story() -> None:
        bench.hosts.connect(HostLink("bare", "boot", 1, LinkTerms(1, 1, 1, 1)))
        bringing = Bringing(bench.relay, bench.hosts)
        for number in range(JOBS):
            bench.begin(bringing, f"job-{number}")
        bench.begin(bringing, "other", host_id="bare")
        await asyncio.sleep(1)

    run(story)

    assert bench.brought_s == pytest.approx([0], abs=0.1)


def test_a_host_that_does_not_answer_costs_its_jobs_one_patience() -> None:
    """Also those that wait for a place."""
    bench = Bench()

    async def story() -> None:
        bench.hosts.connect(link("old"))
        bringing = Bringing(bench.relay, bench.hosts)
        for number in range(JOBS):
            bench.begin(bringing, f"job-{number}")
        await asyncio.sleep(100 * GRACE_S)

    run(story)

    assert bench.brought_s == pytest.approx([GRACE_S + PATIENCE_S] * JOBS, abs=0.1)


def test_a_continuation_that_cannot_go_on_ends() -> None:
    """A bug behind it is logged, and does not keep the slot."""
    bench = Bench()

    def broken(_: list[Item]) -> None:
        raise RuntimeError

    async def story() -> None:
        former = Attempt("job", 1, "p", "p#1", "old", sent_ms=0)
        bringing = Bringing(bench.relay, bench.hosts)
        bringing.begin(("job", 2), former, GRACE_S, broken, bench.failed_once)
        await asyncio.sleep(2 * GRACE_S)

    with capture_logs() as logs:
        run(story)

    assert bench.failed == 1
    assert [entry["event"] for entry in logs] == ["bringing_failed"]
