"""The client library and `llorch` with a real orchestratord: what is put is what is got."""

import asyncio
import errno
import io
import json
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO, cast

import grpc
import pytest

from llamaorch.orchestrator.v1 import artifact_service_pb2 as pb
from llamaorch.orchestrator.v1 import artifact_service_pb2_grpc as grpc_pb
from llamaorch_client import (
    ArtifactAbout,
    ArtifactFilter,
    ArtifactKind,
    AsyncClient,
    Client,
    DataLossError,
    InUseError,
    InvalidParamsError,
    NotFoundError,
    RetryOptions,
)
from llamaorch_client.errors import IntegrityError
from llamaorch_client.options import ClientOptions
from tests.integration.clients.llorch import llorch
from tests.integration.orchestrator.artifact_calls import sha256
from tests.integration.orchestrator.calls import all_events, ready_host
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator

PUTS = 4
CONTENT = bytes(range(256)) * 4_000
QUICK = ClientOptions(retry=RetryOptions(attempts_max=4, backoff_initial_ms=1, backoff_max_ms=5))


@pytest.fixture
async def client(orchestrator: Orchestrator) -> AsyncIterator[AsyncClient]:
    """A client of a real server."""
    async with AsyncClient(str(orchestrator.server.address), options=QUICK) as opened:
        yield opened


def names(directory: Path) -> list[str]:
    """What is in a directory."""
    return [path.name for path in directory.iterdir()]


async def test_a_file_goes_there_and_back(client: AsyncClient, tmp_path: Path) -> None:
    """ORCH-3097: with progress on the way, and nothing beside it afterwards."""
    source, target = tmp_path / "source", tmp_path / "out" / "target"
    source.write_bytes(CONTENT)
    target.parent.mkdir()
    sent: list[tuple[int, int | None]] = []
    got: list[tuple[int, int | None]] = []

    stored, existed = await client.artifacts.put(
        source,
        ArtifactAbout(kind=ArtifactKind.TRACE, tags=["t"]),
        progress=lambda *told: sent.append(told),
    )
    found = await client.artifacts.get(
        stored.artifact_id, target, progress=lambda *told: got.append(told)
    )

    assert (found, existed) == (stored, False)
    assert target.read_bytes() == CONTENT
    assert sent[-1] == got[-1] == (len(CONTENT), len(CONTENT))
    assert names(target.parent) == ["target"]


async def test_bytes_and_streams_can_be_put(client: AsyncClient) -> None:
    """The same content is the same artifact, whatever it came from."""
    first, _ = await client.artifacts.put(b"plan")
    second, existed = await client.artifacts.put(io.BytesIO(b"plan"))

    assert existed
    assert second.artifact_id == first.artifact_id
    assert await client.artifacts.read(first.artifact_id) == (second, b"plan")


async def test_what_is_refused_while_it_is_sent_says_why(
    start_orchestrator: StartOrchestrator,
) -> None:
    """ORCH-3016: a write that fails as the server ends the call does not hide the reason."""
    bounds = {"artifact_bytes_max": 1 << 20, "free_bytes_min": 0}
    kept = await start_orchestrator(None, artifacts=bounds)
    content = bytes(4 << 20)

    async with AsyncClient(str(kept.server.address), options=QUICK) as client:
        puts = (client.artifacts.put(io.BytesIO(content)) for _ in range(PUTS))
        refused = await asyncio.gather(*puts, return_exceptions=True)

    reasons = Counter(getattr(each, "reason", repr(each)) for each in refused)
    assert reasons == {"INVALID_PARAMS": PUTS}


class Torn(io.RawIOBase):
    """A source whose second read fails."""

    def __init__(self) -> None:
        self._reads = 0

    def readable(self) -> bool:
        """It says so."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Some bytes, once."""
        self._reads += 1
        if self._reads > 1:
            raise OSError(errno.EIO, "Input/output error")
        return b"x" * min(size, 10)


async def test_a_source_that_breaks_says_so_itself(client: AsyncClient) -> None:
    """Not as a cancelled call, which would end the caller's task."""
    with pytest.raises(OSError, match="Input/output error"):
        await client.artifacts.put(cast("BinaryIO", Torn()))

    assert [each async for each in client.artifacts.list()] == []


async def test_why_a_put_was_refused_is_told_however_much_was_sent(
    start_orchestrator: StartOrchestrator,
) -> None:
    """GRPC may lose the refusal of a call that is still written: then it is asked for again."""
    kept = await start_orchestrator(artifacts={"artifact_bytes_max": 1 << 20, "free_bytes_min": 0})
    async with AsyncClient(str(kept.server.address), options=QUICK) as client:
        for _ in range(5):
            with pytest.raises(InvalidParamsError, match="artifact_bytes_max"):
                await client.artifacts.put(bytes(16 << 20))


