"""Records every step of a core in bounded files, off the event loop. LO-207, design §6.

The loop appends three references to a queue; a thread encodes and writes. Where the thread cannot
keep up or the disk cannot be written, steps are left out until a fresh checkpoint makes the
recording whole again: no job waits for it or fails because of it.
"""

import gc
import importlib.metadata
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import structlog

from orchestrator_core.core.checkpoint import Frozen, layout
from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.decided import decided
from orchestrator_core.core.decision import RULES_VERSION
from orchestrator_core.core.effects import Effect
from orchestrator_core.core.events import Event
from orchestrator_core.core.machine import Core
from orchestrator_core.recorder import codec, segment
from orchestrator_core.recorder.segment import Header, SegmentWriter

# Steps that may wait for the writer: seconds of the busiest core.
WAITING_MAX = 50_000
# Beyond this, steps wait without their prompts, which may be megabytes; that costs the loop more.
WHOLE_MAX = 1_000
# Written at most this often: a system call and a turn of the interpreter for many steps at once.
GATHER_S = 0.05
RETRY_S = 30.0
CLOSE_S = 10.0

_log = structlog.get_logger("orchestratord")


@dataclass(frozen=True, slots=True)
class RecorderSettings:
    """Where to record, and how much is kept: `segments_max` times `segment_bytes`.

    `started_ms` names the run: the instant at which the process began.
    """

    directory: Path
    started_ms: int
    segment_bytes: int
    segments_max: int


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """A state as it was after the step before it in the queue, or before what was left out."""

    frozen: Frozen
    config: CoreConfig
    follows: bool
    first_step: int


@dataclass(frozen=True, slots=True)
class _Mark:
    """Everything before it is handled once `reached` is set; `frozen` is the last state."""

    reached: threading.Event
    frozen: Frozen | None = None


_Taken = tuple[int, Event, int, Sequence[Effect] | None]


class Recorder:
    """`record` belongs to the thread of the core; everything else happens in a thread of its own.

    `freeze` copies the core's state, `config` tells its settings then. `lost_steps` counts what was
    left out.
    """

    def __init__(
        self,
        settings: RecorderSettings,
        config: Callable[[], CoreConfig],
        freeze: Callable[[], Frozen],
    ) -> None:
        self.directory = settings.directory
        self._freeze_core = freeze
        self._config = config
        self._queue: deque[_Taken | codec.Step | _Checkpoint | _Mark] = deque()
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._ending = False
        self._writer = _Writer(settings)
        self._overflow = self._off = False
        self._step = 0
        self.lost_steps = 0
        self._checkpoint(follows=False)
        self._thread = threading.Thread(target=self._write, name="flight-recorder", daemon=True)
        self._thread.start()

    def record(self, event: Event, now_ms: int, effects: Sequence[Effect] | None) -> None:
        """Takes one step; `effects` is None when it raised. Never waits, never raises."""
        self._step += 1
        if self._off:
            return
        if self._overflow or len(self._queue) >= WAITING_MAX:
            self._leave_out()
            return
        if len(self._queue) < WHOLE_MAX:
            self._queue.append((self._step, event, now_ms, effects))
        else:
            self._queue.append(_step(self._step, event, now_ms, effects))
        if self._writer.wants_checkpoint and effects is not None:
            self._checkpoint(follows=True)
        if not self._wake.is_set():
            self._wake.set()

    @property
    def waiting_steps(self) -> int:
        """Steps that the thread has not written yet."""
        return len(self._queue)

    def flush(self, timeout_s: float) -> bool:
        """Waits until all steps taken so far are in the file; False when that takes too long."""
        mark = _Mark(threading.Event())
        self._queue.append(mark)
        self._hurry.set()
        self._wake.set()
        return mark.reached.wait(timeout_s)

    def end(self, *, intact: bool = True) -> None:
        """Ends the recording with the hash of the last state; `join` follows. Idempotent.

        `intact` is False after a step that raised: there is no last state then.
        """
        if self._ending:
            return
        whole = intact and not self._overflow and not self._off
        self._queue.append(_Mark(threading.Event(), self._freeze() if whole else None))
        self._ending = True
        self._hurry.set()
        self._wake.set()

    def join(self) -> None:
        """Waits until the last file is closed, for a bounded time; for any thread."""
        self._thread.join(CLOSE_S)

    def _leave_out(self) -> None:
        """Leaves one step out; when the writer has caught up, the next begins a new segment."""
        self.lost_steps += 1
        self._overflow = True
        if not self._queue:
            self._overflow = False
            self._checkpoint(follows=False)
        self._wake.set()

    def _checkpoint(self, *, follows: bool) -> None:
        self._writer.wants_checkpoint = False
        frozen = self._freeze()
        if frozen is not None:
            self._queue.append(_Checkpoint(frozen, self._config(), follows, self._step + 1))

    def _freeze(self) -> Frozen | None:
        # Thousands of tuples at once would set off collections of everything, four times as long.
        collecting = gc.isenabled()
        gc.disable()
        try:
            return self._freeze_core()
        except Exception as error:  # noqa: BLE001 - a recording is never worth a job
            self._off = True
            _log.error("recorder_failed", exc_info=error, human="A bug in the recorder: report it.")
            return None
        finally:
            if collecting:
                gc.enable()

    # --- in the thread

    def _write(self) -> None:
        while True:
            self._wake.wait(RETRY_S)
            self._hurry.wait(GATHER_S)
            self._hurry.clear()
            self._wake.clear()
            last = self._ending
            while self._queue:
                self._writer.take(self._queue.popleft())
            self._writer.settle()
            if last and not self._queue:
                self._writer.end()
                return


