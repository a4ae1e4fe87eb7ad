"""Re-runs a recording through the core and stops at the first difference. LO-207, principle 3."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from orchestrator_core.core.checkpoint import layout
from orchestrator_core.core.decided import Line, decided
from orchestrator_core.core.decision import RULES_VERSION
from orchestrator_core.core.machine import Core
from orchestrator_core.recorder import codec, segment
from orchestrator_core.recorder.codec import Step
from orchestrator_core.recorder.segment import Frame, Header, RecordingError

_SHOWN_MAX = 8


@dataclass(slots=True)
class Report:
    """What a replay went through. `first_ms` and `last_ms` are instants of the recorded clock.

    `runs` counts processes that recorded, `gaps` places in a run where steps are missing, `hashes`
    the state hashes compared;
    `raised` tells of a recorded step that raised, and raised again.
    """

    segments: int = 0
    steps: int = 0
    decisions: int = 0
    hashes: int = 0
    gaps: int = 0
    runs: int = 0
    first_ms: int | None = None
    last_ms: int | None = None
    raised: str = ""
    unfinished: list[str] = field(default_factory=list)


class DivergenceError(Exception):
    """A replay came to another result. The message says where, what was expected, what came."""

    def __init__(self, path: Path, step: Step, expected: str, actual: str) -> None:
        super().__init__(
            f"{path.name}: step {step.number} at {step.now_ms} ms, {type(step.event).__name__}:\n"
            f"  expected {expected}\n  actual   {actual}"
        )
        self.step = step
        self.expected = expected
        self.actual = actual


class StateDivergenceError(Exception):
    """All decisions were equal, and yet the state is another at the end of a segment."""


@dataclass(frozen=True, slots=True)
class OpenSegment:
    """A segment, ready to run. `frames` continues after the checkpoint."""

    path: Path
    header: Header
    core: Core
    checkpoint_hash: bytes
    frames: Iterator[Frame]

    def entries(self) -> Iterator[Step | bytes]:
        """The recorded steps, in order; at an orderly end the hash of the last state.

        Raises:
            RecordingError: when one cannot be understood, or one is missing.
        """
        following = self.header.first_step
        for frame in self.frames:
            if frame.kind == segment.END:
                yield frame.body
                continue
            step = _step(self.path, frame)
            if step.number != following:
                raise RecordingError(f"{self.path}: step {following} is missing")
            following += 1
            yield step


def replay(paths: Sequence[Path]) -> Report:
    """Re-runs segments, the oldest first; each starts from its own checkpoint.

    Raises:
        DivergenceError, StateDivergenceError: at the first difference.
        RecordingError, OSError: when a segment cannot be used.
    """
    report = Report()
    before: tuple[Header, bytes] | None = None
    for path in paths:
        opened = open_segment(path)
        if opened is None:
            report.unfinished.append(path.name)
            continue
        _join(report, before, opened)
        before = (opened.header, _run(report, opened))
        report.segments += 1
    return report


def open_segment(path: Path) -> OpenSegment | None:
    """The core as it was at a segment's start; None when the file was cut before that.

    Raises:
        RecordingError: when this build cannot replay it, or it is damaged.
        OSError: when it cannot be read.
    """
    header = segment.read_header(path)
    if header is None:
        return None
    _check(path, header)
    frames = segment.read_frames(path)
    pieces: list[bytes] = []
    for frame in frames:
        if frame.kind == segment.CHECKPOINT_END:
            break
        pieces.append(frame.body)
    else:
        return None
    try:
        frozen = codec.decode_frozen(b"".join(pieces))
        core = Core.thawed(frozen, header.config)
    except (msgspec.MsgspecError, ValueError, IndexError) as error:
        raise RecordingError(f"{path}: the checkpoint cannot be read: {error}") from error
    return OpenSegment(path, header, core, codec.state_hash(core.freeze()), frames)


def _check(path: Path, header: Header) -> None:
    if header.rules_version != RULES_VERSION:
        raise RecordingError(
            f"{path}: recorded under rules {header.rules_version} by version {header.build}, this "
            f"version decides by rules {RULES_VERSION}; replay it with version {header.build}"
        )
    if header.layout != layout():
        raise RecordingError(
            f"{path}: recorded by version {header.build}, whose tables of the state are others; "
            "replay it with the version that recorded it"
        )


def _join(report: Report, before: tuple[Header, bytes] | None, opened: OpenSegment) -> None:
    """Compares a segment's first state with the last of the segment before."""
    now = opened.header
    if before is None or before[0].run != now.run:
        report.runs += 1
        return
    header, final = before
    if not now.follows or now.number != header.number + 1:
        report.gaps += 1
        return
    report.hashes += 1
    if final != opened.checkpoint_hash:
        raise StateDivergenceError(
            f"{opened.path.name}: begins with state {opened.checkpoint_hash.hex()}, the replay "
            f"of the segment before it ends with {final.hex()}"
        )


def _run(report: Report, opened: OpenSegment) -> bytes:
    """Runs one segment; returns the hash of the state that it ends with."""
    core, end = opened.core, None
    for entry in opened.entries():
        if isinstance(entry, bytes):
            end = entry
        else:
            _compare(report, opened.path, core, entry)
    final = codec.state_hash(core.freeze())
    if end is not None:
        report.hashes += 1
        if end != final:
            raise StateDivergenceError(
                f"{opened.path.name}: recorded state {end.hex()} at the end, "
                f"the replay has {final.hex()}"
            )
    return final


def _compare(report: Report, path: Path, core: Core, step: Step) -> None:
    lines: list[Line] | None = None
    raised = ""
    try:
        lines = decided(core.step(step.event, step.now_ms))
    except Exception as error:  # noqa: BLE001 - a step that raised is an outcome like any other
        raised = f"{type(error).__name__}: {error}"
    if not codec.same_lines(lines, step.lines):
        actual = f"raised {raised}" if raised else _shown(lines)
        raise DivergenceError(path, step, _shown(step.lines), actual)
    report.raised = raised or report.raised
    report.steps += 1
    report.decisions += len(lines or ())
    report.first_ms = step.now_ms if report.first_ms is None else report.first_ms
    report.last_ms = step.now_ms


def _step(path: Path, frame: Frame) -> Step:
    try:
        return codec.decode_step(frame.body)
    except (msgspec.MsgspecError, KeyError, ValueError) as error:
        raise RecordingError(f"{path}: a step cannot be read: {error}") from error


def _shown(lines: list[Line] | None) -> str:
    if lines is None:
        return "raised"
    told = "; ".join(" ".join(map(str, line)) for line in lines[:_SHOWN_MAX])
    more = len(lines) - _SHOWN_MAX
    return (told or "nothing decided") + (f"; and {more} more" if more > 0 else "")
