"""A client in another language: clients/node against a scripted server."""

from typing import Any

import grpc

from llamaorch.orchestrator.v1 import job_pb2, orchestrator_service_pb2
from tests.integration.clients import scripted_server as wire
from tests.integration.clients.node import needs_node, run_smoke
from tests.integration.clients.scripted_server import Failure, ScriptedServer

TEXT = "Grüße 世界"

pytestmark = needs_node


def _enqueue(request: Any) -> Any:
    """Accepts jobs with a model; the same request_id again is a duplicate."""
    if not request.spec.model_id:
        return Failure(
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_PARAMS",
            "the job is not complete",
            violations=(("spec.model_id", "is required"),),
        )
    return wire.accepted(f"job-{request.spec.request_id}")


def _stream(request: Any) -> Any:
    """The first call breaks in the middle of the text; the second goes on from there."""
    have = request.resume_from.text_offset
    if request.job_id == "job-cancelled":
        return [[wire.end("", job_pb2.JOB_STATE_CANCELLED)]]
    if have == 0:
        return [[wire.started()], [wire.tokens("", ["Grü", "ße "])]]
    assert request.resume_from.prefix_digest == wire.digest("Grüße ")
    return [[wire.tokens("Grüße ", ["世", "界"], 2)], [wire.end(TEXT)]]


def _script(server: ScriptedServer) -> None:
    cancelled = orchestrator_service_pb2.CancelResponse(
        job=wire.job("job-cancelled", job_pb2.JOB_STATE_CANCELLED)
    )
    server.on(
        "Enqueue",
        wire.accepted("job-1"),
        wire.accepted("job-1", duplicate=True),
        wire.accepted("job-cancelled"),
        _enqueue,
    )
    server.on("StreamTokens", _stream).on("Cancel", cancelled)


async def test_node_gives_follows_resumes_cancels_and_reads_error_details(
    server: ScriptedServer,
) -> None:
    """LO-301: the wire alone is enough for a client in another language."""
    _script(server)

    code, summary = await run_smoke(server.address)

    assert (code, summary["mismatches"]) == (0, [])
    finished = summary["finished"]
    assert (finished["text"], finished["resumes"], finished["pieces"]) == (TEXT, 1, 4)
    assert summary["cancelled"] == {"job_id": "job-cancelled", "state": "CANCELLED"}
    assert summary["invalid"]["fields"] == ["spec.model_id"]


async def test_node_goes_on_while_output_comes(server: ScriptedServer) -> None:
    """A long job on a bad line: more breaks than it takes without output, and a busy moment."""
    text = "abcdefghijkl"
    _script(server)
    away = Failure(grpc.StatusCode.UNAVAILABLE, "POOL_UNAVAILABLE", "not now")
    server.on("Enqueue", away, *server.scripts("Enqueue"))

    def piece(request: Any) -> Any:
        if request.job_id == "job-cancelled":
            return _stream(request)
        have = request.resume_from.text_offset
        if have == len(text):
            return [[wire.end(text)]]
        return [[wire.tokens(text[:have], [text[have]], have)]]

    server.on("StreamTokens", piece)

    code, summary = await run_smoke(server.address)

    assert (code, summary["mismatches"]) == (0, [])
    assert (summary["finished"]["text"], summary["finished"]["resumes"]) == (text, len(text))


async def test_node_notices_a_wrong_digest(server: ScriptedServer) -> None:
    """The smoke client can fail: output that was changed on the way is a mismatch."""
    _script(server)
    server.on(
        "StreamTokens", [[wire.tokens("", ["a"]), wire.tokens("b", ["c"], 1), wire.end("ac")]]
    )

    code, summary = await run_smoke(server.address)

    assert code == 1
    assert "digest at 1" in summary["mismatches"]
