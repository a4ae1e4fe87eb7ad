"""Puts, deletions, expiries, quotas and a failing journal against a dictionary. ORCH-3097."""

import asyncio
import errno
import hashlib
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from orchestrator_core.artifacts.description import Description
from orchestrator_core.artifacts.files import ArtifactFiles, Reading
from orchestrator_core.artifacts.index import Query
from orchestrator_core.artifacts.inventory import WRITE_TRIES
from orchestrator_core.artifacts.keeper import Artifacts
from orchestrator_core.artifacts.upload import uploading
from orchestrator_core.config.storage import ArtifactsTable
from orchestrator_core.core.outcome import Reason
from orchestrator_core.errors import RefusalError
from orchestrator_core.store.artifact import ArtifactKind, ArtifactRecord
from orchestrator_core.store.memory import CommitFault, MemoryJournal, MemoryStore
from orchestrator_core.store.port import StoreError

LIMITS = ArtifactsTable(
    quota_bytes=60,
    quota_bytes_per_identity=45,
    count_max=7,
    retention_ms=10,
    free_bytes_min=0,
    uploads_max=2,
    uploads_per_identity_max=1,
    downloads_max=1,
)
CONTENTS = [bytes([65 + number]) * (3 + 4 * number) for number in range(6)]


@dataclass
class World:
    """A keeper on a disk and a journal that outlive it, and what should be there."""

    directory: Path
    journal: MemoryJournal = field(default_factory=MemoryJournal)
    plan: list[CommitFault] = field(default_factory=list)
    now_ms: int = 1_000
    pinned: set[str] = field(default_factory=set)
    model: dict[str, tuple[str, bytes, int]] = field(default_factory=dict)
    unsure: bool = False

    async def start(self) -> Artifacts:
        """A new process."""
        store = MemoryStore(
            lambda _number, _batch: self.plan.pop(0) if self.plan else CommitFault.NONE,
            self.journal,
        )
        files = ArtifactFiles(self.directory)
        keeper = Artifacts(LIMITS, files, store, lambda: self.now_ms, lambda: self.pinned)
        await keeper.open(await store.open())
        return keeper

    def has_room(self, owner: str, size_bytes: int) -> bool:
        """The quotas, counted from scratch."""
        stored = {content for _, content, _ in self.model.values()}
        own = [content for who, content, _ in self.model.values() if who == owner]
        total = sum(map(len, stored)) + size_bytes
        return total <= LIMITS.quota_bytes and (
            sum(map(len, own)) + size_bytes <= LIMITS.quota_bytes_per_identity
        )


def described(owner: str, tag: str, **more: object) -> Description:
    """What is said of an artifact."""
    base = {"owner": owner, "kind": ArtifactKind.PLAN, "media_type": "text/plain", "tags": (tag,)}
    return Description(**(base | more))  # type: ignore[arg-type]


async def put(keeper: Artifacts, about: Description, content: bytes) -> ArtifactRecord:
    """Puts content in two pieces."""
    async with uploading(keeper, about) as upload:
        for piece in (content[:2], content[2:]):
            await upload.write(piece)
        return (await upload.finish())[0]


async def content_of(keeper: Artifacts, record: ArtifactRecord) -> bytes:
    """All content of an artifact, verified."""
    return await keeper.content(record, bytes)


async def reason(work: object) -> str:
    """The label, or the reason, for which something is refused."""
    with pytest.raises(RefusalError) as caught:
        await work  # type: ignore[misc]
    refusal = caught.value.refusal
    return refusal.policy_label or refusal.reason.value


async def try_put(world: World, keeper: Artifacts, chance: random.Random) -> None:
    """A put, and what becomes of the model."""
    owner, content = chance.choice("ab"), chance.choice(CONTENTS)
    about = described(owner, chance.choice("xy"))
    room = world.has_room(owner, len(content))
    fault = chance.choice([CommitFault.NONE] * 5 + list(CommitFault))
    world.plan[:] = [fault] * WRITE_TRIES
    try:
        record = await put(keeper, about, content)
    except RefusalError as error:
        world.plan.clear()
        reason, label = error.refusal.reason, error.refusal.policy_label
        if reason is Reason.STORE_UNAVAILABLE:
            assert fault is not CommitFault.NONE
            world.unsure = world.unsure or fault is not CommitFault.UNAVAILABLE
        elif label == "artifact-count":
            assert len(world.model) >= LIMITS.count_max
        else:
            assert label in ("artifact-quota", "artifact-identity-quota")
            assert not room
        return
    world.plan.clear()
    assert room
    assert fault is CommitFault.NONE
    world.model[record.artifact_id] = (owner, content, world.now_ms + LIMITS.retention_ms)
    assert len(world.model) <= LIMITS.count_max


