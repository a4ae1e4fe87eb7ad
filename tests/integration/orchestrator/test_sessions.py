"""Sessions and their budgets as clients see them, over sockets, restarts and the command line."""

import asyncio
from pathlib import Path

import grpc
import pytest

from llamaorch.orchestrator.v1 import events_pb2, job_pb2, session_service_pb2
from llamaorch.pool.v1 import dispatch_pb2
from orchestrator_core.servicers import frames
from orchestrator_core.store.memory import MemoryStore
from orchestrator_core.store.sqlite import SqliteStore
from tests.integration.clients.llorch import llorch
from tests.integration.orchestrator.calls import all_events, details, enqueue, follow, ready_host
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.scripted_host import ScriptedHost, snapshot

WAIT_S = 20.0
# "hello" has two tokens by estimate: four bytes to the token, and what is begun counts.
SAMPLING = job_pb2.Sampling(max_tokens=20)


async def session(orchestrator: Orchestrator, session_id: str = "s") -> session_service_pb2.Session:
    """Looks a session up."""
    request = session_service_pb2.GetSessionRequest(session_id=session_id)
    return (await orchestrator.sessions.GetSession(request)).session


async def finished(orchestrator: Orchestrator, host: ScriptedHost, *pieces: str) -> None:
    """One job of session s from its enqueue to its end."""
    receipt = await enqueue(orchestrator, session_id="s", sampling=SAMPLING)
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, *pieces)
    await host.finish(start.handle)
    await all_events(orchestrator, receipt.job_id)


