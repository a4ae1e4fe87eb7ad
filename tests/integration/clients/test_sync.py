"""The blocking client, used from plain threads."""

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from llamaorch.orchestrator.v1 import orchestrator_service_pb2, pool_admin_service_pb2
from llamaorch_client import Client, End, JobFailedError, NotFoundError, Started, Tokens
from tests.integration.clients import scripted_server as wire
from tests.integration.clients.llorch import environment
from tests.integration.clients.scripted_server import Failure, Hang, ScriptedServer

WAIT_S = 20.0
LOST = Failure(grpc.StatusCode.UNAVAILABLE, message="connection reset")


async def test_a_plain_thread_runs_a_job_through_a_break(server: ScriptedServer) -> None:
    """LO-301: the blocking iterator yields the same verified events, also after a resume."""
    server.on("Enqueue", wire.accepted())
    server.on(
        "StreamTokens",
        [[wire.started()], [wire.tokens("", ["a"])], LOST],
        [[wire.tokens("a", ["b"], 1)], [wire.end("ab")]],
    )

    def work() -> tuple[list[type], str, str]:
        with Client(server.address) as client, client.run(model_id="tiny", prompt="Hi") as stream:
            events = list(stream)
            text = "".join(event.text for event in events if isinstance(event, Tokens))
            return [type(event) for event in events], text, stream.job_id

    kinds, text, job_id = await asyncio.to_thread(work)

    assert kinds == [Started, Tokens, Tokens, End]
    assert (text, job_id) == ("ab", "job-1")


async def test_every_call_has_its_blocking_form(server: ScriptedServer) -> None:
    """The methods of AsyncClient answer the same from a thread."""
    server.on("Enqueue", wire.accepted("job-7"))
    server.on("GetJob", orchestrator_service_pb2.GetJobResponse(job=wire.job("job-7")))
    server.on("Cancel", orchestrator_service_pb2.CancelResponse(job=wire.job("job-7")))
    server.on("ListJobs", orchestrator_service_pb2.ListJobsResponse(jobs=[wire.job("job-7")]))
    server.on("ExplainJob", orchestrator_service_pb2.ExplainJobResponse(trace_id="t"))
    server.on("GetCapabilities", orchestrator_service_pb2.GetCapabilitiesResponse(api_version="1"))
    server.on("ListPools", pool_admin_service_pb2.ListPoolsResponse())
    server.on("StreamTokens", [[wire.end("")]])

    def work() -> list[object]:
        with Client(server.address) as client:
            return [
                client.enqueue(model_id="tiny", prompt="Hi").job_id,
                client.get_job("job-7").job_id,
                client.cancel("job-7").job_id,
                [job.job_id for job in client.list_jobs(limit=1)],
                client.explain("job-7").trace_id,
                client.capabilities().api_version,
                client.pools(),
                client.health(),
                client.stream("job-7").result().text,
            ]

    answers = await asyncio.to_thread(work)

    assert answers == ["job-7", "job-7", "job-7", ["job-7"], "t", "1", (), "SERVING", ""]


async def test_errors_reach_the_thread_that_asked(server: ScriptedServer) -> None:
    """Exceptions are the same classes as in the asynchronous client."""
    server.on("GetJob", Failure(grpc.StatusCode.NOT_FOUND, "NOT_FOUND"))
    server.on("StreamTokens", [[wire.failed(Failure(grpc.StatusCode.ABORTED, "WORKER_RESET"))]])

    def work() -> None:
        with Client(server.address) as client:
            with pytest.raises(NotFoundError):
                client.get_job("job-1")
            with pytest.raises(JobFailedError):
                list(client.stream("job-1"))

    await asyncio.to_thread(work)


async def test_closing_ends_waiting_calls_and_leaves_no_thread(server: ScriptedServer) -> None:
    """A call in another thread ends with an error instead of hanging for ever."""
    server.on("StreamTokens", Hang())
    client = Client(server.address).__enter__()
    other = client.stream("job-2")
    ended: list[BaseException] = []

    def follow() -> None:
        try:
            list(client.stream("job-1"))
        except RuntimeError as error:
            ended.append(error)

    follower = asyncio.create_task(asyncio.to_thread(follow))
    await server.wait_for("StreamTokens")
    await asyncio.to_thread(client.close)
    await asyncio.to_thread(client.close)
    await follower

    assert [str(error) for error in ended] == ["the client was closed during the call"]
    assert "llamaorch-client" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(RuntimeError, match="client is closed"):
        next(other)
    with pytest.raises(RuntimeError, match="not open"):
        client.get_job("job-1")


async def test_threads_share_a_client(server: ScriptedServer) -> None:
    """Each gets the output of its own job, and leaves it where it likes."""

    def stream(request: Any) -> Any:
        text = request.job_id * 3
        return [[wire.started()], [wire.tokens("", [text[:4], text[4:]])], [wire.end(text)]]

    def given(request: Any) -> Any:
        return wire.accepted(request.spec.job_id)

    server.on("Enqueue", given).on("StreamTokens", stream)
    names = [f"job-{number}" for number in range(16)]

    def work() -> list[str]:
        with Client(server.address) as client, ThreadPoolExecutor(8) as threads:

            def one(name: str) -> str:
                with client.run(model_id="tiny", prompt="Hi", job_id=name) as left:
                    next(left)
                return client.run(model_id="tiny", prompt="Hi", job_id=name).result().text

            return list(threads.map(one, names))

    async with asyncio.timeout(WAIT_S):
        texts = await asyncio.to_thread(work)

    assert texts == [name * 3 for name in names]


async def test_a_stream_may_be_left_after_its_client(server: ScriptedServer) -> None:
    """What ends its `with` last has nothing left to do."""

    def work() -> None:
        client = Client(server.address).__enter__()
        with client.stream("job-1") as stream:
            client.close()
        stream.close()

    await asyncio.to_thread(work)


def test_a_client_that_cannot_be_opened_leaves_no_thread() -> None:
    """`with` never calls the exit of what it could not enter."""
    before = threading.active_count()

    for _ in range(3):
        with pytest.raises(ValueError, match="no server address"), Client("http://nowhere"):
            pass

    assert threading.active_count() == before


FORKS = """
import os, sys
from llamaorch_client import Client

with Client(sys.argv[1]) as client:
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), client.health(), flush=True)
    else:
        try:
            client.health()
        except RuntimeError as error:
            print(error, flush=True)
if not child:
    os._exit(7)
"""


async def test_a_fork_has_to_open_a_client_of_its_own(server: ScriptedServer) -> None:
    """It has no thread that would ever answer; leaving the context is fine in both."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", FORKS, server.address),
        stdout=asyncio.subprocess.PIPE,
        env={**environment(server.address), "GRPC_VERBOSITY": "NONE"},
    )

    async with asyncio.timeout(WAIT_S):
        told, _ = await process.communicate()

    assert told.decode().splitlines() == [
        "this client was opened before a fork: open one in each process",
        "7 SERVING",
    ]