async def try_delete(world: World, keeper: Artifacts, chance: random.Random) -> None:
    """A deletion of something that is there, perhaps pinned."""
    if not world.model:
        return
    artifact_id = chance.choice(sorted(world.model))
    if artifact_id in world.pinned:
        assert await reason(keeper.delete(artifact_id)) == "ARTIFACT_IN_USE"
        return
    await keeper.delete(artifact_id)
    del world.model[artifact_id]


async def expire(world: World, keeper: Artifacts, chance: random.Random) -> None:
    """Time passes, and what is over goes; with a journal that cannot be written, nothing does."""
    world.now_ms += chance.randint(0, 8)
    world.plan[:] = chance.choice([[], [], [CommitFault.UNAVAILABLE]])
    over = {
        artifact_id
        for artifact_id, (_, _, expires_ms) in world.model.items()
        if expires_ms <= world.now_ms and artifact_id not in world.pinned
    }
    try:
        assert await keeper.expire() == len(over)
    except StoreError:
        assert over
        return
    finally:
        world.plan.clear()
    world.model = {each: told for each, told in world.model.items() if each not in over}


async def check(world: World, keeper: Artifacts) -> None:
    """What is listed is what should be there, with its content, and the disk holds nothing else."""
    assert {r for r in world.model if keeper.index.get(r)} == set(world.model)
    assert len(keeper.index) == len(world.model)
    for artifact_id, (owner, content, expires_ms) in world.model.items():
        record = keeper.index.get(artifact_id)
        assert record is not None
        assert (record.owner, record.expires_ms) == (owner, expires_ms)
        assert await content_of(keeper, record) == content
    on_disk = {path.name for path in (world.directory / "objects").iterdir()}
    assert on_disk >= keeper.index.digests()
    assert world.unsure or on_disk == keeper.index.digests()
    assert list((world.directory / "incoming").iterdir()) == []


@pytest.mark.parametrize("seed", range(8))
async def test_it_keeps_what_it_said_and_nothing_else(tmp_path: Path, seed: int) -> None:
    """Over quotas, pins, expiries, a journal that fails, and restarts."""
    chance, world = random.Random(seed), World(tmp_path / "artifacts")  # noqa: S311 - seeded
    keeper = await world.start()

    for _ in range(25):
        match chance.randint(0, 9):
            case 0 | 1:
                await try_delete(world, keeper, chance)
            case 2:
                await expire(world, keeper, chance)
            case 3:
                known = sorted(world.model)
                world.pinned = set(chance.sample(known, min(len(known), 2)))
            case 4 if not world.unsure:
                await keeper.close()
                keeper = await world.start()
            case _:
                await try_put(world, keeper, chance)
        await check(world, keeper)

    await keeper.close()
    keeper = await world.start()
    for artifact_id, (_, content, _) in world.model.items():
        record = keeper.index.get(artifact_id)
        assert record is not None
        assert await content_of(keeper, record) == content
    # Of what is uncertain the journal decides; either way no entry lacks its content.
    on_disk = {path.name for path in (world.directory / "objects").iterdir()}
    assert on_disk == keeper.index.digests()
    await keeper.close()


@pytest.fixture
async def world(tmp_path: Path) -> World:
    """An empty world."""
    return World(tmp_path / "artifacts")


async def test_what_arrives_counts_before_it_has_arrived(world: World) -> None:
    """Two uploads cannot both take the last room; a broken one gives it back."""
    keeper = await world.start()
    async with uploading(keeper, described("a", "x", expected_size_bytes=40)) as first:
        assert await reason(put(keeper, described("b", "y"), b"b" * 21)) == "artifact-quota"
        await first.write(b"a" * 39)
    assert await reason(put(keeper, described("a", "x"), b"a" * 46)) == "artifact-identity-quota"

    await put(keeper, described("b", "y"), b"b" * 21)

    assert keeper.index.stored_bytes == 21
    await keeper.close()


async def test_what_is_in_the_index_counts_once(world: World) -> None:
    """The room that was set aside for it is free for others from then on."""
    keeper = await world.start()
    async with uploading(keeper, described("a", "x")) as first:
        await first.write(b"a" * 30)
        await first.finish()

        await put(keeper, described("b", "y"), b"b" * 30)

    assert keeper.index.stored_bytes == LIMITS.quota_bytes
    await keeper.close()


