"""A replay answers what was recorded, or says where it first does not."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator_core.core.decision import RULES_VERSION
from orchestrator_core.core.events import ConfigChanged, EnqueueRequested, Event, Recovered
from orchestrator_core.core.queue import Queue
from orchestrator_core.core.spec import Priority
from orchestrator_core.recorder import __main__ as main
from orchestrator_core.recorder import segment
from orchestrator_core.recorder.codec import decode_step, encode_step
from orchestrator_core.recorder.recorder import recordings
from orchestrator_core.recorder.replay import DivergenceError, StateDivergenceError, replay
from orchestrator_core.recorder.segment import Frame, RecordingError
from tests.unit.orchestrator_core.core.build import spec
from tests.unit.orchestrator_core.core.state_break import BrokenStepError, break_step
from tests.unit.orchestrator_core.core.world_settings import other_config
from tests.unit.orchestrator_core.recorder.recordings import (
    LABELS,
    PROMPT,
    Recorded,
    inflated,
    only_segment,
    record,
    rewritten,
)

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize("seed", range(1, 25))
def test_random_worlds_replay_to_equal_decisions_and_states(seed: int, tmp_path: Path) -> None:
    """Every answer and every state hash, over several segments. LO-207."""
    world = record(seed, tmp_path, segment_bytes=3_000)

    report = replay(recordings(tmp_path))

    assert report.steps == len(world.inputs)
    assert report.decisions == sum(map(len, world.outputs))
    assert report.segments > 1
    assert report.hashes == report.segments
    assert (report.runs, report.gaps, report.unfinished) == (1, 0, [])


@pytest.mark.parametrize("seed", range(1, 9))
def test_settings_that_change_on_the_way_replay_too(seed: int, tmp_path: Path) -> None:
    """Each segment begins with the settings of its moment. LO-207, HME-003."""
    world = record(seed, tmp_path, segment_bytes=3_000, other_config=other_config)
    segments = recordings(tmp_path)

    report = replay(segments)

    assert any(isinstance(event, ConfigChanged) for event, _ in world.inputs)
    assert report.steps == len(world.inputs)
    assert report.hashes == report.segments > 1
    for path in segments:
        header = segment.read_header(path)
        assert header is not None
        before = [event for event, _ in world.inputs[: header.first_step - 1]]
        changes = [event.config for event in before if isinstance(event, ConfigChanged)]
        assert header.config == [world.first_config, *changes][-1]


@pytest.mark.parametrize("hash_seed", ["1", "4711"])
def test_another_process_with_other_string_hashes_replays_the_same(
    hash_seed: str, tmp_path: Path
) -> None:
    """A recording is checked elsewhere than where it was made. Principle 3."""
    record(3, tmp_path, segment_bytes=3_000)

    done = subprocess.run(
        [sys.executable, "-m", "orchestrator_core.recorder", str(tmp_path)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("All equal: ")


def test_a_recording_without_a_step_proves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty file is not called equal."""
    empty = tmp_path / "empty.flight"
    empty.touch()

    code = main.main([str(empty)])

    assert code == 2
    assert "nothing to replay" in capsys.readouterr().err


def test_each_segment_can_be_replayed_alone(tmp_path: Path) -> None:
    """Its checkpoint is all that a segment needs of those before it."""
    record(5, tmp_path, segment_bytes=3_000)
    paths = recordings(tmp_path)

    assert len(paths) > 2
    assert all(replay([path]).steps > 0 for path in paths[:-1])


def test_a_changed_rule_is_caught_at_the_first_step_that_it_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names step, time, event, and both decisions."""
    world = record(4, tmp_path)
    position = Queue.position
    monkeypatch.setattr(Queue, "position", lambda queue, job: position(queue, job) + 1)

    with pytest.raises(DivergenceError) as caught:
        replay(recordings(tmp_path))

    accepts = [
        number
        for number, (event, _) in enumerate(world.inputs, start=1)
        if isinstance(event, EnqueueRequested)
        and any(type(effect).__name__ == "AcceptRecord" for effect in world.outputs[number - 1])
    ]
    assert caught.value.step.number == accepts[0]
    assert re.search(r"\baccept \w+ \d+ 1 ", caught.value.expected)
    assert re.search(r"\baccept \w+ \d+ 2 ", caught.value.actual)
    assert main.main([str(tmp_path)]) == 1
    assert f"step {accepts[0]} at " in capsys.readouterr().out


def test_another_victim_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue that drops the newest instead of the oldest decides otherwise. LO-102."""
    record(21, tmp_path)
    assert replay(recordings(tmp_path)).steps > 0
    monkeypatch.setattr(Queue, "oldest", Queue.newest)

    with pytest.raises(DivergenceError, match="accept"):
        replay(recordings(tmp_path))


