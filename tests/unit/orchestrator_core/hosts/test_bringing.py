"""How long a continuation waits for text that another host is to bring. LO-304."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from structlog.testing import capture_logs

from faults.simulation.virtual_time import VirtualLoop
from orchestrator_core.core.job import Attempt
from orchestrator_core.hosts.bringing import BRINGS_MAX, Bringing
from orchestrator_core.hosts.link import HostLink, LinkTerms
from orchestrator_core.hosts.registry import Hosts
from orchestrator_core.relay.items import Item
from orchestrator_core.relay.relay import Relay, RelayLimits
from orchestrator_core.relay.sides import PATIENCE_S

GRACE_S = 10.0
JOBS = 3 * BRINGS_MAX


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
