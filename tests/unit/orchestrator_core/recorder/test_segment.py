"""Files of a recording: cut anywhere they end cleanly, damaged they are refused."""

import stat
from pathlib import Path

import pytest

from orchestrator_core.core.config import CoreConfig
from orchestrator_core.recorder.recorder import recordings
from orchestrator_core.recorder.replay import replay
from orchestrator_core.recorder.segment import (
    STEP,
    Frame,
    Header,
    RecordingError,
    SegmentWriter,
    read_frames,
    read_header,
)
from tests.unit.orchestrator_core.recorder.recordings import only_segment, record

HEADER = Header(
    rules_version=1,
    build="1",
    layout="State()",
    run=5,
    number=1,
    follows=False,
    first_step=1,
    started_ms=7,
    config=CoreConfig(queue_capacity=3),
)
BODIES = [b"", b"one", b"two" * 50, b"three"]


def written(directory: Path) -> Path:
    """A small segment, flushed after every frame."""
    writer = SegmentWriter(directory, HEADER)
    for body in BODIES:
        writer.add(STEP, body)
        writer.flush()
    writer.close()
    return writer.path


def test_a_file_whose_header_cannot_be_written_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk a new one is tried now and then."""
    opened: list[SegmentWriter] = []

    def full(writer: SegmentWriter, _: bytes) -> None:
        opened.append(writer)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SegmentWriter, "_put", full)
    with pytest.raises(OSError, match="No space left"):
        SegmentWriter(tmp_path, HEADER)

    assert [writer._file.closed for writer in opened] == [True]


def test_frames_and_header_come_back(tmp_path: Path) -> None:
    """What was written is read, in order."""
    path = written(tmp_path)

    assert read_header(path) == HEADER
    assert list(read_frames(path)) == [Frame(STEP, body) for body in BODIES]


def test_a_file_cut_at_any_byte_ends_cleanly(tmp_path: Path) -> None:
    """A killed process leaves such a file; what came before the cut is read. Design §6."""
    path = written(tmp_path)
    whole, read = path.read_bytes(), 0

    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        frames = list(read_frames(path))

        assert frames == [Frame(STEP, body) for body in BODIES[: len(frames)]]
        assert len(frames) >= read
        read = len(frames)

    assert read == len(BODIES)


def test_a_recording_cut_at_any_byte_replays(tmp_path: Path) -> None:
    """All steps before the cut are equal; a cut is never taken for a difference."""
    world = record(3, tmp_path, steps=25)
    path = only_segment(tmp_path)
    whole, replayed = path.read_bytes(), 0

    for length in (*range(0, len(whole), 61), len(whole)):
        path.write_bytes(whole[:length])
        report = replay([path])

        assert report.steps >= replayed
        replayed = report.steps

    assert replayed == len(world.inputs)


def test_a_changed_byte_is_reported_or_changes_nothing(tmp_path: Path) -> None:
    """Damage never reads as another recording; at worst the rest counts as cut off."""
    path = written(tmp_path)
    whole = path.read_bytes()
    begin = whole.index(b"\n", whole.index(b"\n") + 1) + 1
    reported = 0

    for place in range(begin, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x20]) + whole[place + 1 :])
        try:
            frames = list(read_frames(path))
        except RecordingError as error:
            assert "damaged" in str(error)  # noqa: PT017 - either outcome is fine, not any other
            reported += 1
        else:
            assert frames == [Frame(STEP, body) for body in BODIES[: len(frames)]]

    assert reported > (len(whole) - begin) // 2


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"something else\n{}\n", "not a flight recording"),
        (b"llama-orch flight recording 7\n{}\n", "format 7, this version reads format 1"),
        (b"llama-orch flight recording 1\n{}\n", "header cannot be read"),
        (b"llama-orch flight recording 1\nnonsense\n", "header cannot be read"),
    ],
)
def test_what_is_no_recording_is_refused(content: bytes, told: str, tmp_path: Path) -> None:
    """The message says what the file is not."""
    path = tmp_path / "x.flight"
    path.write_bytes(content)

    with pytest.raises(RecordingError, match=told):
        read_header(path)


def test_a_bound_of_the_header_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """A recording comes from anywhere: its configuration is checked like any other."""
    path = written(tmp_path)
    raw = path.read_bytes().replace(b'"queue_capacity":3', b'"queue_capacity":0', 1)
    path.write_bytes(raw)

    with pytest.raises(RecordingError, match="queue_capacity"):
        read_header(path)


def test_files_are_for_their_owner_alone_and_never_overwritten(tmp_path: Path) -> None:
    """Job ids and identities are nobody else's business."""
    path = written(tmp_path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        SegmentWriter(tmp_path, HEADER)
    assert recordings(tmp_path) == [path]
