"""Jobs whose input lies in an artifact: kept while they live, fetched by their host."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from llamaorch.orchestrator.v1 import artifact_service_pb2 as pb
from pool_managerd.config.schema import PoolTable
from pool_managerd.devices.cpu import CpuDevices
from pool_managerd.engines.port import ChatMessage
from pool_managerd.server import PoolManager
from tests.integration.orchestrator.artifact_calls import fetch, header, of, put, put_input, sha256
from tests.integration.orchestrator.calls import (
    all_events,
    details,
    enqueue,
    job,
    kinds,
    ready_host,
)
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.exchange_stream import Stream
from tests.integration.pool_managerd.fakes import ScriptedEngine
from tests.integration.pool_managerd.harness import make_config

LONG = ("Once upon a time, " * 300_000).encode()
assert len(LONG) > 4 << 20, "longer than a message"
TALK = json.dumps({"messages": [{"role": "user", "content": "Grüße"}]}).encode()
WAIT_S = 10.0


async def reason(call: object) -> str:
    """The reason for which a call is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return details(caught.value)[0].reason


async def test_the_host_fetches_what_the_client_put(orchestrator: Orchestrator) -> None:
    """Design 4: longer than a message, or a conversation; counted by its bytes of text."""
    host = await ready_host(orchestrator, ctx_max=1 << 20)
    fetched, prompt_bytes = [], []
    for content, media_type in ((LONG, "text/plain"), (TALK, "application/json")):
        artifact_id = await put_input(orchestrator, content, media_type)
        receipt = await enqueue(orchestrator, input=of(artifact_id))
        start = await host.start()
        assert start.input.artifact_id == artifact_id
        fetched.append(await fetch(orchestrator, receipt.job_id))
        prompt_bytes.append(orchestrator.server.runtime.core.jobs[receipt.job_id].spec.prompt_bytes)

    assert fetched[0].text == LONG.decode()
    assert [(m.role, m.content) for m in fetched[1].chat.messages] == [("user", "Grüße")]
    assert prompt_bytes == [len(LONG), len("Grüße".encode())]


async def test_an_input_is_kept_until_its_job_has_ended(orchestrator: Orchestrator) -> None:
    """A deletion is refused, an expiry passes it by; then both may."""
    host = await ready_host(orchestrator)
    artifact_id = await put_input(orchestrator)
    receipt = await enqueue(orchestrator, input=of(artifact_id))
    start = await host.start()
    request = pb.DeleteArtifactRequest(artifact_id=artifact_id)

    in_use = await reason(orchestrator.artifacts.DeleteArtifact(request))
    await host.started(start.handle)
    await host.tokens(start.handle, "hi")
    await host.finish(start.handle)
    await all_events(orchestrator, receipt.job_id)
    await orchestrator.artifacts.DeleteArtifact(request)

    assert in_use == "ARTIFACT_IN_USE"
    assert await reason(fetch(orchestrator, receipt.job_id)) == "NOT_FOUND"
    assert await reason(enqueue(orchestrator, input=of(artifact_id))) == "INVALID_PARAMS"


@pytest.mark.parametrize("by", ["request_id", "job_id"])
async def test_a_repeated_request_is_one_although_its_input_is_gone(
    orchestrator: Orchestrator, by: str
) -> None:
    """The job was accepted: the first answer again, on both ways; another body is refused as such.

    ORCH-3024.
    """
    host = await ready_host(orchestrator)
    artifact_id = await put_input(orchestrator)
    asked: dict[str, object] = {by: "same", "input": of(artifact_id)}
    first = await enqueue(orchestrator, **asked)
    start = await host.start()
    await host.started(start.handle)
    await host.finish(start.handle)
    await all_events(orchestrator, first.job_id)
    await orchestrator.artifacts.DeleteArtifact(pb.DeleteArtifactRequest(artifact_id=artifact_id))

    again = await enqueue(orchestrator, **asked)
    stream = Stream(orchestrator)
    on_exchange = (await stream.enqueue(**asked)).enqueued
    await stream.close()

    assert (again.job_id, again.duplicate) == (first.job_id, True)
    assert (on_exchange.job_id, on_exchange.duplicate) == (first.job_id, True)
    assert await reason(enqueue(orchestrator, **asked, labels={"a": "b"})) == "DUPLICATE"
    assert await reason(enqueue(orchestrator, input=of(artifact_id))) == "INVALID_PARAMS"


async def test_only_an_input_can_be_one(orchestrator: Orchestrator) -> None:
    """A plan is none, whatever is in it; neither is what nobody put."""
    await ready_host(orchestrator)
    plan = (await put(orchestrator.artifacts, b"plan", header(media_type="text/plain"))).artifact

    for artifact_id in (plan.artifact_id, "0" * 32, "../x", sha256(b"plan")):
        assert await reason(enqueue(orchestrator, input=of(artifact_id))) == "INVALID_PARAMS"