async def test_what_went_while_it_was_put_again_needs_room_again(world: World) -> None:
    """Who took that meanwhile has it."""
    keeper = await world.start()
    content = b"a" * 40
    told = described("a", "x", expected_sha256=hashlib.sha256(content).hexdigest())
    record = await put(keeper, told, content)
    async with uploading(keeper, told) as again:
        await again.write(content)
        await keeper.delete(record.artifact_id)
        await put(keeper, described("b", "y"), b"b" * 45)

        assert await reason(again.finish()) == "artifact-quota"

    assert keeper.index.stored_bytes == 45
    await put(keeper, described("a", "x"), b"a" * 15)
    await keeper.close()


async def test_so_many_at_once_and_no_more(world: World) -> None:
    """Of one client, of all, and of readers; each place is free again afterwards."""
    keeper = await world.start()
    record = await put(keeper, described("a", "x"), b"content")
    async with uploading(keeper, described("a", "y")):
        assert await reason(put(keeper, described("a", "z"), b"z")) == "artifact-uploads"
        async with uploading(keeper, described("b", "y")):
            assert await reason(put(keeper, described("c", "z"), b"z")) == "artifact-uploads"
    async with keeper.reading(record):
        with pytest.raises(RefusalError, match="downloads_max"):
            async with keeper.reading(record):
                pass

    async with keeper.reading(record) as reading:
        assert await keeper.read(record, reading, 100) == b"content"
    await put(keeper, described("a", "z"), b"z")
    await keeper.close()


async def test_what_a_caller_began_ends_without_it(world: World) -> None:
    """A put whose client goes away in the last moment is whole, or is not at all."""
    keeper = await world.start()
    async with uploading(keeper, described("a", "x")) as upload:
        await upload.write(b"content")
        finishing = asyncio.create_task(upload.finish())
        # From here on it is the keeper's.
        while upload._incoming is not None:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        finishing.cancel()
        await asyncio.wait([finishing])
    await keeper.close()

    keeper = await world.start()

    assert [record.size_bytes for record in keeper.index.page(Query(), None, 9).records] == [7]
    await keeper.close()


async def test_content_of_a_doubtful_record_stays(world: World) -> None:
    """What the journal may name is not removed with the last artifact that is known to have it."""
    keeper = await world.start()
    world.plan[:] = [CommitFault.UNKNOWN_WRITTEN] * WRITE_TRIES
    assert await reason(put(keeper, described("a", "x"), b"content")) == "STORE_UNAVAILABLE"
    known = await put(keeper, described("a", "y"), b"content")
    await keeper.delete(known.artifact_id)
    await keeper.close()

    keeper = await world.start()

    (found,) = keeper.index.page(Query(), None, 9).records
    assert found.tags == ("x",)
    assert await content_of(keeper, found) == b"content"
    await keeper.close()


async def test_a_doubtful_record_has_its_number_for_itself(world: World) -> None:
    """Else two artifacts would share it once the journal shows that it was written."""
    keeper = await world.start()
    world.plan[:] = [CommitFault.UNKNOWN_WRITTEN] * WRITE_TRIES
    assert await reason(put(keeper, described("a", "x"), b"doubtful")) == "STORE_UNAVAILABLE"
    await put(keeper, described("a", "y"), b"sure")
    await keeper.close()

    keeper = await world.start()

    found = keeper.index.page(Query(), None, 9).records
    assert [record.tags for record in found] == [("y",), ("x",)]
    for record in found:
        await keeper.delete(record.artifact_id)
    assert len(keeper.index) == 0
    await keeper.close()


async def test_an_artifact_that_is_held_stays(world: World) -> None:
    """A job that is about to be accepted needs it."""
    keeper = await world.start()
    record = await put(keeper, described("a", "x"), b"content")
    with keeper.held(record.artifact_id):
        assert await reason(keeper.delete(record.artifact_id)) == "ARTIFACT_IN_USE"
        world.now_ms += 1_000
        assert await keeper.expire() == 0

    assert await keeper.expire() == 1
    await keeper.close()


async def test_a_reader_whose_file_cannot_be_closed_takes_nobodys_place(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk over the network that fails: else nothing could be read until the next start."""
    keeper = await world.start()
    record = await put(keeper, described("a", "x"), CONTENTS[0])

    def fails(reading: Reading) -> None:
        close(reading)
        raise OSError(errno.EIO, "it fails")

    close = Reading.close
    monkeypatch.setattr(Reading, "close", fails)
    with pytest.raises(OSError, match="it fails"):
        async with keeper.reading(record):
            pass
    monkeypatch.setattr(Reading, "close", close)

    async with keeper.reading(record) as reading:
        assert await keeper.read(record, reading, 100) == CONTENTS[0]
    await keeper.close()
