"""The commands that a newcomer types, against real services."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from demo import services
from demo.services import ServiceError, Stack, StackOptions, pools_known
from llamaorch.orchestrator.v1 import pool_admin_service_pb2
from tests.acceptance.conftest import StartStack
from tests.integration.clients.node import needs_node, run_smoke
from tests.integration.clients.scripted_server import ScriptedServer

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 45.0


@asynccontextmanager
async def command(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python module run from the repository's root, ended with the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *arguments,
        cwd=ROOT,
        env=os.environ | {"NO_COLOR": "1", "COLUMNS": "200"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def output(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a module."""
    async with command(*arguments) as process, asyncio.timeout(WAIT_S):
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()


async def llorch(address: str, *arguments: str) -> tuple[int, str, str]:
    """Runs `llorch`."""
    return await output("llorch", "--server", address, *arguments)


async def test_demo_shows_everything_and_exits_with_0() -> None:
    """Jobs of both classes, a cancel, an explanation with its trace id, and a clean end."""
    code, out, err = await output("demo.demo")

    assert code == 0, out + err
    for word in ("interactive-1", "batch-2", "started on pool", "finished", "cancelled"):
        assert word in out
    assert "trace id: " in out
    assert "predicted end" in out


async def test_services_are_ready_once_the_orchestrator_knows_the_pools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An orchestratord that is slower than the engines does not refuse the first job."""
    stack = Stack(StackOptions(tmp_path))
    await stack.start_orchestrator()
    pid, is_ready = stack.orchestrator.process.pid, services.pools_ready

    async def then_go_on(address: str, count: int, patience_s: float) -> None:
        try:
            await is_ready(address, count, patience_s)
        finally:
            os.kill(pid, signal.SIGCONT)

    monkeypatch.setattr(services, "pools_ready", then_go_on)
    os.kill(pid, signal.SIGSTOP)
    try:
        await stack.start_pool_manager()
        known = "host_up" in stack.orchestrator.events
    finally:
        codes = await stack.stop()

    assert known
    assert codes == (0, 0)


async def test_services_are_ready_once_the_last_pool_is_known_to_be() -> None:
    """One that orchestratord has not heard of yet, or that starts there, is not ready."""

    def state(pool_id: str, name: str) -> pool_admin_service_pb2.WatchPoolsResponse:
        pool = pool_admin_service_pb2.Pool(pool_id=pool_id, state=name)
        return pool_admin_service_pb2.WatchPoolsResponse(pools=[pool])

    early, late = state("pair", "READY"), state("single", "STARTING")
    async with ScriptedServer() as server:
        server.on("WatchPools", [[early, late]])
        with pytest.raises(ServiceError, match="pair READY, single STARTING"):
            await pools_known(server.address, 2)
        server.on("WatchPools", [[early, late, state("single", "READY")]])
        await pools_known(server.address, 2)


async def test_up_serves_until_sigint(tmp_path: Path) -> None:
    """`make up` says where it listens, serves a job, and stops with exit code 0 on Ctrl-C."""
    free = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
    arguments = ("demo.up", *free, "--directory", str(tmp_path))
    async with command(*arguments) as process, asyncio.timeout(WAIT_S):
        assert process.stdout is not None
        first = (await process.stdout.readline()).decode()
        address = first.split("listens on ")[1].split(",")[0]
        code, text, _ = await llorch(address, "run", "--max-tokens", "5", "Hi")
        process.send_signal(signal.SIGINT)
        ended = await process.wait()

    assert (code, ended) == (0, 0)
    assert text.strip()


async def test_up_with_a_model_that_is_not_there_says_so() -> None:
    """A wrong path is one clear sentence and exit code 2."""
    code, _, err = await output("demo.up", "--model", "/no/such/model.gguf")

    assert code == 2
    assert "/no/such/model.gguf is not a file" in err


async def test_llorch_runs_explains_and_lists(start_stack: StartStack) -> None:
    """run, explain, jobs, pools and status agree about one job."""
    stack = await start_stack()
    code, out, err = await llorch(stack.address, "--json", "run", "--max-tokens", "5", "Hi")
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0, err
    job_id = next(event["job_id"] for event in events if "job_id" in event)

    _, explained, _ = await llorch(stack.address, "--json", "explain", job_id)
    _, jobs, _ = await llorch(stack.address, "--json", "jobs")
    _, pools, _ = await llorch(stack.address, "pools")
    status_code, status, _ = await llorch(stack.address, "status")

    assert json.loads(explained)["decisions"][0]["pool_id"] == "local"
    assert job_id in jobs
    assert "local" in pools
    assert status_code == 0
    assert "local" in status


async def test_log_probabilities_reach_the_client(start_stack: StartStack) -> None:
    """From the engine through both services: with --json in the events, else as a table."""
    stack = await start_stack()
    run = ("run", "--max-tokens", "4", "--seed", "1", "--logprobs", "2", "Hi")

    code, out, err = await llorch(stack.address, "--json", *run)
    _, text, shown = await llorch(stack.address, *run)

    assert code == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    batches = [event for event in events if event["event"] == "tokens"]
    tokens = [token for batch in batches for piece in batch["logprobs"] for token in piece]
    assert "".join(token["token"] for token in tokens) == text
    assert len(tokens) == 4
    for token in tokens:
        assert len(token["top"]) == 2
        assert token["logprob"] <= token["top"][0]["logprob"] <= 0
    assert "TOKEN" in shown
    assert f"{tokens[0]['logprob']:.3f}" in shown


async def test_llorch_names_every_bad_field_and_the_exit_code_says_usage(
    start_stack: StartStack,
) -> None:
    """A bad request is refused by the server and told line by line."""
    stack = await start_stack()

    code, _, err = await llorch(
        stack.address, "run", "--temperature", "-1", "--top-p", "7", "--model", "tiny", "Hi"
    )

    assert code == 2
    assert "--temperature: must be" in err
    assert "--top-p: must be" in err
    assert "spec." not in err


@needs_node
async def test_node_client_works_against_the_real_services(start_stack: StartStack) -> None:
    """Another language, protos loaded at run time: stream, digests, cancel, error details."""
    stack = await start_stack()

    code, summary = await run_smoke(stack.address)

    assert (code, summary["mismatches"]) == (0, [])
    assert summary["finished"]["text_bytes"] > 0
    assert "spec.model_id" in summary["invalid"]["fields"]


async def test_both_servers_answer_health_and_reflection(start_stack: StartStack) -> None:
    """grpc.health.v1 says SERVING and reflection lists the services, on both."""
    stack = await start_stack()
    inspection = await stack.pool_manager.event("listening")
    expected = {
        stack.address: "llamaorch.orchestrator.v1.OrchestratorService",
        str(inspection["address"]): "llamaorch.pool.v1.PoolManagerService",
    }

    for address, service in expected.items():
        async with grpc.aio.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            listed = await stub.ServerReflectionInfo(iter([request])).read()
        names = {entry.name for entry in listed.list_services_response.service}
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert {service, "grpc.health.v1.Health"} <= names