def test_a_changed_event_is_caught(tmp_path: Path) -> None:
    """A job that arrives in the other class is not the job that was recorded."""
    record(4, tmp_path / "as it was")
    changed: list[int] = []

    def other_class(_: int, frame: Frame) -> Frame:
        step = decode_step(frame.body) if frame.kind == segment.STEP else None
        if step is None or changed or not isinstance(step.event, EnqueueRequested):
            return frame
        changed.append(step.number)
        job_id = "somebody else"
        event = replace(step.event, spec=replace(step.event.spec, job_id=job_id))
        return Frame(frame.kind, encode_step(replace(step, event=event)))

    path = rewritten(only_segment(tmp_path / "as it was"), tmp_path / "changed", other_class)

    with pytest.raises(DivergenceError) as caught:
        replay([path])
    assert caught.value.step.number == changed[0]


def test_a_changed_event_that_decides_nothing_is_caught_by_the_state(tmp_path: Path) -> None:
    """A session that nobody asks for again decides nothing, but it is part of the state."""
    world = Recorded(7, tmp_path / "as it was")
    for name in world.hosts:
        world.register(name)
    world.step(EnqueueRequested(spec("a", batch=True, identity="alice", request_id="r"), 1))
    world.end()

    def other_name(_: int, frame: Frame) -> Frame:
        step = decode_step(frame.body) if frame.kind == segment.STEP else None
        if step is None or not isinstance(step.event, EnqueueRequested):
            return frame
        event = replace(step.event, spec=replace(step.event.spec, identity="mallory"))
        return Frame(frame.kind, encode_step(replace(step, event=event)))

    path = rewritten(only_segment(tmp_path / "as it was"), tmp_path / "changed", other_name)

    with pytest.raises(StateDivergenceError):
        replay([path])


def test_a_segment_that_does_not_begin_where_the_last_ended_is_caught(tmp_path: Path) -> None:
    """The checkpoint of a segment must equal what replaying the one before leads to."""
    record(2, tmp_path / "as it was", segment_bytes=3_000)
    first, second, *_ = recordings(tmp_path / "as it was")

    last = sum(1 for _ in segment.read_frames(first)) - 1

    def without_last_step(number: int, frame: Frame) -> Frame | None:
        return None if number == last else frame

    path = rewritten(first, tmp_path / "changed", without_last_step)

    with pytest.raises(StateDivergenceError, match="begins with state"):
        replay([path, second])


def test_a_step_that_raised_raises_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step of a crash is in the recording, and a replay reproduces the crash."""
    world = Recorded(7, tmp_path)
    for name in world.hosts:
        world.register(name)
    with monkeypatch.context() as broken:
        break_step(broken)
        with pytest.raises(BrokenStepError):
            world.step(EnqueueRequested(spec("a", priority=Priority.BATCH), 1))
        world.end()

        report = replay(recordings(tmp_path))
        assert report.raised == "BrokenStepError: on purpose"

    with pytest.raises(DivergenceError, match="expected raised"):
        replay(recordings(tmp_path))


def test_no_prompt_is_on_disk(tmp_path: Path) -> None:
    """Neither from a request, nor from the journal, nor from a checkpoint."""
    world = record(6, tmp_path, segment_bytes=3_000)
    kinds = {type(event) for event, _ in world.inputs}
    paths = recordings(tmp_path)

    assert {EnqueueRequested, Recovered} <= kinds
    assert any(job.spec.payload == PROMPT for job in world.core.jobs.values())
    assert len(paths) > 2
    for path in paths:
        clear = inflated(path)
        assert b"needs" in clear
        assert PROMPT not in clear
        assert LABELS[0][1].encode() not in clear
        assert PROMPT[:8] not in path.read_bytes()


def test_another_version_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rules, tables and format are compared before anything is run."""
    record(2, tmp_path)
    path = only_segment(tmp_path)

    with monkeypatch.context() as later:
        later.setattr("orchestrator_core.recorder.replay.RULES_VERSION", 99)
        said = rf"rules {RULES_VERSION} .* by rules 99; replay it with version"
        with pytest.raises(RecordingError, match=said):
            replay([path])
    with monkeypatch.context() as later:
        later.setattr("orchestrator_core.recorder.replay.layout", lambda: "State(nothing)")
        with pytest.raises(RecordingError, match="tables of the state are others"):
            replay([path])
    raw = path.read_bytes().replace(b"recording 1\n", b"recording 2\n", 1)
    path.write_bytes(raw)
    assert main.main([str(path)]) == 2
    assert "format 2, this version reads format 1" in capsys.readouterr().err


def test_an_empty_directory_is_said_to_be_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing compared is not a success."""
    assert main.main([str(tmp_path)]) == 2
    assert "no recording" in capsys.readouterr().err


def test_every_event_survives_the_codec(tmp_path: Path) -> None:
    """Events come back equal, but for the prompt."""
    world = record(9, tmp_path)
    steps = [
        decode_step(frame.body)
        for frame in segment.read_frames(only_segment(tmp_path))
        if frame.kind == segment.STEP
    ]

    def bare(event: Event) -> str:
        return repr(event).replace(repr(PROMPT), "b''").replace(repr(LABELS), "()")

    assert [(step.now_ms, repr(step.event)) for step in steps] == [
        (now_ms, bare(event)) for event, now_ms in world.inputs
    ]
