"""Decisions are found in a recording and made again in full."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from orchestrator_core.core.events import EnqueueRequested
from orchestrator_core.core.job import Job
from orchestrator_core.core.records import DispatchRecord
from orchestrator_core.loop import Loop
from orchestrator_core.recorder.explaining import Explainer, Question, explain
from orchestrator_core.recorder.recorder import recordings
from tests.unit.orchestrator_core.core.bench import only
from tests.unit.orchestrator_core.core.build import spec
from tests.unit.orchestrator_core.recorder.recordings import PATIENCE_S, Recorded, record


@pytest.mark.parametrize("seed", [2, 5, 9])
def test_every_decision_of_a_recording_is_found(seed: int, tmp_path: Path) -> None:
    """In whichever segment it stands, also where several were made in one millisecond. LO-207."""
    world = record(seed, tmp_path, segment_bytes=3_000)
    made = [e.decision for effects in world.outputs for e in only(effects, DispatchRecord)]
    assert len(recordings(tmp_path)) > 1
    assert len(made) > 10

    for decision in made:
        wanted = [(decision.attempt, decision.decided_ms)]
        (found,) = explain(Question(str(tmp_path), decision.job_id, wanted))

        assert found.decision.candidates[:5] == decision.candidates
        assert found.decision.pool_id == decision.pool_id
        assert len(found.decision.exclusions) == decision.exclusions_total


def test_what_the_recording_no_longer_holds_is_left_out(tmp_path: Path) -> None:
    """Neither an unknown job, nor a time before the first segment, nor a damaged file fails."""
    record(2, tmp_path, segment_bytes=3_000)

    assert explain(Question(str(tmp_path), "nobody", [(1, 1_500)])) == []
    assert explain(Question(str(tmp_path), "j0", [(1, -5)])) == []
    for path in recordings(tmp_path):
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2 :] = b"\xff" * (len(raw) - len(raw) // 2)
        path.write_bytes(raw)
    (tmp_path / "zz.flight").write_bytes(b"nonsense\n")
    assert explain(Question(str(tmp_path), "j100", [(1, 10_000_000)])) == []


def recorded_job(directory: Path) -> tuple[Recorded, Job]:
    """A recording that goes on, with one placed job."""
    world = Recorded(2, directory)
    for name in world.hosts:
        world.register(name)
    world.core.step(EnqueueRequested(spec("a"), 1), world.now_ms)
    assert world.recorded.recorder.flush(PATIENCE_S)
    return world, world.core.jobs["a"]


async def test_a_process_of_its_own_answers_while_the_recording_goes_on(tmp_path: Path) -> None:
    """The open segment is read up to where it was written."""
    world, job = recorded_job(tmp_path)

    found = await Explainer(world.recorded.recorder).complete(job)

    world.end()
    assert list(found) == [1]
    assert found[1].decision.pool_id == job.decisions[0].pool_id
    assert found[1].snapshots[0].host_id in world.hosts


def test_no_handler_of_a_fork_runs_in_the_process_that_answers(tmp_path: Path) -> None:
    """Those of gRPC start threads in the child, which crash now and then; its caller got INTERNAL.

    On the event loop of the process: asyncio's own starts no process in that way.
    """
    forks: list[int] = []
    os.register_at_fork(before=lambda: forks.append(1))
    world, job = recorded_job(tmp_path)

    with asyncio.Runner(loop_factory=Loop) as runner:
        found = runner.run(Explainer(world.recorded.recorder).complete(job))

    world.end()
    assert list(found) == [1]
    assert forks == []


async def test_an_answer_that_takes_too_long_is_not_waited_for(tmp_path: Path) -> None:
    """The short decision is told then; no process is left behind."""
    world, job = recorded_job(tmp_path)

    assert await Explainer(world.recorded.recorder, timeout_s=0.001).complete(job) == {}
    world.end()


async def test_where_no_process_can_be_started_the_short_decision_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without memory or handles to spare still answers what it knows."""
    world, job = recorded_job(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))

    assert await Explainer(world.recorded.recorder).complete(job) == {}
    world.end()


async def test_a_recording_that_is_gone_explains_nothing(tmp_path: Path) -> None:
    """A job that waits has no decision; a deleted recording none either."""
    world, job = recorded_job(tmp_path)
    explainer = Explainer(world.recorded.recorder)
    waiting = Job(spec("b"), 2, 0)

    assert await explainer.complete(waiting) == {}
    world.end()
    for path in recordings(tmp_path):
        path.unlink()
    assert await explainer.complete(job) == {}
