"""A journal that is full, read-only or slow, under clients: who is refused and what goes on.

LO-305; reliability faults F8 and F10.
"""

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamaorch_client import (
    AsyncClient,
    ClientOptions,
    JobState,
    RetryOptions,
    UnavailableError,
)
from orchestrator_core.store.sqlite import SqliteStore
from tests.integration.faults.services import host_of, orchestrator, output, rest, slow_job
from tests.unit.orchestrator_core.store.commit_breaks import ends_transaction
from tests.unit.orchestrator_core.store.small_disk import remount, tmpfs

ROOT = Path(__file__).parents[3]
WAIT_S = 40.0
ONE_SHOT = ClientOptions(retry=RetryOptions(attempts_max=1))
PROMPT = "x" * 100_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    with tmpfs(tmp_path / "disk", "size=2m"):
        yield tmp_path / "disk"


async def test_a_full_disk_refuses_jobs_while_streams_go_on(disk: Path) -> None:
    """What was accepted stays accepted, also over a restart; with room again all goes on."""
    accepted: list[str] = []

    async with (
        asyncio.timeout(WAIT_S),
        orchestrator(disk / "journal.db") as server,
        host_of(server),
        AsyncClient(str(server.address), options=ONE_SHOT) as client,
    ):
        stream = slow_job(client)
        await output(stream, 1)
        refused = await _filled(client, accepted)
        during = await output(stream, 5)
        still = await client.get_job(accepted[0])
        remount(disk, "size=64m")
        after = await rest(stream)
        later = await _accepted_again(client)
    async with (
        asyncio.timeout(WAIT_S),
        orchestrator(disk / "journal.db") as server,
        AsyncClient(str(server.address)) as client,
    ):
        known = [(await client.get_job(job_id)).job_id for job_id in (*accepted, later)]

    assert refused.reason == "STORE_UNAVAILABLE"
    assert refused.retry_after_ms is not None
    assert len(accepted) > 3
    assert still.job_id == accepted[0]
    assert during
    assert after
    assert known == [*accepted, later]


async def _filled(client: AsyncClient, accepted: list[str]) -> UnavailableError:
    """Gives jobs with long prompts until one is refused."""
    while True:
        try:
            receipt = await client.enqueue(model_id="mock", prompt=PROMPT)
        except UnavailableError as error:
            return error
        accepted.append(receipt.job_id)


async def _accepted_again(client: AsyncClient) -> str:
    """Gives a job until one is accepted: the journal is tried again after a pause."""
    while True:
        try:
            return (await client.enqueue(model_id="mock", prompt="later")).job_id
        except UnavailableError as error:
            await asyncio.sleep((error.retry_after_ms or 100) / 1000)


class Troubled(sqlite3.Connection):
    """A connection whose commits fail or wait as a test says."""

    code = ""
    gate = threading.Event()

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        """Fails or waits at each commit."""
        if ends_transaction(self, sql):
            type(self).gate.wait()
            if self.code:
                if self.in_transaction:
                    super().execute("ROLLBACK")
                error = sqlite3.OperationalError("injected")
                error.sqlite_errorname = self.code
                raise error
        return super().execute(sql, *args)


@pytest.fixture
def troubled() -> Iterator[type[Troubled]]:
    """The class of the journal's connection, without trouble at first."""

    class Mine(Troubled):
        gate = threading.Event()

    Mine.gate.set()
    yield Mine
    Mine.gate.set()


def troubled_store(path: Path, troubled: type[Troubled]) -> SqliteStore:
    """A journal over such connections."""
    return SqliteStore(
        path, lambda file: sqlite3.connect(file, isolation_level=None, factory=troubled)
    )


