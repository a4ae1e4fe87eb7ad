"""What is left of artifacts when the process is killed between content and index. ORCH-3097."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from orchestrator_core import failpoints
from orchestrator_core.artifacts.files import ArtifactFiles
from orchestrator_core.artifacts.index import Query
from orchestrator_core.artifacts.keeper import Artifacts
from orchestrator_core.config.storage import ArtifactsTable
from orchestrator_core.store.sqlite import SqliteStore

ROOT = Path(__file__).parents[4]
SCRIPT = Path(__file__).with_name("dying_keeper.py")
HUNG = Path(__file__).with_name("hung_keeper.py")
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "proto")])
# Many times what it takes: it is a process that may hang.
END_S = 60.0


async def run_until_killed(directory: Path, failpoint: str) -> list[list[str]]:
    """What was promised before the failpoint killed the process."""
    environment = {
        "PYTHONPATH": PYTHONPATH,
        failpoints.VARIABLE: failpoint,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, SCRIPT, directory, stdout=asyncio.subprocess.PIPE, env=environment
    )
    stdout, _ = await process.communicate()
    assert process.returncode == -signal.SIGKILL
    return [line.split() for line in stdout.decode().splitlines()]


@pytest.mark.parametrize(
    ("failpoint", "garbage"),
    [
        ("artifact.published:2", 1),
        ("artifact.indexed:2", 0),
        ("artifact.forgotten:1", 1),
    ],
)
async def test_a_kill_leaves_garbage_at_most(tmp_path: Path, failpoint: str, garbage: int) -> None:
    """What was promised is there and right; what was not is whole or gone; the rest is swept."""
    told = await run_until_killed(tmp_path, failpoint)
    objects, incoming = (tmp_path / "artifacts" / name for name in ("objects", "incoming"))
    before = len(list(objects.iterdir())) + len(list(incoming.iterdir()))
    store = SqliteStore(tmp_path / "journal.db")
    files = ArtifactFiles(tmp_path / "artifacts")
    keeper = Artifacts(ArtifactsTable(), files, store, lambda: 1, set)

    await keeper.open(await store.open())

    records = keeper.index.page(Query(), None, 9).records
    for record in records:
        expected = b"content %d" % (int(record.tags[0]) % 2)
        assert await keeper.content(record, bytes) == expected
    deleted = {artifact_id for what, artifact_id in told if what == "deleted"}
    promised = {artifact_id for what, artifact_id in told if what == "put"} - deleted
    kept = {record.artifact_id for record in records}
    assert promised - kept <= ({told[1][1]} if failpoint == "artifact.forgotten:1" else set())
    assert {path.name for path in objects.iterdir()} == keeper.index.digests()
    assert list(incoming.iterdir()) == []
    assert before - len(keeper.index.digests()) == garbage
    await keeper.close()
    await store.close()


async def test_a_disk_that_does_not_answer_keeps_no_process_from_ending(tmp_path: Path) -> None:
    """Neither the close waits for its threads for ever, nor what was under way, nor the process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        HUNG,
        tmp_path,
        stdout=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": PYTHONPATH},
    )
    try:
        stdout, _ = await asyncio.wait_for(process.communicate(), END_S)
    finally:
        if process.returncode is None:
            process.kill()

    assert process.returncode == 0
    assert "artifacts_not_closed" in stdout.decode()