async def test_a_budget_is_counted_while_tokens_flow(
    orchestrator: Orchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ORCH-3099, ORCH-3100, HME-021: receipts tell what others may take, metrics what is left."""
    monkeypatch.setattr(frames, "PROGRESS_EVERY_MS", 0)
    host = await ready_host(orchestrator)
    budgets = job_pb2.Budgets(tokens=100, time_ms=60_000)
    receipt = await enqueue(
        orchestrator, session_id="s", sampling=SAMPLING, session_budgets=budgets
    )
    start = await host.start()
    await host.started(start.handle)

    told: list[events_pb2.Metrics] = []
    async with asyncio.timeout(WAIT_S):
        async for event in follow(orchestrator, receipt.job_id):
            if event.HasField("started"):
                await host.tokens(start.handle, "a")
            if event.HasField("metrics"):
                told.append(event.metrics)
                await (
                    host.tokens(start.handle, "b", "c", "d")
                    if len(told) == 1
                    else host.finish(start.handle)
                )

    prompt = 100 - 20 - receipt.remaining.tokens
    assert prompt in {1, 2}
    assert [m.remaining.tokens for m in told[:2]] == [100 - prompt - 1, 100 - prompt - 4]
    assert all(m.remaining.HasField("time_ms") and not m.kv_migrated for m in told)
    assert all(0 < m.remaining.time_ms <= 60_000 for m in told)
    found = await session(orchestrator)
    assert (found.spent.tokens, found.remaining.tokens) == (7, 93), "3 and 4, as the engine counted"
    assert (found.turns, found.turns_max, found.warm_pool_id) == (1, 8, "pool-a")
    assert found.kv_tokens == 7
    assert found.expires_at.seconds - found.used_at.seconds == 600


async def test_a_spent_budget_rejects_with_its_name(orchestrator: Orchestrator) -> None:
    """ORCH-3099: not retriable, and told which budget; what live jobs hold is worth a retry."""
    host = await ready_host(orchestrator)
    budgets = job_pb2.Budgets(tokens=30)
    first = await enqueue(orchestrator, session_id="s", sampling=SAMPLING, session_budgets=budgets)
    with pytest.raises(grpc.aio.AioRpcError) as busy:
        await enqueue(orchestrator, session_id="s", sampling=SAMPLING)
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, *"abcdefghijklmnop")
    await host.finish(start.handle)
    await all_events(orchestrator, first.job_id)
    with pytest.raises(grpc.aio.AioRpcError) as spent:
        await enqueue(orchestrator, session_id="s", sampling=SAMPLING)

    assert busy.value.code() is spent.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    (info, more), (info_spent, more_spent) = details(busy.value), details(spent.value)
    assert info.metadata["policy_label"] == info_spent.metadata["policy_label"]
    assert info_spent.metadata["policy_label"] == "session-budget-tokens"
    assert (info.metadata["retriable"], "RetryInfo" in more) == ("true", True)
    assert (info_spent.metadata["retriable"], "RetryInfo" in more_spent) == ("false", False)


async def test_a_job_without_max_tokens_is_dispatched_with_what_is_left(
    orchestrator: Orchestrator,
) -> None:
    """ORCH-3099: the engine is told, so it cannot overrun."""
    host = await ready_host(orchestrator)

    receipt = await enqueue(
        orchestrator, session_id="s", session_budgets=job_pb2.Budgets(tokens=50)
    )

    assert 48 <= (await host.start()).sampling.max_tokens < 50
    assert receipt.remaining.tokens == 0


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_sessions_outlive_a_restart(
    start_orchestrator: StartOrchestrator, tmp_path: Path, kind: str
) -> None:
    """ORCH-3021, ORCH-3099: what was spent stays spent, what live jobs hold is set aside again."""
    memory = MemoryStore()

    def store() -> MemoryStore | SqliteStore:
        return memory if kind == "memory" else SqliteStore(tmp_path / "journal.db")

    first = await start_orchestrator(store())
    host = await ready_host(first)
    await finished(first, host, "one", "two")
    budgeted = await enqueue(
        first, session_id="t", sampling=SAMPLING, session_budgets=job_pb2.Budgets(tokens=90)
    )
    start = await host.start()
    await host.started(start.handle)
    await first.close()

    second = await start_orchestrator(store())
    back = second.host(boot_id=host.boot_id)
    held = dispatch_pb2.HeldAttempt(
        job_id=budgeted.job_id, attempt=1, pool_id="pool-a", replica_id="pool-a-1"
    )
    answer = await back.register(snapshot(), held=(held,))
    restored, live = await session(second), await session(second, "t")
    handle = answer.verdicts[0].handle
    await back.tokens(handle, "x", "y")
    await back.finish(handle)
    await all_events(second, budgeted.job_id)
    ended = await session(second, "t")

    assert (restored.spent.tokens, restored.turns, restored.warm_pool_id) == (5, 1, "pool-a")
    assert live.reserved.tokens == 90 - budgeted.remaining.tokens
    assert list(live.job_ids) == [budgeted.job_id]
    assert (ended.spent.tokens, ended.remaining.tokens) == (5, 85)


async def test_a_deleted_session_stays_deleted(start_orchestrator: StartOrchestrator) -> None:
    """Its job runs on, and a restart does not bring it back."""
    store = MemoryStore()
    first = await start_orchestrator(store)
    await ready_host(first)
    receipt = await enqueue(first, session_id="s")
    request = session_service_pb2.DeleteSessionRequest(session_id="s")

    await first.sessions.DeleteSession(request)
    with pytest.raises(grpc.aio.AioRpcError) as again:
        await first.sessions.DeleteSession(request)
    assert first.server.runtime.job(receipt.job_id).live
    await first.close()
    second = await start_orchestrator(store)

    assert again.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as gone:
        await session(second)
    assert gone.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("hint", "warm"), [(job_pb2.KV_HINT_REUSE, True), (job_pb2.KV_HINT_NONE, False)]
)
async def test_metrics_tell_of_a_cache_where_one_was_wanted(
    orchestrator: Orchestrator, hint: job_pb2.KvHint.ValueType, warm: bool
) -> None:
    """ORCH-3009, ORCH-3100, ORCH-3023: by the pool's word, and never migrated."""
    host = await ready_host(orchestrator)
    await finished(orchestrator, host, "first")
    receipt = await enqueue(orchestrator, session_id="s", kv_hint=hint)
    start = await host.start()
    await host.frame(started=[dispatch_pb2.AttemptStarted(handle=start.handle, kv_warmth=True)])

    told: list[tuple[bool, bool]] = []
    async with asyncio.timeout(WAIT_S):
        async for event in follow(orchestrator, receipt.job_id):
            if event.HasField("started"):
                told.append((event.started.kv_warmth, False))
                await host.tokens(start.handle, "x")
            if event.HasField("metrics"):
                told.append((event.metrics.kv_warmth, event.metrics.kv_migrated))
                await host.finish(start.handle)

    assert set(told) == {(warm, False)}
    assert len(told) > 1


async def test_sessions_are_listed_page_by_page(orchestrator: Orchestrator) -> None:
    """By id, each once."""
    await ready_host(orchestrator)
    for name in ("b", "a", "c"):
        await enqueue(orchestrator, session_id=name)

    pages, token = [], ""
    while not pages or token:
        request = session_service_pb2.ListSessionsRequest(page_size=2, page_token=token)
        answer = await orchestrator.sessions.ListSessions(request)
        pages.append([s.session_id for s in answer.sessions])
        token = answer.next_page_token

    assert pages == [["a", "b"], ["c"]]


async def test_bad_session_budgets_are_named(orchestrator: Orchestrator) -> None:
    """Nothing to spend, and no session to spend it in."""
    await ready_host(orchestrator)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await enqueue(orchestrator, session_budgets=job_pb2.Budgets(tokens=0))

    _, more = details(refused.value)
    fields = {violation.field for violation in more["BadRequest"].field_violations}  # type: ignore[attr-defined]
    assert fields == {"spec.session_budgets.tokens", "spec.session_budgets"}


async def test_the_command_line_shows_and_deletes_sessions(
    start_orchestrator: StartOrchestrator,
) -> None:
    """`llorch run` opens one with a budget, `llorch sessions` lists, shows and forgets it."""
    # The scripted host sends no heartbeats while the command starts.
    orchestrator = await start_orchestrator(pools={"heartbeat_timeout_ms": 600_000})
    host = await ready_host(orchestrator)
    address = str(orchestrator.server.address)
    opening = ("--session", "s", "--session-tokens", "500", "--reuse-kv", "--max-tokens", "20")
    opened = await llorch(address, "run", "--model", "tiny", *opening, "--detach", "hello")
    assert opened.code == 0, opened.stderr
    start = await host.start()
    await host.started(start.handle)

    listed = await llorch(address, "sessions", COLUMNS="200")
    shown = await llorch(address, "--json", "sessions", "show", "s")
    deleted = await llorch(address, "sessions", "delete", "s")
    missing = await llorch(address, "sessions", "show", "s")
    wrong = await llorch(address, "sessions", "show")

    assert "1/8" in listed.stdout
    (record,) = shown.records()
    assert record["session"]["budgets"]["tokens"] == 500
    assert record["session"]["reserved"]["tokens"] + record["session"]["remaining"]["tokens"] == 500
    assert deleted.stdout == "session s is forgotten; its jobs run on\n"
    assert (missing.code, "no session 's'" in missing.stderr) == (2, True)
    assert (wrong.code, "show|delete SESSION" in wrong.stderr) == (2, True)
