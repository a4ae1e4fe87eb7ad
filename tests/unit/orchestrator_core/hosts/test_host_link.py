"""One host's link: what it keeps, what it acknowledges, and that its loss is always told."""

import asyncio
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from llamaorch.pool.v1 import dispatch_pb2, pool_registry_service_pb2
from orchestrator_core.core.effects import SendVerdicts, Verdict
from orchestrator_core.core.events import HostLost, HostRegistered
from orchestrator_core.hosts import link as link_module
from orchestrator_core.hosts.link import HostLink, LinkTerms
from orchestrator_core.hosts.registration import check_not_taken
from orchestrator_core.hosts.registry import Hosts
from orchestrator_core.relay.relay import Relay, RelayLimits
from orchestrator_core.servicers.pool_registry import PoolRegistryServicer
from orchestrator_core.wire.snapshots import parse_snapshot
from tests.integration.orchestrator.scripted_host import snapshot

TERMS = LinkTerms(1, 1_000, 300, 1_024, "journal")


def make_link(*pool_ids: str) -> HostLink:
    """A link that registered these pools."""
    return HostLink("host-1", "boot-1", 1, TERMS, frozenset(pool_ids))


async def test_output_that_is_kept_as_a_proof_does_not_displace_that_of_a_later_attempt() -> None:
    """Its host comes back while the other runs: frames of the later one count. LO-304."""
    relay, link = Relay(RelayLimits()), make_link()
    for attempt in (2, 1):
        verdicts = (("job", attempt, Verdict.ADOPT),)
        link.registered(SendVerdicts("host-1", 1, verdicts), relay)

        assert relay.log("job").attempt == 2


async def test_only_snapshots_of_registered_pools_wait() -> None:
    """Names that a host makes up take no memory."""
    link = make_link("pool-a")
    snapshots = [parse_snapshot(snapshot(f"pool-{name}")) for name in "abcd"]

    link.hold_snapshots(tuple(snapshots), 5)  # type: ignore[arg-type]  # all are well formed

    ripe = [event.snapshots[0].pool_id for event in link.ripe_snapshots()]
    assert ripe == ["pool-a"]


def held(link: HostLink, version: int, emitted_frame_seq: int) -> None:
    """Gives the link a report of its pool."""
    message = snapshot("pool-a", version=version, emitted_frame_seq=emitted_frame_seq)
    link.hold_snapshots((parse_snapshot(message),), version)  # type: ignore[arg-type]  # well formed


def ripened(link: HostLink, frame_seq: int) -> list[tuple[int, int]]:
    """Versions that can be taken once that frame was read, and when they were true."""
    link.frame_seq = frame_seq
    return [(event.snapshots[0].version, event.as_of_ms) for event in link.ripe_snapshots()]


async def test_snapshots_ripen_while_frames_stay_behind() -> None:
    """Reports that come faster than frames are read do not push each other out for ever."""
    link = make_link("pool-a")
    taken = []

    for version in range(1, 13):
        # Frames are three reports behind, at ten frames a report.
        held(link, version, 10 * version)
        taken += ripened(link, 10 * (version - 3))

    assert taken == [(1, 1), (4, 4), (7, 7)]
    assert ripened(link, 119) == [(10, 10)]
    assert ripened(link, 120) == [(12, 12)]
    assert ripened(link, 120) == []


async def test_the_latest_ripe_snapshot_is_taken_and_older_ones_are_dropped() -> None:
    """What an older one said no longer counts, whatever frame it names."""
    link = make_link("pool-a")
    held(link, 1, 10)
    held(link, 2, 20)
    held(link, 3, 30)

    assert ripened(link, 30) == [(3, 3)]

    held(link, 4, 99)
    held(link, 5, 31)
    assert ripened(link, 31) == [(5, 5)]
    assert ripened(link, 99) == []