async def test_a_pipe_is_put_as_it_is_read(client: AsyncClient, tmp_path: Path) -> None:
    """A shell's <(...) is a file that can be read once."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writing = asyncio.create_task(asyncio.to_thread(pipe.write_bytes, CONTENT))

    stored, _ = await client.artifacts.put(pipe)

    await writing
    assert stored.sha256 == sha256(CONTENT)


async def test_what_is_no_regular_file_is_not_replaced(client: AsyncClient, tmp_path: Path) -> None:
    """Where a pipe or a device was there is to be no file afterwards, whoever asks."""
    stored, _ = await client.artifacts.put(b"plan")
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(OSError, match="no regular file"):
        await client.artifacts.get(stored.artifact_id, tmp_path / "pipe")

    assert (tmp_path / "pipe").is_fifo()


async def test_a_file_that_was_got_has_the_rights_of_any_other(
    client: AsyncClient, tmp_path: Path
) -> None:
    """What the umask says: it is not hidden from those who read its neighbours."""
    stored, _ = await client.artifacts.put(b"plan")
    (tmp_path / "beside").touch()

    await client.artifacts.get(stored.artifact_id, tmp_path / "got")

    assert (tmp_path / "got").stat().st_mode == (tmp_path / "beside").stat().st_mode


async def test_lineage_lists_and_deletion(client: AsyncClient, orchestrator: Orchestrator) -> None:
    """ORCH-3098: what was made from what, found by tags, and gone when deleted."""
    plan, _ = await client.artifacts.put(b"plan", ArtifactAbout(kind=ArtifactKind.PLAN, tags=["x"]))
    diff, _ = await client.artifacts.put(
        b"diff", ArtifactAbout(kind=ArtifactKind.DIFF, tags=["x"], parent_ids=[plan.artifact_id])
    )
    host = await ready_host(orchestrator)
    text, _ = await client.artifacts.put(
        b"hello", ArtifactAbout(kind=ArtifactKind.INPUT, media_type="text/plain")
    )
    receipt = await client.enqueue(model_id="tiny", artifact_id=text.artifact_id)

    lineage = await client.artifacts.info(diff.artifact_id, ancestors=5)
    tagged = [each async for each in client.artifacts.list(ArtifactFilter(tags=["x"]))]
    newest = [each async for each in client.artifacts.list(limit=1)]
    with pytest.raises(InUseError):
        await client.artifacts.delete(text.artifact_id)
    start = await host.start()
    await host.started(start.handle)
    await host.finish(start.handle)
    await all_events(orchestrator, receipt.job_id)
    await client.artifacts.delete(text.artifact_id)

    assert (lineage.artifact, lineage.ancestors, lineage.omitted) == (diff, (plan,), False)
    assert (tagged, newest) == ([diff, plan], [text])
    with pytest.raises(NotFoundError):
        await client.artifacts.read(text.artifact_id)


async def test_a_damaged_artifact_leaves_no_file(
    client: AsyncClient, orchestrator: Orchestrator, tmp_path: Path
) -> None:
    """What came before the error is removed; a file that was there stays as it was."""
    stored, _ = await client.artifacts.put(CONTENT)
    path = orchestrator.server.artifacts.files.directory / "objects" / sha256(CONTENT)
    path.write_bytes(CONTENT[:-1] + b"?")
    target = tmp_path / "target"
    target.write_bytes(b"old")

    with pytest.raises(DataLossError, match="SHA-256 differs"):
        await client.artifacts.get(stored.artifact_id, target)

    assert names(tmp_path) == ["target"]
    assert target.read_bytes() == b"old"


class Breaking(grpc_pb.ArtifactServiceServicer):
    """Ends each read after a chunk, and remembers where each began; `lies` are sent instead."""

    def __init__(self, lies: bytes = b"") -> None:
        self.offsets: list[int] = []
        self.lies = lies

    async def GetArtifact(  # noqa: N802 - named by the proto
        self, request: pb.GetArtifactRequest, context: "grpc.aio.ServicerContext[object, object]"
    ) -> AsyncIterator[pb.GetArtifactResponse]:
        self.offsets.append(request.offset)
        told = pb.Artifact(artifact_id="a", sha256=sha256(b"abcdef"), size_bytes=6)
        yield pb.GetArtifactResponse(header=told)
        content = self.lies or b"abcdef"
        yield pb.GetArtifactResponse(chunk=content[request.offset : request.offset + 2])
        if request.offset < 4:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")


@pytest.mark.parametrize("lies", [b"", b"abcdeX"])
async def test_a_broken_read_goes_on_at_the_byte(lies: bytes) -> None:
    """Any number of breaks, as long as each brings something; other bytes are not believed."""
    server, servicer = grpc.aio.server(), Breaking(lies)
    grpc_pb.add_ArtifactServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncClient(f"127.0.0.1:{port}", options=QUICK) as client:
        reading = client.artifacts.read("a")
        if lies:
            with pytest.raises(IntegrityError, match="other content"):
                await reading
        else:
            assert (await reading)[1] == b"abcdef"
    await server.stop(0)

    assert servicer.offsets == [0, 2, 4]


async def test_blocking_code_can_do_the_same(orchestrator: Orchestrator, tmp_path: Path) -> None:
    """`Client.artifacts` has the methods of `AsyncClient.artifacts`."""
    address = str(orchestrator.server.address)

    def use() -> tuple[list[str], bytes, bytes]:
        with Client(address) as client:
            stored, _ = client.artifacts.put(b"plan", ArtifactAbout(tags=["t"]))
            client.artifacts.get(stored.artifact_id, tmp_path / "plan")
            listed = [each.artifact_id for each in client.artifacts.list()]
            assert client.artifacts.info(stored.artifact_id).artifact == stored
            content = client.artifacts.read(stored.artifact_id)[1]
            client.artifacts.delete(stored.artifact_id)
            assert not list(client.artifacts.list())
            assert threading.current_thread() is not threading.main_thread()
            return listed, content, (tmp_path / "plan").read_bytes()

    listed, content, written = await asyncio.to_thread(use)

    assert len(listed) == 1
    assert content == written == b"plan"


async def test_llorch_puts_lists_shows_gets_and_deletes(
    orchestrator: Orchestrator, tmp_path: Path
) -> None:
    """The commands of docs/artifacts.md, as a person types them."""
    address = str(orchestrator.server.address)
    plan, diff, target = tmp_path / "plan.md", tmp_path / "a.diff", tmp_path / "got"
    plan.write_text("first this, then that")
    diff.write_text("- this\n+ that")

    put = await llorch(address, "artifacts", "put", str(plan), "--kind", "plan", "--tag", "v2")
    plan_id = put.stdout.strip()
    made = await llorch(
        *(address, "artifacts", "put", str(diff), "--kind", "diff", "--parent", plan_id, "--json")
    )
    diff_id = made.records()[0]["artifact"]["artifact_id"]
    listed = await llorch(address, "artifacts", "list", "--tag", "v2")
    shown = await llorch(address, "artifacts", "show", diff_id)
    got = await llorch(address, "artifacts", "get", plan_id, "-o", str(target))
    deleted = await llorch(address, "artifacts", "delete", diff_id)

    assert [each.code for each in (put, made, listed, shown, got, deleted)] == [0] * 6
    assert plan_id in listed.stdout
    assert diff_id not in listed.stdout
    assert f"made from: {plan_id}" in shown.stdout
    assert target.read_text() == plan.read_text()
    assert "SHA-256 is right" in got.stderr
    assert orchestrator.server.artifacts.index.get(diff_id) is None


async def test_llorch_runs_a_prompt_of_any_length(
    start_orchestrator: StartOrchestrator, tmp_path: Path
) -> None:
    """A long file goes as an artifact, which a later job may use too; roles are kept."""
    # The commands may take longer than a silent host counts.
    patient = {"pools": {"heartbeat_timeout_ms": 60_000}, "placement": {"stale_after_ms": 60_000}}
    orchestrator = await start_orchestrator(**patient)
    host = await ready_host(orchestrator, ctx_max=1 << 20, slots_total=4, slots_free=4)
    address = str(orchestrator.server.address)
    long = tmp_path / "long"
    long.write_text("hello " * 900_000)
    run = (address, "run", "--detach", "--model", "tiny")

    whole = await llorch(*run, "--prompt-file", str(long), "--system", "Be brief.")
    stored = await host.start()
    again = await llorch(*run, "--input-artifact", stored.input.artifact_id)
    twice = await host.start()

    assert [whole.code, again.code] == [0, 0]
    assert twice.input.artifact_id == stored.input.artifact_id
    record = orchestrator.server.artifacts.index.get(stored.input.artifact_id)
    assert record is not None
    path = orchestrator.server.artifacts.files.directory / "objects" / record.sha256
    assert json.loads(path.read_bytes()) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hello " * 900_000},
        ]
    }