async def test_only_a_live_attempt_has_an_input(orchestrator: Orchestrator) -> None:
    """Not another number, not another job, not one that brought its input itself."""
    host = await ready_host(orchestrator)
    stored = await enqueue(orchestrator, input=of(await put_input(orchestrator)))
    plain = await enqueue(orchestrator)
    await host.start()
    await host.start()

    refused = [
        await reason(fetch(orchestrator, *which))
        for which in ((stored.job_id, 2), (plain.job_id, 1), ("unknown", 1))
    ]

    assert refused == ["NOT_FOUND"] * 3
    assert (await fetch(orchestrator, stored.job_id)).text == "hello"


async def test_inputs_of_waiting_jobs_outlive_a_restart(
    start_orchestrator: StartOrchestrator, tmp_path: Path
) -> None:
    """The job comes back from the journal, and its input with it, although its time is over."""
    journal = {"kind": "sqlite", "path": str(tmp_path / "journal.db")}
    tables: dict[str, object] = {"store": journal, "artifacts": {"retention_ms": 1}}
    first = await start_orchestrator(None, **tables)
    host = await ready_host(first, slots_total=1, slots_free=1)
    await enqueue(first)
    artifact_id = await put_input(first, b"kept")
    receipt = await enqueue(first, input=of(artifact_id))
    await host.start()
    await first.close()

    second = await start_orchestrator(None, **tables)
    await second.server.artifacts.expire()
    host = await ready_host(second, slots_total=2, slots_free=2)
    inputs = {start.job_id: start.input for start in (await host.start(), await host.start())}

    assert inputs[receipt.job_id].artifact_id == artifact_id
    assert (await fetch(second, receipt.job_id)).text == "kept"


@pytest.fixture
async def engine(start_orchestrator: StartOrchestrator) -> AsyncIterator[ScriptedEngine]:
    """The engine of a real pool manager, connected to `engine.orchestrator`."""
    roomy = {"admission": {"token_bytes_max": 65_536}}
    orchestrator = await start_orchestrator(**roomy)
    engine = ScriptedEngine(2)
    engine.orchestrator = orchestrator  # type: ignore[attr-defined]

    def make_engine(_table: PoolTable, _model_ref: str) -> ScriptedEngine:
        return engine

    config = make_config(str(orchestrator.server.address))
    manager = PoolManager(config, engine_factory=make_engine, devices=CpuDevices())
    task = asyncio.create_task(manager.run())
    async with asyncio.timeout(WAIT_S):
        await manager.listening.wait()
        while not orchestrator.server.runtime.core.pools:
            await orchestrator.server.runtime.next_step()
    yield engine
    manager.stop()
    await task


async def test_an_engine_gets_more_than_a_message_holds(engine: ScriptedEngine) -> None:
    """From the client's file to the engine: 5 MB of text, and a conversation."""
    orchestrator: Orchestrator = engine.orchestrator  # type: ignore[attr-defined]
    model = {"model_id": "m"}
    ids = [
        await put_input(orchestrator, LONG),
        await put_input(orchestrator, TALK, "application/json"),
    ]

    for artifact_id in ids:
        receipt = await enqueue(orchestrator, **model, input=of(artifact_id))
        engine.say(receipt.job_id, "fine", end=True)
        events = await all_events(orchestrator, receipt.job_id)
        assert kinds(events) == ["started", "tokens", "end"]

    prompts = [request.prompt for request in engine.requests[-2:]]
    assert prompts == [LONG.decode(), (ChatMessage("user", "Grüße"),)]


async def test_a_damaged_input_fails_the_job_and_reaches_no_engine(
    engine: ScriptedEngine,
) -> None:
    """Wrong bytes are never taken for right ones."""
    orchestrator: Orchestrator = engine.orchestrator  # type: ignore[attr-defined]
    artifact_id = await put_input(orchestrator, b"true")
    record = orchestrator.server.artifacts.index.get(artifact_id)
    assert record is not None
    before = len(engine.requests)
    path = orchestrator.server.artifacts.files.directory / "objects" / record.sha256
    path.write_bytes(b"lies")

    receipt = await enqueue(orchestrator, model_id="m", input=of(artifact_id))
    events = await all_events(orchestrator, receipt.job_id)

    ended = await job(orchestrator, receipt.job_id)
    assert kinds(events)[-1] == "error"
    assert "SHA-256 differs" in ended.error.message
    assert len(engine.requests) == before