async def test_small_output_of_many_handles_shares_one_late_acknowledgement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing stays unacknowledged, and released handles are left out."""
    monkeypatch.setattr(link_module, "ACK_DELAY_S", 0.01)
    link = make_link()
    bound = [link.bindings.bind((f"job-{n}", 1)) for n in range(3)]
    one, _, three = (binding.handle for binding in bound)

    for binding, offset in zip(bound, (10, 20, 300), strict=True):
        link.bindings.read(binding, offset)
    link.acknowledge()
    link.bindings.read(bound[0], 30)
    link.acknowledge()
    at_once = (await link.next_command()).ack
    link.release(("job-1", 1))
    await link.next_command()
    late = (await link.next_command()).ack

    assert (list(at_once.handles), list(at_once.text_offsets)) == ([three], [300])
    assert (list(late.handles), list(late.text_offsets)) == ([one], [30])


async def test_dispatch_numbers_start_at_1_on_every_stream() -> None:
    """The numbers belong to the stream; a sign of life repeats the last one."""
    for _ in range(2):
        link = make_link()
        link.send(pool_registry_service_pb2.DispatchResponse())
        numbers = [(await link.next_command()).dispatch_seq for _ in range(2)]
        assert numbers == [1, 1]


async def test_a_sign_of_life_never_has_the_number_of_a_command_to_come() -> None:
    """A host would take the command for one that it has obeyed."""
    link = make_link()

    class JustNow:
        """Something to send comes in the moment in which a sign of life is due."""

        def clear(self) -> None:
            """Nothing to do."""

        def set(self) -> None:
            """Nothing to do."""

        async def wait(self) -> None:
            """The time is over, and the command is there."""
            link.send(pool_registry_service_pb2.DispatchResponse(ack=dispatch_pb2.AckTokens()))
            raise TimeoutError

    link._filled = JustNow()  # type: ignore[assignment]  # stands for an event

    command = await link.next_command()

    assert (command.WhichOneof("command"), command.dispatch_seq) == ("ack", 1)


async def test_silence_ends_a_link_and_words_keep_it() -> None:
    """`until_silent` returns after the timeout without a word, not before."""
    link = make_link()
    watch = asyncio.create_task(link.until_silent())
    for _ in range(8):
        await asyncio.sleep(0.05)
        link.heard()

    assert link.alive
    assert not watch.done()
    await asyncio.wait_for(watch, 2)
    assert not link.alive
    check_not_taken(link, 0, dispatch_pb2.Register(host_id="host-1", boot_id="boot-2"))


class StubbornContext:
    """A stream whose read takes its time to end when it is cancelled."""

    def __init__(self) -> None:
        register = dispatch_pb2.Register(host_id="host-1", boot_id="boot-1")
        self.messages: list[object] = [pool_registry_service_pb2.DispatchRequest(register=register)]
        self.reading = asyncio.Event()
        self.release = asyncio.Event()

    async def read(self) -> object:
        """The registration, then nothing."""
        if self.messages:
            return self.messages.pop()
        self.reading.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await self.release.wait()
            raise
        return grpc.aio.EOF

    async def write(self, _message: object) -> None:
        """Takes everything."""


async def test_the_loss_of_a_host_is_told_before_anything_is_awaited() -> None:
    """A handler that is cancelled again while it cleans up has told the loss already."""
    told: list[object] = []
    runtime: Any = SimpleNamespace(
        hosts=Hosts(),
        submit=told.append,
        core=SimpleNamespace(pools={}),
        clock=None,
        relay=None,
    )
    telemetry: Any = SimpleNamespace(host_down=lambda *_: None)
    context: Any = StubbornContext()
    servicer = PoolRegistryServicer(runtime, telemetry, TERMS)
    handler = asyncio.create_task(servicer.dispatch(context))
    await asyncio.wait_for(context.reading.wait(), 2)

    handler.cancel()
    await asyncio.sleep(0.01)
    handler.cancel()
    await asyncio.sleep(0.01)

    assert [type(event) for event in told] == [HostRegistered, HostLost]
    assert runtime.hosts.links == {}
    context.release.set()
    await asyncio.wait([handler])
