"""Artifacts over real sockets: what is put comes back, or an error that says why not."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from llamaorch.orchestrator.v1 import artifact_service_pb2 as pb
from tests.integration.orchestrator.artifact_bounds import LARGE, MEDIUM, start, until
from tests.integration.orchestrator.artifact_calls import (
    CHUNK_BYTES,
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


# --- both ways


async def test_a_large_artifact_comes_back_as_it_was_put(
    kept: Orchestrator, tmp_path: Path
) -> None:
    """ORCH-3097: more than a message holds, in chunks both ways, and what was said of it."""
    told = header(
        media_type="application/x-trace",
        tags=["b", "a", "b"],
        labels={"k": "v"},
        job_id="job-1",
        session_id="s-1",
        expected_sha256=sha256(LARGE),
        expected_size_bytes=len(LARGE),
    )

    answer = await put(kept.artifacts, LARGE, told)
    artifact, content = await get(kept.artifacts, answer.artifact.artifact_id)

    assert content == LARGE
    assert artifact == answer.artifact
    assert not answer.existed
    assert (artifact.sha256, artifact.size_bytes) == (sha256(LARGE), len(LARGE))
    assert list(artifact.tags) == ["a", "b"]
    assert (artifact.job_id, artifact.session_id, artifact.owner) == ("job-1", "s-1", "anonymous")
    assert objects(tmp_path) == {sha256(LARGE)}
    assert incoming(tmp_path) == set()


async def test_an_empty_artifact_is_one(kept: Orchestrator) -> None:
    """It has a header and no chunk."""
    answer = await put(kept.artifacts, b"")

    assert (await get(kept.artifacts, answer.artifact.artifact_id))[1] == b""


RANGES: list[tuple[int, int | None]] = [
    *((0, 1), (1, None), (CHUNK_BYTES - 1, 2)),
    *((len(LARGE), None), (len(LARGE) - 3, 99), (7, 0)),
]


async def test_a_range_is_that_range(kept: Orchestrator) -> None:
    """Who was cut off goes on at the byte; beyond the end there is nothing to go on from."""
    artifact_id = (await put(kept.artifacts, LARGE)).artifact.artifact_id

    for offset, limit in RANGES:
        _, content = await get(kept.artifacts, artifact_id, offset, limit)
        assert content == LARGE[offset : None if limit is None else offset + limit]
    beyond = await refused(get(kept.artifacts, artifact_id, len(LARGE) + 1))

    assert beyond[0] == "INVALID_PARAMS"


async def test_equal_puts_are_one_and_other_words_another(
    kept: Orchestrator, tmp_path: Path
) -> None:
    """The same put again changes nothing; other tags or parents share the bytes alone."""
    first = await put(kept.artifacts, b"plan", header(tags=["x", "y"]))
    again = await put(kept.artifacts, b"plan", header(tags=["y", "x"]))
    other = await put(kept.artifacts, b"plan", header(tags=["z"]))
    child = await put(
        kept.artifacts, b"plan", header(tags=["z"], parent_ids=[other.artifact.artifact_id])
    )

    assert again.existed
    assert again.artifact.artifact_id == first.artifact.artifact_id
    assert again.artifact.created_at == first.artifact.created_at
    ids = [each.artifact.artifact_id for each in (first, other, child)]
    assert len(set(ids)) == 3
    assert await listed(kept) == ids[::-1]
    assert objects(tmp_path) == {sha256(b"plan")}


async def test_lists_filter_and_lineage_is_told(kept: Orchestrator) -> None:
    """ORCH-3098: tags, kinds, parents, jobs, times; ancestors the nearest first."""
    ids: list[str] = []
    for number in range(5):
        told = header(
            kind="DIFF" if number % 2 else "PLAN",
            tags=["all", f"n{number}"],
            parent_ids=ids[-2:],
            job_id=f"job-{number}",
        )
        ids.append((await put(kept.artifacts, b"%d" % number, told)).artifact.artifact_id)
    artifact = (await get(kept.artifacts, ids[2]))[0]

    info = await kept.artifacts.GetArtifactInfo(
        pb.GetArtifactInfoRequest(artifact_id=ids[4], ancestors_max=3)
    )

    assert await listed(kept, tags=["all"]) == ids[::-1]
    assert await listed(kept, tags=["all", "n3"]) == [ids[3]]
    assert await listed(kept, kind=pb.ARTIFACT_KIND_DIFF) == [ids[3], ids[1]]
    assert await listed(kept, parent_id=ids[1]) == [ids[3], ids[2]]
    assert await listed(kept, job_id="job-2") == [ids[2]]
    later = await listed(kept, created_from=artifact.created_at)
    sooner = await listed(kept, created_before=artifact.created_at)
    assert ids[2] in later
    assert later + sooner == ids[::-1]
    assert {each.artifact_id for each in info.ancestors[:2]} == {ids[2], ids[3]}
    assert len(info.ancestors) == 3
    assert info.ancestors_omitted


async def test_a_page_fits_into_a_message(kept: Orchestrator) -> None:
    """As many as were asked for may be said so much of that there are fewer."""
    labels = {f"{number:02}": "v" * 256 for number in range(32)}
    first = (await put(kept.artifacts, b"plan", header(labels=labels))).artifact.artifact_id
    index = kept.server.artifacts.index
    record = index.get(first)
    assert record is not None
    for seq in range(2, 502):
        index.add(replace(record, artifact_id=f"{seq:032x}", seq=seq))
    request = pb.ListArtifactsRequest(page_size=1_000)

    page = await kept.artifacts.ListArtifacts(request)
    request.page_token = page.next_page_token
    rest = await kept.artifacts.ListArtifacts(request)

    found = [each.artifact_id for each in (*page.artifacts, *rest.artifacts)]
    assert len(page.artifacts) > 250
    assert rest.next_page_token == ""
    assert found == [f"{seq:032x}" for seq in range(501, 1, -1)] + [first]


# --- a disk that lies

HARMS = [
    ("flip", "SHA-256 differs"),
    ("cut", "has 3 bytes instead of"),
    ("remove", "is missing"),
    ("link", "is no regular file"),
    ("pipe", "is no regular file"),
]


async def test_damaged_content_is_never_told_as_right(kept: Orchestrator, tmp_path: Path) -> None:
    """ORCH-3097: the call fails with DATA_LOSS and says why; putting it again mends it."""
    path = tmp_path / "artifacts" / "objects" / sha256(MEDIUM)
    for harm, why in HARMS:
        artifact_id = (await put(kept.artifacts, MEDIUM)).artifact.artifact_id
        do_harm(path, harm)

        whole = await refused(get(kept.artifacts, artifact_id))
        part = await refused(get(kept.artifacts, artifact_id, offset=10, limit=1))
        await put(kept.artifacts, MEDIUM)

        assert whole[0] == part[0] == "DATA_LOSS"
        assert why in whole[2]
        assert (await get(kept.artifacts, artifact_id))[1] == MEDIUM


def do_harm(path: Path, harm: str) -> None:
    """Does something to a file that this program never does."""
    if harm == "flip":
        with path.open("r+b") as file:
            file.seek(len(MEDIUM) - 1)
            file.write(bytes([MEDIUM[-1] ^ 1]))
        return
    path.unlink()
    if harm == "cut":
        path.write_bytes(b"abc")
    elif harm == "link":
        elsewhere = path.parent.parent / "elsewhere"
        elsewhere.write_bytes(MEDIUM)
        path.symlink_to(elsewhere)
    elif harm == "pipe":
        os.mkfifo(path)


# --- over restarts


async def test_artifacts_outlive_a_restart_and_expire(
    start_orchestrator: StartOrchestrator, tmp_path: Path
) -> None:
    """What was told is true of the next process too, until the time is over."""
    journal = {"kind": "sqlite", "path": str(tmp_path / "journal.db"), "prune_every_ms": 20}
    first = await start(start_orchestrator, tmp_path)
    told = header(tags=["t"])
    answer = await put(first.artifacts, LARGE, told)
    (tmp_path / "artifacts" / "objects" / "README").write_text("not ours")
    (tmp_path / "artifacts" / "objects" / ("0" * 64)).write_text("left by a crash")
    (tmp_path / "artifacts" / "incoming" / "x.part").write_text("left by a crash")
    await first.close()
    second = await start(start_orchestrator, tmp_path, retention_ms=100)
    before = await get(second.artifacts, answer.artifact.artifact_id)
    swept = objects(tmp_path) | incoming(tmp_path)
    brief = (await put(second.artifacts, b"brief")).artifact
    await second.close()

    third = await start_orchestrator(None, store=journal)
    await until(lambda: third.server.artifacts.index.get(brief.artifact_id) is None)

    assert before == (answer.artifact, LARGE)
    assert swept == {"README", sha256(LARGE)}
    assert await listed(third) == [answer.artifact.artifact_id]
    assert objects(tmp_path) == {"README", sha256(LARGE)}
