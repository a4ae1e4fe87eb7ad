"""Artifacts that are not taken, or not wholly: what is said, and that nothing is left of them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llamaorch.orchestrator.v1 import artifact_service_pb2 as pb
from tests.integration.orchestrator.artifact_bounds import WAIT_S, start, until
from tests.integration.orchestrator.artifact_calls import (
    CHUNK_BYTES,
    answered,
    get,
    header,
    incoming,
    listed,
    objects,
    put,
    refused,
    sha256,
)
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator


@pytest.fixture
async def kept(start_orchestrator: StartOrchestrator, tmp_path: Path) -> Orchestrator:
    """A server with a journal in a file, and small bounds."""
    return await start(start_orchestrator, tmp_path)


BAD_PUTS = [
    (header(media_type="text"), "header.media_type"),
    (header(kind="INPUT", media_type="image/png"), "header.media_type"),
    (header(tags=["a b"]), "header.tags[0]"),
    (header(tags=["a"] * 33), "header.tags"),
    (header(parent_ids=["../../../etc/passwd"]), "header.parent_ids[0]"),
    (header(expected_sha256="../" * 20 + "abcd"), "header.expected_sha256"),
    (header(expected_sha256="A" * 64), "header.expected_sha256"),
    (header(labels={"": "v"}), "header.labels[]"),
    (header(job_id="j" * 129), "header.job_id"),
    (header(expected_size_bytes=2), "header.expected_size_bytes"),
    (header(expected_size_bytes=8), "header.expected_size_bytes"),
    (header(expected_size_bytes=7 << 20), "header.expected_size_bytes"),
    (header(expected_sha256="0" * 64), "header.expected_sha256"),
    (header(kind="INPUT", media_type="application/json"), "chunk"),
]


async def test_a_bad_put_is_refused_by_its_field_and_leaves_nothing(
    kept: Orchestrator, tmp_path: Path
) -> None:
    """ORCH-3016: whether it shows in the header, in the content, or at the end of it."""
    for told, field in BAD_PUTS:
        reason, _, text = await refused(put(kept.artifacts, b"content", told))

        assert (reason, text[: len(field)]) == ("INVALID_PARAMS", field)

    assert objects(tmp_path) == incoming(tmp_path) == set()
    assert await listed(kept) == []


OUT_OF_ORDER: list[list[pb.PutArtifactRequest]] = [
    [],
    [pb.PutArtifactRequest(chunk=b"x")],
    [pb.PutArtifactRequest(header=header()), pb.PutArtifactRequest(header=header())],
    [pb.PutArtifactRequest(header=header()), pb.PutArtifactRequest(chunk=b"")],
    [
        pb.PutArtifactRequest(header=header()),
        pb.PutArtifactRequest(chunk=b"x" * ((1 << 20) + 1)),
    ],
]


async def test_messages_out_of_order_are_refused(kept: Orchestrator, tmp_path: Path) -> None:
    """A header first, then chunks with something in them."""
    for messages in OUT_OF_ORDER:
        reason, _, _ = await refused(answered(kept.artifacts.PutArtifact(iter(messages))))

        assert reason == "INVALID_PARAMS"
    assert objects(tmp_path) == incoming(tmp_path) == set()


async def test_what_is_too_large_is_refused_while_it_arrives(
    kept: Orchestrator, tmp_path: Path
) -> None:
    """An endless upload ends at the bound, and is told why, although it goes on sending."""

    async def endless() -> AsyncIterator[pb.PutArtifactRequest]:
        yield pb.PutArtifactRequest(header=header())
        while True:
            yield pb.PutArtifactRequest(chunk=bytes(CHUNK_BYTES))

    reason, _, text = await refused(answered(kept.artifacts.PutArtifact(endless(), timeout=WAIT_S)))

    assert reason == "INVALID_PARAMS"
    assert "artifacts.artifact_bytes_max" in text
    assert incoming(tmp_path) == set()


async def test_a_parent_must_exist(kept: Orchestrator) -> None:
    """ORCH-3098: lineage leads to what is kept."""
    reason, _, text = await refused(put(kept.artifacts, b"x", header(parent_ids=["0" * 32])))

    assert reason == "NOT_FOUND"
    assert text.startswith("header.parent_ids[0]")


async def test_the_quota_refuses_and_counts_equal_content_once(
    start_orchestrator: StartOrchestrator, tmp_path: Path
) -> None:
    """Nothing that was accepted is thrown out for something new; a deletion makes room."""
    kept = await start(start_orchestrator, tmp_path, quota_bytes=10)
    first = await put(kept.artifacts, b"12345678")
    same = await put(kept.artifacts, b"12345678", header(expected_sha256=sha256(b"12345678")))
    full = await refused(put(kept.artifacts, b"abc"))
    told = await refused(put(kept.artifacts, b"abc", header(expected_size_bytes=3)))
    delete = pb.DeleteArtifactRequest(artifact_id=first.artifact.artifact_id)
    await kept.artifacts.DeleteArtifact(delete)

    await put(kept.artifacts, b"abc")

    assert same.artifact.artifact_id == first.artifact.artifact_id
    assert full[:2] == told[:2] == ("ADMISSION_REJECT", "artifact-quota")
    assert "8 of 10 bytes (artifacts.quota_bytes)" in full[2]
    assert objects(tmp_path) == {sha256(b"abc")}


async def test_the_number_of_artifacts_is_bounded(
    start_orchestrator: StartOrchestrator, tmp_path: Path
) -> None:
    """One that is there may be put again; one that was refused leaves no content."""
    kept = await start(start_orchestrator, tmp_path, count_max=1)
    await put(kept.artifacts, b"one")

    reason, label, _ = await refused(put(kept.artifacts, b"two"))
    again = await put(kept.artifacts, b"one")

    assert (reason, label) == ("ADMISSION_REJECT", "artifact-count")
    assert again.existed
    assert objects(tmp_path) == {sha256(b"one")}


BAD_IDS = ["", "x", "../" * 8, "0" * 32, "/etc/passwd", sha256(b"plan"), "a" * 100_000]


async def test_no_id_leads_anywhere_but_to_an_artifact(kept: Orchestrator) -> None:
    """AUTH-1003, design 9: paths cannot escape, and a digest is no id."""
    await put(kept.artifacts, b"plan")
    stub = kept.artifacts

    for name in BAD_IDS:
        reasons = [
            (await refused(get(stub, name)))[0],
            (await refused(stub.GetArtifactInfo(pb.GetArtifactInfoRequest(artifact_id=name))))[0],
            (await refused(stub.DeleteArtifact(pb.DeleteArtifactRequest(artifact_id=name))))[0],
        ]
        assert reasons == ["NOT_FOUND"] * 3


async def test_a_silent_upload_ends_and_leaves_nothing(
    start_orchestrator: StartOrchestrator, tmp_path: Path
) -> None:
    """Its place is free for others, who are not kept waiting meanwhile."""
    kept = await start(start_orchestrator, tmp_path, idle_timeout_ms=300, uploads_max=1)
    begun = asyncio.Event()

    async def silent() -> AsyncIterator[pb.PutArtifactRequest]:
        yield pb.PutArtifactRequest(header=header())
        yield pb.PutArtifactRequest(chunk=b"x")
        begun.set()
        await asyncio.Event().wait()

    call = kept.artifacts.PutArtifact(silent(), timeout=WAIT_S)
    await begun.wait()

    reason, _, text = await refused(answered(call))
    after = await put(kept.artifacts, b"y")

    assert reason == "DEADLINE"
    assert "artifacts.idle_timeout_ms" in text
    assert after.artifact.size_bytes == 1
    assert incoming(tmp_path) == set()


async def test_a_broken_upload_leaves_nothing_and_its_place_is_free(
    start_orchestrator: StartOrchestrator, tmp_path: Path
) -> None:
    """While it runs, the one place is taken; when its client is gone, it is not."""
    kept = await start(start_orchestrator, tmp_path, uploads_max=1)
    files = tmp_path / "artifacts" / "incoming"

    async def broken() -> AsyncIterator[pb.PutArtifactRequest]:
        yield pb.PutArtifactRequest(header=header())
        await asyncio.Event().wait()

    call = kept.artifacts.PutArtifact(broken())
    await until(lambda: bool(list(files.iterdir())))
    busy = await refused(put(kept.artifacts, b"y"))
    call.cancel()
    await until(lambda: not list(files.iterdir()))

    after = await put(kept.artifacts, b"y")

    assert busy[:2] == ("ADMISSION_REJECT", "artifact-uploads")
    assert after.artifact.size_bytes == 1
