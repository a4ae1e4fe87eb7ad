"""Decisions in full, recomputed from the recording in a process of its own. LO-207.

The process replays one segment from its checkpoint up to the decision. One runs at a time, for a
bounded time and at low priority; without an answer the short decision that the job keeps is told.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from orchestrator_core.core.explain import Explained
from orchestrator_core.core.job import Job
from orchestrator_core.recorder.recorder import Recorder, recordings
from orchestrator_core.recorder.replay import open_segment
from orchestrator_core.recorder.segment import RecordingError, read_header

EXPLAIN_S = 10.0
FLUSH_S = 2.0
ATTEMPTS_MAX = 4
# All decisions of an answer together; about 200 bytes for a pool, and a message holds 4 MiB.
POOLS_TOLD_MAX = 12_000
_NICE = 10


class Question(msgspec.Struct, frozen=True):
    """Decisions of one job, as (attempt, instant at which it was decided)."""

    directory: str
    job_id: str
    decisions: list[tuple[int, int]]


class Explainer:
    """Asks for decisions in full; belongs to the event loop."""

    def __init__(self, recorder: Recorder, timeout_s: float = EXPLAIN_S) -> None:
        self._recorder = recorder
        self._timeout_s = timeout_s
        self._one_at_a_time = asyncio.Lock()

    async def complete(self, job: Job) -> Mapping[int, Explained]:
        """Decisions by attempt, the latest if not all fit into one message.

        Those that the recording no longer holds are missing.
        """
        wanted = [(d.attempt, d.decided_ms) for d in job.decisions[-ATTEMPTS_MAX:]]
        if not wanted:
            return {}
        question = Question(str(self._recorder.directory), job.job_id, wanted)
        try:
            async with asyncio.timeout(self._timeout_s), self._one_at_a_time:
                await asyncio.to_thread(self._recorder.flush, FLUSH_S)
                found = await _ask(question)
        except OSError:  # Too late, or no process can be started: the short decision must do.
            return {}
        stored = {decision.attempt: decision.pool_id for decision in job.decisions}
        answer: dict[int, Explained] = {}
        room = POOLS_TOLD_MAX
        for explained in reversed(found):
            decision = explained.decision
            room -= decision.candidates_total + decision.exclusions_total
            if room >= 0 and stored.get(decision.attempt) == decision.pool_id:
                answer[decision.attempt] = explained
        return answer


async def _ask(question: Question) -> list[Explained]:
    process = _begin()
    asked = msgspec.msgpack.encode(question)
    work = asyncio.create_task(asyncio.to_thread(process.communicate, asked))
    try:
        answer, _ = await asyncio.shield(work)
    finally:
        # Whoever asked may be gone, or it took too long. The thread closes what is open.
        process.kill()
        await asyncio.wait([work])
    if process.returncode:
        return []
    return msgspec.msgpack.decode(answer, type=list[Explained])


def _begin() -> "subprocess.Popen[bytes]":
    """Starts the process, which runs nothing of ours before its own program.

    uvloop would fork and run all handlers for that in the child: those of gRPC start its threads
    anew there, which crash now and then before the program begins.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator_core.recorder.explaining"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def explain(question: Question) -> list[Explained]:
    """Finds decisions in a recording and makes them again in full.

    What is not there, or cannot be replayed by this build, is left out.
    """
    begins = list(_begins(recordings(Path(question.directory))))
    found: list[Explained] = []
    for attempt, decided_ms in question.decisions:
        for begin_ms, path in reversed(begins):
            if begin_ms > decided_ms:
                continue
            explained = _find(path, question.job_id, attempt, decided_ms)
            if explained is not None:
                found.append(explained)
            # It may stand in the segment before one that began in the same millisecond.
            if explained is not None or begin_ms < decided_ms:
                break
    return found


def _begins(paths: Sequence[Path]) -> list[tuple[int, Path]]:
    begins = []
    for path in paths:
        try:
            header = read_header(path)
        except (RecordingError, OSError):
            continue
        if header is not None:
            begins.append((header.started_ms, path))
    return begins


def _find(path: Path, job_id: str, attempt: int, decided_ms: int) -> Explained | None:
    found: list[Explained] = []

    def tell(explained: Explained) -> None:
        decision = explained.decision
        if (decision.job_id, decision.attempt) == (job_id, attempt):
            found.append(explained)

    try:
        opened = open_segment(path)
        if opened is None:
            return None
        core, now_ms, watching = opened.core, opened.header.started_ms, False
        for step in opened.entries():
            if isinstance(step, bytes):
                break
            # To the core, time that goes backwards stands still.
            now_ms = max(now_ms, step.now_ms)
            if now_ms > decided_ms:
                break
            if not watching and now_ms == decided_ms:
                core.watch_placements(tell)
                watching = True
            core.step(step.event, step.now_ms)
            if found:
                return found[0]
    except (RecordingError, OSError):
        return None
    return None


def main() -> int:
    """Answers the question on standard input; returns the exit code."""
    os.nice(_NICE)
    question = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Question)
    sys.stdout.buffer.write(msgspec.msgpack.encode(explain(question)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