class _Writer:
    """The files. Lives in the recorder's thread, except for the flag `wants_checkpoint`."""

    def __init__(self, settings: RecorderSettings) -> None:
        self._settings = settings
        self._file: SegmentWriter | None = None
        self._full_bytes = 0
        self._number = 0
        self._failing = False
        self._retry_s = 0.0
        self.wants_checkpoint = False

    def take(self, item: _Taken | codec.Step | _Checkpoint | _Mark) -> None:
        """Writes one item; a disk that cannot be written ends the segment."""
        try:
            match item:
                case _Checkpoint():
                    self._begin(item)
                case _Mark():
                    self._reach(item)
                case _:
                    self._add(item)
        except Exception as error:  # noqa: BLE001 - a recording is never worth a job
            self._fail(error)
            if isinstance(item, _Mark):
                item.reached.set()

    def settle(self) -> None:
        """Hands everything on to the operating system; asks for a checkpoint where one is due."""
        try:
            if self._file is not None:
                self._file.flush()
        except OSError as error:
            self._fail(error)
        if self._file is None and monotonic() >= self._retry_s:
            self.wants_checkpoint = True

    def end(self) -> None:
        """Closes the file."""
        try:
            if self._file is not None:
                self._file.close()
        except OSError as error:
            self._fail(error)

    def _begin(self, taken: _Checkpoint) -> None:
        follows = taken.follows and self._file is not None
        self.end()
        self._file = None
        directory = self._settings.directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _prune(self._settings)
        self._number += 1
        header = Header(
            rules_version=RULES_VERSION,
            build=importlib.metadata.version("llamaorch"),
            layout=layout(),
            run=self._settings.started_ms,
            number=self._number,
            follows=follows,
            first_step=taken.first_step,
            started_ms=max(taken.frozen.last_ms, self._settings.started_ms),
            config=taken.config,
        )
        file = self._file = SegmentWriter(directory, header)
        for piece in codec.encode_frozen(taken.frozen):
            file.add(segment.CHECKPOINT_PIECE, piece)
        file.add(segment.CHECKPOINT_END, b"")
        file.flush()
        # Steps fill at least half of it, or large checkpoints would follow one another.
        self._full_bytes = max(self._settings.segment_bytes, 2 * file.bytes_written)
        if self._failing:
            _log.info("recorder_recovered", human="The flight recorder writes again.")
            self._failing = False

    def _add(self, taken: _Taken | codec.Step) -> None:
        if self._file is None:
            return
        step = taken if isinstance(taken, codec.Step) else _step(*taken)
        self._file.add(segment.STEP, codec.encode_step(step))
        if self._file.bytes_written >= self._full_bytes:
            self.wants_checkpoint = True

    def _reach(self, mark: _Mark) -> None:
        if self._file is not None:
            if mark.frozen is not None:
                self._file.add(segment.END, codec.state_hash(mark.frozen))
            self._file.flush()
        mark.reached.set()

    def _fail(self, error: Exception) -> None:
        if self._file is not None:
            self._file.abandon()
            self._file = None
        self._retry_s = monotonic() + RETRY_S
        self.wants_checkpoint = False
        if not self._failing:
            self._failing = True
            _log.error(
                "recorder_failed",
                error=f"{type(error).__name__}: {error}",
                human="The flight recorder cannot write; jobs go on, but cannot be replayed.",
            )


class RecordedCore(Core):
    """A core of which every step is recorded."""

    def __init__(self, config: CoreConfig, settings: RecorderSettings) -> None:
        super().__init__(config)
        self._recorder = Recorder(settings, lambda: self.config, self.freeze)
        self._broken = False

    @property
    def recorder(self) -> Recorder:
        """The recorder."""
        return self._recorder

    def step(self, event: Event, now_ms: int) -> list[Effect]:
        """Applies one event; a step that raises is the last of its recording."""
        try:
            effects = super().step(event, now_ms)
        except Exception:
            self._broken = True
            self._recorder.record(event, now_ms, None)
            raise
        self._recorder.record(event, now_ms, effects)
        return effects

    def end(self) -> None:
        """Ends the recording; `recorder.join` follows. Idempotent."""
        self._recorder.end(intact=not self._broken)


def _step(number: int, event: Event, now_ms: int, effects: Sequence[Effect] | None) -> codec.Step:
    """A step with nothing of its effects but what was decided."""
    lines = None if effects is None else decided(effects)
    return codec.Step(number, now_ms, codec.bare_event(event), lines)


def recordings(path: Path) -> list[Path]:
    """Segments of a directory, the oldest first; a file is its own list."""
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.iterdir() if p.suffix == segment.SUFFIX and p.is_file())


def _prune(settings: RecorderSettings) -> None:
    """Makes room for one more segment: the oldest go."""
    kept = recordings(settings.directory)
    sizes = [path.stat().st_size for path in kept]
    room = settings.segments_max * settings.segment_bytes - settings.segment_bytes
    while kept and (len(kept) >= settings.segments_max or sum(sizes) > room):
        kept.pop(0).unlink(missing_ok=True)
        sizes.pop(0)
