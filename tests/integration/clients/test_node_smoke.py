"""A client in another language: clients/node against a scripted server."""

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from llamaorch.orchestrator.v1 import job_pb2, orchestrator_service_pb2
from tests.integration.clients import scripted_server as wire
from tests.integration.clients.scripted_server import Failure, ScriptedServer

ROOT = Path(__file__).resolve().parents[3]
NODE = shutil.which("node")
NPM = shutil.which("npm")
INSTALL_TIMEOUT_S = 50.0
RUN_TIMEOUT_S = 20.0
# npm's words for "no registry can be reached"; every other failure is a defect of the lock file.
OFFLINE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT", "ENETUNREACH")
TEXT = "Grüße 世界"

pytestmark = pytest.mark.skipif(
    NODE is None or NPM is None, reason="node and npm are needed for the Node client"
)


async def _process(*command: str, cwd: Path, timeout_s: float) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, stdout.decode(), stderr.decode()


async def _installed() -> Path:
    """Installs the locked packages once per lock file; returns the folder with the client in it."""
    source = ROOT / "clients" / "node"
    target = ROOT / ".build" / "node-smoke"
    target.mkdir(parents=True, exist_ok=True)
    lock = (source / "package-lock.json").read_bytes()
    stamp = target / "installed-lock.json"
    for name in ("package.json", "package-lock.json", "smoke.mjs"):
        shutil.copyfile(source / name, target / name)
    if not stamp.exists() or stamp.read_bytes() != lock:
        assert NPM is not None
        command = (NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
        code, _, stderr = await _process(*command, cwd=target, timeout_s=INSTALL_TIMEOUT_S)
        if code != 0 and any(sign in stderr for sign in OFFLINE):
            pytest.skip("the Node packages cannot be fetched from here")
        assert code == 0, stderr
        stamp.write_bytes(lock)
    return target


async def _third_party() -> Path:
    """Returns a folder with google/rpc/*.proto, made by the command that `make deps` runs."""
    made = ROOT / ".build" / "third_party"
    if not (made / "google" / "rpc" / "status.proto").exists():
        script = str(ROOT / "ci" / "copy_third_party_protos.py")
        code, _, stderr = await _process(sys.executable, script, cwd=ROOT, timeout_s=RUN_TIMEOUT_S)
        assert code == 0, stderr
    return made


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


async def _smoke(server: ScriptedServer) -> tuple[int, Any]:
    folder = await _installed()
    assert NODE is not None
    command = (NODE, "smoke.mjs", "--server", server.address, "--model", "tiny")
    protos = ("--proto", str(ROOT / "proto"), "--include", str(await _third_party()))
    code, stdout, stderr = await _process(*command, *protos, cwd=folder, timeout_s=RUN_TIMEOUT_S)
    assert stdout, stderr
    return code, json.loads(stdout)


async def test_node_gives_follows_resumes_cancels_and_reads_error_details(
    server: ScriptedServer,
) -> None:
    """LO-301: the wire alone is enough for a client in another language."""
    _script(server)

    code, summary = await _smoke(server)

    assert (code, summary["mismatches"]) == (0, [])
    finished = summary["finished"]
    assert (finished["text"], finished["resumes"], finished["pieces"]) == (TEXT, 1, 4)
    assert summary["cancelled"] == {"job_id": "job-cancelled", "state": "CANCELLED"}
    assert summary["invalid"]["fields"] == ["spec.model_id"]


async def test_node_notices_a_wrong_digest(server: ScriptedServer) -> None:
    """The smoke client can fail: output that was changed on the way is a mismatch."""
    _script(server)
    server.on(
        "StreamTokens", [[wire.tokens("", ["a"]), wire.tokens("b", ["c"], 1), wire.end("ac")]]
    )

    code, summary = await _smoke(server)

    assert code == 1
    assert "digest at 1" in summary["mismatches"]
