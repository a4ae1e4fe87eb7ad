"""Hosts that register: which are welcome, and which of two has the id. LO-306."""

from pathlib import Path

import grpc
import pytest

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.pool.v1 import dispatch_pb2
from orchestrator_core.hosts.registration import HELD_MAX
from orchestrator_core.store.sqlite import SqliteStore
from tests.integration.orchestrator.calls import (
    all_events,
    details,
    enqueue,
    job,
    kinds,
    ready_host,
)
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.host_links import PATIENT, SHORT, connected, until_connected
from tests.integration.orchestrator.scripted_host import snapshot


def held(number: int) -> dispatch_pb2.HeldAttempt:
    """An attempt that no orchestrator knows."""
    return dispatch_pb2.HeldAttempt(
        job_id=f"01890a5d-ac96-774b-bcce-{number:012d}",
        attempt=1,
        pool_id="pool-a",
        replica_id="pool-a-1",
    )


# --- epochs


async def test_a_higher_epoch_of_the_same_journal_is_refused(orchestrator: Orchestrator) -> None:
    """An orchestrator that is older than what the host has obeyed gets no host. LO-306."""
    host = orchestrator.host()
    answer = await host.register(snapshot())
    await host.close()
    await until_connected(orchestrator)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await orchestrator.host().register(
            snapshot(), epoch=answer.epoch + 1, journal_id=answer.journal_id
        )

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "older" in str(details(refused.value)[1])


async def test_epochs_of_another_journal_lock_nobody_out(
    start_orchestrator: StartOrchestrator, tmp_path: Path
) -> None:
    """Hosts register with an orchestrator whose journal was wiped."""
    for _ in range(3):
        earlier = await start_orchestrator(SqliteStore(tmp_path / "first.db"))
        seen = await earlier.host().register(snapshot())
        await earlier.close()
    orchestrator = await start_orchestrator(SqliteStore(tmp_path / "second.db"))

    answer = await orchestrator.host().register(
        snapshot(), epoch=seen.epoch, journal_id=seen.journal_id
    )

    assert (seen.epoch, answer.epoch) == (3, 1)
    assert seen.journal_id
    assert answer.journal_id != seen.journal_id


# --- registrations in pages


async def test_a_registration_comes_in_pages(orchestrator: Orchestrator) -> None:
    """It is answered after the last page, with a verdict on every held attempt."""
    host = orchestrator.host()
    await host.send_register(
        host_id=host.host_id,
        boot_id=host.boot_id,
        pools=[snapshot()],
        held=[held(n) for n in range(1_000)],
        more=True,
    )
    await host.send_register(held=[held(n) for n in range(1_000, 2_000)], more=True)
    assert connected(orchestrator) == []
    await host.send_register(held=[held(2_000)], pools=[snapshot("pool-b")])

    answer = (await host.command("registered")).registered

    assert [v.job_id for v in answer.verdicts] == [held(n).job_id for n in range(2_001)]
    assert set(orchestrator.server.runtime.core.pools) == {"pool-a", "pool-b"}


async def test_pages_are_bounded_together(orchestrator: Orchestrator) -> None:
    """A host cannot fill the memory page by page."""
    host = orchestrator.host()
    await host.send_register(
        host_id=host.host_id,
        boot_id=host.boot_id,
        held=[held(n) for n in range(HELD_MAX)],
        more=True,
    )
    await host.send_register(held=[held(HELD_MAX)], more=True)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await host.command("registered")

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert connected(orchestrator) == []


async def test_a_second_registration_ends_the_stream(orchestrator: Orchestrator) -> None:
    """Once established, a stream takes frames only."""
    host = await ready_host(orchestrator)
    await host.send_register(host_id=host.host_id, boot_id=host.boot_id, pools=[snapshot("pool-b")])

    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await host.command("start")

    assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await until_connected(orchestrator)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"host_id": ""}, "register.host_id"),
        ({"host_id": "a b"}, "register.host_id"),
        ({"host_id": "x" * 129}, "register.host_id"),
        ({"boot_id": "ü"}, "register.boot_id"),
        ({"boot_id": "ok\n"}, "register.boot_id"),
        ({"protocol_version": "2.0"}, "register.protocol_version"),
    ],
)
async def test_a_bad_registration_is_refused_and_named(
    orchestrator: Orchestrator, fields: dict[str, object], named: str
) -> None:
    """The refusal names the field."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await orchestrator.host().register(**fields)

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert named in str(details(refused.value)[1])


async def test_a_later_minor_version_of_the_protocol_is_welcome(orchestrator: Orchestrator) -> None:
    """Only MAJOR decides."""
    host = orchestrator.host(host_id="h.1:a_B-" + "x" * 120)

    await host.register(protocol_version="1.7")

    assert connected(orchestrator) == [host.host_id]


# --- one id, two hosts


async def test_a_second_pool_manager_under_one_host_id_is_refused(
    orchestrator: Orchestrator,
) -> None:
    """It is told what to change, and the first one's job runs on."""
    first = await ready_host(orchestrator)
    receipt = await enqueue(orchestrator)
    start = await first.start()
    await first.started(start.handle)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await orchestrator.host().register(snapshot("pool-z"))

    assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert "set a different host_id" in (refused.value.details() or "")
    assert 'resource_type: "host"' in str(details(refused.value)[1])
    await first.tokens(start.handle, "on")
    state = (await job(orchestrator, receipt.job_id)).state
    assert state == job_pb2.JOB_STATE_RUNNING
    assert list(orchestrator.server.runtime.core.pools) == ["pool-a"]


