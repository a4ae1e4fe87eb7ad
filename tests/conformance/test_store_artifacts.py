"""What every journal promises of the index of artifacts, run against each implementation."""

import asyncio
import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings

from orchestrator_core.core.events import Recovered
from orchestrator_core.store.artifact import ArtifactForgotten, ArtifactKind, ArtifactRecord
from orchestrator_core.store.memory import CommitFault
from orchestrator_core.store.port import (
    Opened,
    Store,
    StoreCorruptError,
    StoreOutcomeUnknownError,
    StoreTakenError,
    StoreUnavailableError,
)
from tests.conformance.media import KINDS, Medium, medium_of
from tests.conformance.store_records import session
from tests.unit.orchestrator_core.store.strategies import strategy_of

ARTIFACTS = strategy_of(ArtifactRecord)


def artifact(artifact_id: str = "a", seq: int = 1, *, expires_ms: int = 9) -> ArtifactRecord:
    """A minimal record."""
    kind = ArtifactKind.PLAN
    return ArtifactRecord(artifact_id, seq, "me", kind, "text/plain", "0" * 64, 3, 2, expires_ms)


async def reopened(medium: Medium, store: Store) -> Opened:
    """What a restart finds; the journal is closed again."""
    await store.close()
    again = medium.store()
    opened = await again.open()
    await again.close()
    return opened


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(record=ARTIFACTS)
def test_every_record_comes_back_equal(kind: str, record: ArtifactRecord) -> None:
    """ORCH-3097: whatever can be said of an artifact is read back as it was written."""

    async def run(directory: Path) -> Opened:
        medium = medium_of(kind, directory)
        store = medium.store()
        await store.open()
        await store.write_artifacts([record])
        return await reopened(medium, store)

    with tempfile.TemporaryDirectory() as directory:
        opened = asyncio.run(run(Path(directory)))

    assert opened.artifacts == (record,)
    assert opened.last_ms == record.created_ms
    assert opened.recovered == Recovered((), (), ())


async def test_of_an_artifact_the_latest_record_counts(medium: Medium, store: Store) -> None:
    """Within a batch and over batches; they come back in the order of their first put."""
    await store.write_artifacts([artifact("c", 3), artifact("a", 1), artifact("b", 2)])
    await store.write_artifacts([artifact("a", 1, expires_ms=50), ArtifactForgotten("b")])
    await store.write_artifacts([ArtifactForgotten("c"), artifact("c", 4)])
    await store.write_artifacts([ArtifactForgotten("unknown")])
    await store.commit([session("s")])

    opened = await reopened(medium, store)

    assert opened.artifacts == (artifact("a", 1, expires_ms=50), artifact("c", 4))
    assert opened.recovered.sessions == (session("s"),)


async def test_changes_are_all_or_nothing_and_may_be_written_again(medium: Medium) -> None:
    """A refused write leaves nothing; one of unknown outcome is simply written again."""
    store = medium.store()
    await store.open()
    changes = [artifact("a"), artifact("b", 2)]
    medium.plan.append(CommitFault.UNAVAILABLE)
    with pytest.raises(StoreUnavailableError):
        await store.write_artifacts(changes)
    nothing = (await reopened(medium, store)).artifacts
    store = medium.store()
    await store.open()
    for fault in (CommitFault.UNKNOWN_LOST, CommitFault.UNKNOWN_WRITTEN):
        medium.plan.append(fault)
        with pytest.raises(StoreOutcomeUnknownError):
            await store.write_artifacts(changes)
        await store.holds(())
    await store.write_artifacts(changes)

    opened = await reopened(medium, store)

    assert nothing == ()
    assert opened.artifacts == tuple(changes)


async def test_artifacts_and_jobs_may_be_written_at_once(medium: Medium, store: Store) -> None:
    """The index does not wait for its turn at the commit gate."""
    await asyncio.gather(
        *(store.write_artifacts([artifact(f"a{n}", n)]) for n in range(5)),
        store.commit([session("s")]),
    )

    opened = await reopened(medium, store)

    assert len(opened.artifacts) == 5
    assert opened.recovered.sessions == (session("s"),)


async def test_an_earlier_orchestrator_changes_no_artifact() -> None:
    """Whoever opened the journal last has it."""
    with tempfile.TemporaryDirectory() as directory:
        medium = medium_of("simulated", Path(directory))
        earlier, later = medium.store(), medium.store()
        await earlier.open()
        await later.open()

        with pytest.raises(StoreTakenError):
            await earlier.write_artifacts([artifact()])

        assert (await reopened(medium, later)).artifacts == ()


async def test_a_damaged_record_is_refused_by_name(tmp_path: Path) -> None:
    """A bit that flips on the disk must not become another artifact."""
    medium = medium_of("sqlite", tmp_path)
    store = medium.store()
    await store.open()
    await store.write_artifacts([artifact("abc")])
    await store.close()
    connection = sqlite3.connect(tmp_path / "journal.db")
    connection.execute("UPDATE artifact SET record = replace(record, 'text/plain', 'text/plaim')")
    connection.commit()
    connection.close()

    with pytest.raises(StoreCorruptError, match="record of artifact abc"):
        await medium.store().open()
