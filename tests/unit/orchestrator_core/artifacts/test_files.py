"""Content on disk: nothing leads out of the directory, nothing is lost by mistake."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator_core.artifacts.files import (
    ArtifactFiles,
    DamagedError,
    FilesFullError,
    FilesUnusableError,
    TemporaryFiles,
)

JOURNAL = "0" * 32


@pytest.fixture
def files(tmp_path: Path) -> Iterator[ArtifactFiles]:
    """An open directory."""
    opened = ArtifactFiles(tmp_path / "artifacts")
    opened.open(JOURNAL)
    yield opened
    opened.close()


def put(files: ArtifactFiles, content: bytes) -> str:
    """Stores content; its digest."""
    incoming = files.receive()
    incoming.write(content)
    incoming.sync()
    files.publish(incoming)
    incoming.discard()
    return incoming.sha256


def test_what_was_put_is_read_and_only_its_owner_may(files: ArtifactFiles) -> None:
    """Files and directories are for the account of the service alone."""
    digest = put(files, b"content")
    reading = files.read(digest, 7)

    data = reading.read(100)
    reading.verify()
    reading.close()

    path = files.directory / "objects" / digest
    assert data == b"content"
    assert path.stat().st_mode & 0o777 == 0o600
    assert {each.stat().st_mode & 0o777 for each in files.directory.iterdir() if each.is_dir()} == {
        0o700
    }


def test_half_read_content_is_not_right(files: ArtifactFiles) -> None:
    """Who stops early cannot know."""
    reading = files.read(put(files, b"content"), 7)
    reading.read(3)

    with pytest.raises(DamagedError):
        reading.verify()
    reading.close()


def test_a_sweep_removes_garbage_and_nothing_else(files: ArtifactFiles) -> None:
    """Unfinished uploads and content that no index names; files with other names stay."""
    kept, garbage = put(files, b"kept"), put(files, b"garbage")
    files.receive().close()
    inside = files.directory / "objects"
    (inside / "notes.txt").write_text("mine")
    (inside / kept.upper()).write_text("no digest")

    swept = files.sweep({kept, "f" * 64})

    assert (swept.removed, swept.missing) == (2, {"f" * 64})
    assert {path.name for path in inside.iterdir()} == {kept, "notes.txt", kept.upper()}
    assert list((files.directory / "incoming").iterdir()) == []
    assert not (inside / garbage).exists()


@pytest.mark.parametrize("name", ["objects", "incoming", "lock", "journal"])
def test_links_inside_are_refused(tmp_path: Path, name: str) -> None:
    """Design 9: nothing in the directory leads out of it."""
    outside, inside = tmp_path / "outside", tmp_path / "artifacts"
    outside.mkdir()
    inside.mkdir()
    (inside / name).symlink_to(outside)

    with pytest.raises(FilesUnusableError, match=r"without links in it; see artifacts\.path"):
        ArtifactFiles(inside).open(JOURNAL)

    assert list(outside.iterdir()) == []


def test_a_directory_of_another_journal_is_refused(files: ArtifactFiles) -> None:
    """All in it would look like garbage."""
    put(files, b"precious")
    files.close()

    with pytest.raises(FilesUnusableError, match=f"of another journal .{JOURNAL}.: restore"):
        ArtifactFiles(files.directory).open("1" * 32)
    files.open(JOURNAL)

    assert files.sweep(set()).removed == 1


def test_a_directory_has_one_orchestrator(files: ArtifactFiles) -> None:
    """A second one would sweep what the first receives."""
    with pytest.raises(FilesUnusableError, match="in use by another orchestrator"):
        ArtifactFiles(files.directory).open(JOURNAL)


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    """The message names it, and the key."""
    (tmp_path / "file").write_text("")

    with pytest.raises(FilesUnusableError, match=r"file cannot hold artifacts .*artifacts\.path"):
        ArtifactFiles(tmp_path / "file").open(JOURNAL)


def test_a_full_disk_is_told_from_a_broken_one(
    files: ArtifactFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the former mends itself."""
    incoming = files.receive()

    def failing(number: int) -> None:
        def write(_descriptor: int, _data: object) -> int:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("orchestrator_core.artifacts.files.os.write", write)

    failing(errno.ENOSPC)
    with pytest.raises(FilesFullError, match="disk of artifacts is full"):
        incoming.write(b"x")
    failing(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        incoming.write(b"x")
    incoming.discard()


def test_room_is_left_for_others(tmp_path: Path) -> None:
    """The disk may be the journal's."""
    files = ArtifactFiles(tmp_path / "artifacts", free_bytes_min=1 << 60)
    files.open(JOURNAL)

    with pytest.raises(FilesFullError, match=r"artifacts\.free_bytes_min"):
        files.receive()
    files.close()


def test_a_temporary_directory_goes_with_its_owner() -> None:
    """An index in memory forgets what is in it anyway."""
    files = TemporaryFiles()
    files.open(JOURNAL)
    put(files, b"content")
    files.close()

    assert not files.directory.exists()