async def test_the_same_pool_manager_supersedes_its_earlier_stream(
    orchestrator: Orchestrator,
) -> None:
    """With the boot id of the present stream it takes the place of that stream."""
    first = await ready_host(orchestrator)
    again = orchestrator.host(boot_id=first.boot_id)

    await again.register(snapshot())
    await enqueue(orchestrator)

    assert (await again.start()).attempt == 1


async def test_a_registration_that_outlives_its_successor_is_refused(
    orchestrator: Orchestrator,
) -> None:
    """What it tells is out of date, also when no stream of the host is left. LO-301."""
    host = orchestrator.host()
    await host.register(snapshot(), dial_seq=2)
    await host.close()
    await until_connected(orchestrator)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await orchestrator.host(boot_id=host.boot_id).register(snapshot(), dial_seq=1)
    await orchestrator.host(boot_id=host.boot_id).register(snapshot(), dial_seq=3)

    assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert "overtaken by 2" in (refused.value.details() or "")


async def test_a_registration_that_was_overtaken_is_refused(orchestrator: Orchestrator) -> None:
    """It was under way for long, and knows nothing of the job that its host took up since."""
    host = orchestrator.host()
    await host.register(snapshot(), dial_seq=2)
    receipt = await enqueue(orchestrator)
    start = await host.start()
    await host.started(start.handle)

    for dial_seq in (1, 2):
        late = orchestrator.host(boot_id=host.boot_id)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await late.register(snapshot(), dial_seq=dial_seq)
        assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS
        assert "overtaken by 2" in (refused.value.details() or "")

    await host.tokens(start.handle, "on")
    await host.finish(start.handle)
    events = await all_events(orchestrator, receipt.job_id)
    assert kinds(events) == ["started", "tokens", "end"]


async def test_a_later_stream_of_the_same_boot_is_welcome(orchestrator: Orchestrator) -> None:
    """Also after one that did not tell its number."""
    first = await ready_host(orchestrator)

    for dial_seq in (3, 4):
        await orchestrator.host(boot_id=first.boot_id).register(snapshot(), dial_seq=dial_seq)

    assert orchestrator.server.runtime.hosts.links["host-1"].dial_seq == 4


async def test_a_silent_link_gives_way_to_a_new_boot(
    start_orchestrator: StartOrchestrator,
) -> None:
    """A host that was switched off comes back under another boot id once the old link is silent."""
    orchestrator = await start_orchestrator(pools=SHORT, **PATIENT)
    await ready_host(orchestrator)

    with pytest.raises(grpc.aio.AioRpcError):
        await orchestrator.host().register(snapshot(replica_id="pool-a-2"))

    await until_connected(orchestrator)
    await orchestrator.host().register(snapshot(replica_id="pool-a-2"))

    assert connected(orchestrator) == ["host-1"]


async def test_a_pool_that_another_host_has_is_refused_by_name(
    orchestrator: Orchestrator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its host is told with every report and its other pools work; it may have the pool later."""
    first = await ready_host(orchestrator)
    receipt = await enqueue(orchestrator)
    start = await first.start()
    await first.started(start.handle)
    mine = {"host_id": "host-2", "model_id": "other"}
    second = orchestrator.host("host-2")
    await second.register(
        snapshot("pool-a", **{**mine, "replica_id": "pool-a-2"}), snapshot("pool-b", **mine)
    )

    async with second.reports() as reports:
        told = await reports.send(snapshot("pool-a", version=2, **mine))
        await enqueue(orchestrator, model_id="other")
        started_at = (await second.start()).pool_id
        await first.tokens(start.handle, "on")
        await first.finish(start.handle)
        events = await all_events(orchestrator, receipt.job_id)
        await first.close()
        await until_connected(orchestrator, "host-2")
        await reports.send(snapshot("pool-b", version=2, **mine))
        await until_connected(orchestrator)
    again = orchestrator.host("host-2", second.boot_id)
    await again.register(snapshot("pool-a", **{**mine, "replica_id": "pool-a-2"}))

    assert [rejection.pool_id for rejection in told.rejections] == ["pool-a"]
    assert "pool_id pool-a is in use at host host-1" in told.rejections[0].reason
    assert started_at == "pool-b"
    assert kinds(events) == ["started", "tokens", "end"]
    assert orchestrator.server.runtime.core.pools["pool-a"].snapshot.host_id == "host-2"
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("pool_refused") == 1
