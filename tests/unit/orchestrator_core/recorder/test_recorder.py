"""The recorder stays within its bounds, and never stands in the way of a job."""

import stat
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from orchestrator_core.core.events import Tick
from orchestrator_core.core.machine import Core
from orchestrator_core.recorder import recorder as recorder_module
from orchestrator_core.recorder.recorder import RecordedCore, RecorderSettings, recordings
from orchestrator_core.recorder.replay import replay
from orchestrator_core.recorder.segment import SegmentWriter, read_header
from tests.unit.orchestrator_core.core.world_settings import config_of
from tests.unit.orchestrator_core.recorder.recordings import PATIENCE_S, Recorded, record


def test_the_oldest_segments_go_first_and_the_disk_stays_bounded(tmp_path: Path) -> None:
    """At most `segments_max` files; what is left follows without a gap."""
    world = record(2, tmp_path, steps=2_000, segment_bytes=6_000, segments_max=4)
    paths = recordings(tmp_path)
    headers = [read_header(path) for path in paths]

    assert len(paths) <= 4
    assert headers[0] is not None
    assert headers[0].number > 1
    report = replay(paths)
    assert 0 < report.steps < len(world.inputs)
    assert (report.gaps, report.hashes) == (0, len(paths))


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    """Only recordings are deleted."""
    other = tmp_path / "notes.txt"
    other.write_text("mine")

    record(2, tmp_path, steps=1_000, segment_bytes=3_000, segments_max=2)

    assert other.read_text() == "mine"


def test_a_directory_that_is_made_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Nobody else lists what was recorded."""
    record(2, tmp_path / "flight", steps=25)

    assert stat.S_IMODE((tmp_path / "flight").stat().st_mode) == 0o700


def test_a_directory_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    """The core answers as ever. Design principle: the recorder never fails a job."""
    in_the_way = tmp_path / "flight"
    in_the_way.write_text("a file")

    with capture_logs() as logs:
        world = record(3, in_the_way)

    twin = Recorded(3, tmp_path / "other")
    assert repr([twin.core.step(e, t) for e, t in world.inputs]) == repr(world.outputs)
    twin.end()
    assert [entry["event"] for entry in logs] == ["recorder_failed"]
    assert in_the_way.read_text() == "a file"


def test_after_a_full_disk_a_fresh_checkpoint_makes_the_recording_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps between are missing, and the replay says so."""
    monkeypatch.setattr(recorder_module, "RETRY_S", 0.0)
    world = Recorded(4, tmp_path)
    world.run(60)
    assert world.recorded.recorder.flush(PATIENCE_S)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with capture_logs() as logs:
        with monkeypatch.context() as disk:
            disk.setattr(SegmentWriter, "_put", full)
            world.run(60)
            assert world.recorded.recorder.flush(PATIENCE_S)
        for _ in range(3):
            world.run(30)
            assert world.recorded.recorder.flush(PATIENCE_S)
    world.end()

    told = [entry["event"] for entry in logs]
    assert told[0] == "recorder_failed"
    assert "recorder_recovered" in told
    report = replay([p for p in recordings(tmp_path) if p.stat().st_size])
    assert report.gaps >= 1
    assert report.steps < len(world.inputs)
    assert report.last_ms == world.inputs[-1][1]


def test_a_file_that_cannot_even_be_closed_does_not_end_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a quota or on a network disk, `close` tells the error too; the thread lives on."""
    monkeypatch.setattr(recorder_module, "RETRY_S", 0.0)
    world = Recorded(4, tmp_path)
    world.run(30)
    assert world.recorded.recorder.flush(PATIENCE_S)

    writer = world.recorded.recorder._writer._file
    assert writer is not None
    whole = writer._file

    class Broken:
        closed = False

        def write(self, _: object) -> int:
            raise OSError(122, "Disk quota exceeded")

        def close(self) -> None:
            whole.close()
            raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(writer, "_file", Broken())
    for _ in range(3):
        world.run(30)
        assert world.recorded.recorder.flush(PATIENCE_S)
    world.end()

    assert replay(recordings(tmp_path)).last_ms == world.inputs[-1][1]


def test_when_the_writer_cannot_keep_up_steps_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue is bounded; what follows is recorded from a fresh checkpoint on."""
    monkeypatch.setattr(recorder_module, "WAITING_MAX", 5)
    world = Recorded(5, tmp_path)
    for _ in range(30):
        world.run(20)
        assert world.recorded.recorder.flush(PATIENCE_S)
    world.end()

    lost = world.recorded.recorder.lost_steps
    report = replay(recordings(tmp_path))
    assert lost > 0
    assert report.steps == len(world.inputs) - lost
    assert report.gaps >= 1


def test_when_the_writer_lags_prompts_do_not_pile_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps wait as the little that is written of them; the recording is the same."""
    monkeypatch.setattr(recorder_module, "WHOLE_MAX", 0)
    world = Recorded(6, tmp_path)
    world.run(100)
    waiting = [item for item in list(world.recorded.recorder._queue) if isinstance(item, tuple)]
    world.end()

    assert waiting == []
    assert replay(recordings(tmp_path)).steps == len(world.inputs)


def test_a_state_that_cannot_be_frozen_is_not_recorded_and_the_core_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in the recorder costs the recording, not the orchestrator."""

    def broken(_: Core) -> None:
        raise AttributeError("a field that is not there")

    monkeypatch.setattr(RecordedCore, "freeze", broken)
    with capture_logs() as logs:
        world = Recorded(6, tmp_path)
        world.run(50)
        world.end()

    assert world.core.jobs
    assert [entry["event"] for entry in logs] == ["recorder_failed"]
    assert recordings(tmp_path) == []


def test_ending_twice_is_ending_once(tmp_path: Path) -> None:
    """`stop` of the server may be called after a failed start."""
    config = config_of(1)
    core = RecordedCore(config, RecorderSettings(tmp_path, 1, 1 << 20, 2))
    core.step(Tick(), 5)

    core.end()
    core.end()
    core.recorder.join()

    assert replay(recordings(tmp_path)).steps == 1