@pytest.mark.parametrize("code", ["SQLITE_READONLY", "SQLITE_FULL"])
async def test_a_journal_that_fails_refuses_jobs_while_streams_go_on(
    tmp_path: Path, troubled: type[Troubled], code: str
) -> None:
    """Read-only or full: a clear refusal, and it heals by itself."""
    store = troubled_store(tmp_path / "j.db", troubled)

    async with (
        asyncio.timeout(WAIT_S),
        orchestrator(tmp_path / "j.db", store) as server,
        host_of(server),
        AsyncClient(str(server.address), options=ONE_SHOT) as client,
    ):
        stream = slow_job(client)
        await output(stream, 1)
        troubled.code = code
        with pytest.raises(UnavailableError) as caught:
            await client.enqueue(model_id="mock", prompt="refused", job_id="refused")
        during = await output(stream, 5)
        troubled.code = ""
        await rest(stream)
        ended = await client.get_job(stream.job_id)
        later = await _accepted_again(client)
        known = [job.job_id async for job in client.list_jobs()]

    assert caught.value.reason == "STORE_UNAVAILABLE"
    assert during
    assert ended.state is JobState.FINISHED
    assert later in known
    assert "refused" not in known


async def test_nobody_is_answered_while_the_outcome_of_a_commit_is_unknown(
    tmp_path: Path, troubled: type[Troubled]
) -> None:
    """The job in doubt waits for the journal's word; who comes meanwhile is refused at once."""
    store = troubled_store(tmp_path / "j.db", troubled)

    async with (
        asyncio.timeout(WAIT_S),
        orchestrator(tmp_path / "j.db", store) as server,
        host_of(server),
        AsyncClient(str(server.address), options=ONE_SHOT) as client,
    ):
        stream = slow_job(client)
        await output(stream, 1)
        degraded = asyncio.Event()
        server.runtime._gate._on_error = lambda _error: degraded.set()
        troubled.code = "SQLITE_IOERR_FSYNC"
        doubtful = asyncio.create_task(client.enqueue(model_id="mock", prompt="in doubt"))
        await degraded.wait()
        with pytest.raises(UnavailableError) as refused:
            await client.enqueue(model_id="mock", prompt="refused")
        during = await output(stream, 5)
        early = doubtful.done()
        troubled.code = ""
        with pytest.raises(UnavailableError) as told:
            await doubtful
        await rest(stream)

    assert refused.value.reason == told.value.reason == "STORE_UNAVAILABLE"
    assert during
    assert not early


async def test_a_slow_sync_holds_back_promises_and_nothing_else(
    tmp_path: Path, troubled: type[Troubled]
) -> None:
    """While a commit waits, output flows and questions are answered; the promise comes after it."""
    store = troubled_store(tmp_path / "j.db", troubled)

    async with (
        asyncio.timeout(WAIT_S),
        orchestrator(tmp_path / "j.db", store) as server,
        host_of(server),
        AsyncClient(str(server.address)) as client,
    ):
        stream = slow_job(client)
        await output(stream, 1)
        troubled.gate.clear()
        waiting = asyncio.create_task(client.enqueue(model_id="mock", prompt="waits"))
        during = await output(stream, 20)
        capabilities = await client.capabilities()
        early = waiting.done()
        troubled.gate.set()
        receipt = await waiting
        await rest(stream)
        ended = await client.get_job(stream.job_id)

    assert during
    assert capabilities.replica_sets
    assert not early
    assert receipt.job_id
    assert ended.state is JobState.FINISHED


def test_a_read_only_journal_refuses_the_start_and_names_the_file(disk: Path) -> None:
    """Exit code 2 and one line that says which file cannot be written."""
    journal = disk / "journal.db"
    asyncio.run(_made(journal))
    remount(disk, "ro")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "proto")))}

    settings = ("--set", "listen=127.0.0.1:0", "--set", f"store.path={journal}")
    done = subprocess.run(
        (sys.executable, "-m", "orchestrator_core", *settings),
        cwd=disk.parent,
        env=environment,
        capture_output=True,
        timeout=30,
        check=False,
    )
    remount(disk, "rw")

    assert done.returncode == 2
    assert str(journal).encode() in done.stderr
    assert b"Traceback" not in done.stderr


async def _made(journal: Path) -> None:
    store = SqliteStore(journal)
    await store.open()
    await store.close()
