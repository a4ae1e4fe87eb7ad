"""What the SQLite journal keeps through kills, torn files and full disks. LO-305."""

import asyncio
import os
import random
import shutil
import sys
from pathlib import Path

import pytest

from orchestrator_core.core.events import Recovered
from orchestrator_core.store.port import StoreCorruptError, StoreUnavailableError
from orchestrator_core.store.sqlite import SqliteStore
from tests.unit.orchestrator_core.store.records import after, batch
from tests.unit.orchestrator_core.store.small_disk import remount, tmpfs

ROOT = Path(__file__).parents[4]
WAL_HEADER_BYTES = 32
WAL_FRAME_BYTES = 24 + 4096


async def recovered_from(path: Path) -> Recovered:
    """What a new orchestrator finds."""
    store = SqliteStore(path)
    opened = await store.open()
    await store.close()
    return opened.recovered


@pytest.mark.parametrize("acks", [1, 40, 150])
async def test_every_acknowledged_batch_survives_kill_9(tmp_path: Path, acks: int) -> None:
    """After SIGKILL the journal holds all acknowledged batches, and at most the one in flight."""
    path = tmp_path / "journal.db"
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])}
    script = Path(__file__).with_name("acking_writer.py")
    writer = await asyncio.create_subprocess_exec(
        sys.executable, script, path, stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert writer.stdout is not None
    acked = 0
    while acked < acks:
        acked = int(await writer.stdout.readline())
    writer.kill()
    # What was printed before the kill was acknowledged too.
    acked = int([acked, *(await writer.stdout.read()).split()][-1])
    await writer.wait()

    found = await recovered_from(path)

    assert found in (after(acked), after(acked + 1))


@pytest.fixture
async def torn(tmp_path: Path) -> tuple[bytes, bytes, int]:
    """Database and write-ahead log as a crash would leave them, and the number of batches."""
    batches = 8
    path = tmp_path / "whole.db"
    store = SqliteStore(path)
    await store.open()
    for number in range(1, batches + 1):
        await store.commit(batch(number))
    database, log = taken(path)
    await store.close()
    return database, log, batches


def taken(path: Path) -> tuple[bytes, bytes]:
    """The database and its log as they are."""
    return path.read_bytes(), Path(f"{path}-wal").read_bytes()


def laid_out(path: Path, database: bytes, log: bytes) -> Path:
    """Puts a database and its log in place."""
    path.write_bytes(database)
    Path(f"{path}-wal").write_bytes(log)
    return path


async def test_a_log_cut_anywhere_leaves_a_prefix_of_the_batches(
    tmp_path: Path, torn: tuple[bytes, bytes, int]
) -> None:
    """Whatever of the log was not written, batches are missing only whole and only at the end."""
    database, log, batches = torn
    prefixes = [after(n) for n in range(batches + 1)]
    frames = range(WAL_HEADER_BYTES, len(log) + 1, WAL_FRAME_BYTES)
    cuts = sorted(
        {0, 1, WAL_HEADER_BYTES - 1}
        | {cut for frame in frames for cut in (frame - 1, frame, frame + 23, frame + 2_000)}
    )

    lengths = []
    for cut in (cut for cut in cuts if cut <= len(log)):
        found = await recovered_from(laid_out(tmp_path / f"cut-{cut}.db", database, log[:cut]))
        lengths.append(prefixes.index(found))

    assert lengths == sorted(lengths)
    assert set(lengths) == set(range(batches + 1))


async def test_a_flipped_bit_in_the_log_costs_whole_batches_at_the_end(
    tmp_path: Path, torn: tuple[bytes, bytes, int]
) -> None:
    """A damaged frame and all after it are not taken for good."""
    database, log, batches = torn
    prefixes = [after(n) for n in range(batches + 1)]

    for position in range(40, len(log), len(log) // 24):
        flipped = bytearray(log)
        flipped[position] ^= 0x10
        found = await recovered_from(
            laid_out(tmp_path / f"flip-{position}.db", database, bytes(flipped))
        )

        assert found in prefixes
        assert found != prefixes[-1]


async def test_a_full_disk_refuses_batches_and_loses_none(tmp_path: Path) -> None:
    """Without room a batch is certainly not written; with room again the journal goes on."""
    disk = tmp_path / "disk"
    with tmpfs(disk, "size=2m"):
        store = SqliteStore(disk / "journal.db")
        await store.open()
        number, error = await filled_up(store)
        refused_again = await refusals(store, number + 1)
        held = [await store.holds(batch(n)) for n in range(1, number + 2)]

        remount(disk, "size=16m")
        await store.commit(batch(number + 1))
        await store.close()
        found = await recovered_from(disk / "journal.db")

    assert "the disk is full" in str(error)
    assert number > 10
    assert refused_again == 3
    assert held == [True] * number + [False]
    assert found == after(number + 1)


async def test_a_crash_on_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """What was refused for lack of room does not come back, what was acknowledged does."""
    disk = tmp_path / "disk"
    with tmpfs(disk, "size=2m"):
        store = SqliteStore(disk / "journal.db")
        await store.open()
        number, _ = await filled_up(store)
        for name in ("journal.db", "journal.db-wal"):
            shutil.copy(disk / name, tmp_path / name)
        await store.close()

    assert await recovered_from(tmp_path / "journal.db") == after(number)


async def filled_up(store: SqliteStore) -> tuple[int, StoreUnavailableError]:
    """Commits batches until one is refused; returns how many were not, and the refusal."""
    number = 0
    while True:
        try:
            await store.commit(batch(number + 1))
        except StoreUnavailableError as error:
            return number, error
        number += 1


async def refusals(store: SqliteStore, number: int) -> int:
    """How many of three more tries with a batch are refused."""
    count = 0
    for _ in range(3):
        try:
            await store.commit(batch(number))
        except StoreUnavailableError:
            count += 1
    return count


@pytest.mark.parametrize("seed", range(4))
async def test_a_flipped_bit_in_the_database_is_found_or_changes_nothing(
    fast_disk: Path, seed: int
) -> None:
    """Wherever it is: all is as it was, or the start is refused and names the file."""
    path = fast_disk / "whole.db"
    store = SqliteStore(path)
    await store.open()
    for number in range(1, 9):
        await store.commit(batch(number))
    await store.close()
    content, chance = path.read_bytes(), random.Random(seed)  # noqa: S311 - a seed

    refusals = []
    for flip in range(100):
        damaged = bytearray(content)
        damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        copy = fast_disk / f"flip-{flip}.db"
        copy.write_bytes(damaged)
        found: Recovered | None = None
        try:
            found = await recovered_from(copy)
        except StoreCorruptError as error:
            refusals.append((str(copy), str(error)))
        assert found in (None, after(8))

    # Most of a small database is empty pages; enough flips hit what is in use.
    assert 10 < len(refusals) < 80
    assert all(file in message for file, message in refusals)


async def test_a_log_cut_at_any_offset_is_never_taken_for_more(fast_disk: Path) -> None:
    """Between two commits every offset gives the same: the batches before it, whole."""
    path = fast_disk / "whole.db"
    store = SqliteStore(path)
    await store.open()
    await store.commit(batch(1))
    before = len(taken(path)[1])
    await store.commit(batch(2))
    database, log = taken(path)
    await store.close()

    # Every offset is some ten thousand starts; a prime step meets each byte of a frame's head.
    for cut in range(before, len(log), 37):
        copy = laid_out(fast_disk / f"cut-{cut}.db", database, log[:cut])
        assert await recovered_from(copy) == after(1)
        copy.unlink()

    assert await recovered_from(laid_out(fast_disk / "full.db", database, log)) == after(2)
