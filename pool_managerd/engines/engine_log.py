"""What an engine writes: its last lines in memory, and all of it in rotated files if wanted.

Both are bounded, and neither can hold the engine up: what a slow disk cannot take is dropped and
counted.
"""

import asyncio
import codecs
import contextlib
import functools
import io
import logging
import logging.handlers
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pool_managerd.core.tellable import shown_text
from pool_managerd.threads import in_thread, started

LOG_LINES = 200
"""Lines of a log that are kept, unless told otherwise."""

LOG_LINE_CHARS = 1_000
"""Characters of each of those lines that are kept."""

OnLine = Callable[[str], None]
"""Called on the event loop with a line."""

RETRY_S = 10.0
"""Wait before a file that could not be written is tried again: its disk may be full."""

_WAITING_LINES_MAX = 2_000
_CLOSE_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """Bounds of an engine's log. Without a `path` nothing is written to disk.

    The file is renamed to `.1`, `.2` ... when it reaches `file_bytes`; `files` of them are kept.
    """

    lines: int = LOG_LINES
    path: Path | None = None
    file_bytes: int = 10 << 20
    files: int = 3

    def __post_init__(self) -> None:
        """Refuses a log without a bound."""
        if min(self.lines, self.file_bytes, self.files) < 1:
            raise ValueError("lines, file_bytes and files of a log must be at least 1")


class LogTail:
    """The last lines of a log, each cut to a length; by default it holds at most 200 kB.

    `on_line` gets every line as it ends.
    """

    def __init__(self, lines: int = LOG_LINES) -> None:
        self.on_line: OnLine | None = None
        self._lines: deque[str] = deque(maxlen=lines)
        self._partial = ""
        # A character may come in two pieces.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.lines_total = 0

    def feed(self, data: bytes) -> list[str]:
        """Takes what the process wrote, in pieces of any size; returns the lines it completed."""
        *ends, rest = self._decoder.decode(data).split("\n")
        completed = []
        for end in ends:
            completed.append(shown_text((self._partial + end)[:LOG_LINE_CHARS]).rstrip())
            self._partial = ""
        self._partial = (self._partial + rest)[:LOG_LINE_CHARS]
        self._lines.extend(completed)
        if self.on_line is not None:
            for line in completed:
                self.on_line(line)
        self.lines_total += len(completed)
        return completed

    def last(self, count: int) -> tuple[str, ...]:
        """Returns the last non-empty lines, oldest first."""
        lines = [line for line in (*self._lines, shown_text(self._partial)) if line]
        return tuple(lines[-count:])

    def since(self, lines_total: int) -> tuple[str, ...]:
        """Returns the kept lines that came after the log had `lines_total` of them."""
        count = min(self.lines_total - lines_total, len(self._lines))
        kept = [*self._lines][len(self._lines) - count :]
        return tuple(line for line in (*kept, shown_text(self._partial)) if line)


class LogFile:
    """Appends lines to a rotated file, off the event loop.

    While it cannot be written its lines are dropped, and it is tried again every `RETRY_S`;
    `on_problem` is told why, once.
    """

    def __init__(self, settings: LogSettings, on_problem: OnLine) -> None:
        self._settings = settings
        self._on_problem = on_problem
        self._waiting: deque[str] = deque(maxlen=_WAITING_LINES_MAX)
        self._dropped = 0
        self._wake = asyncio.Event()
        self._closed = asyncio.Event()
        # Of whichever thread works on the file: one that hangs may be left behind.
        self._lock = threading.Lock()
        self._ended = False
        self._handler: logging.Handler | None = None
        self._task = asyncio.create_task(self._run())

    def write(self, lines: list[str]) -> None:
        """Takes lines; the oldest that still wait are dropped when there are too many."""
        self._dropped += max(0, len(self._waiting) + len(lines) - _WAITING_LINES_MAX)
        self._waiting.extend(lines)
        self._wake.set()

    def finish(self) -> None:
        """Takes no more lines: the file is closed once what waits is written. Idempotent."""
        self._closed.set()
        self._wake.set()

    async def close(self) -> None:
        """Writes what waits, for at most two seconds, and closes the file. Idempotent."""
        self.finish()
        await asyncio.wait([self._task], timeout=_CLOSE_TIMEOUT_S)
        self._task.cancel()

    async def _run(self) -> None:
        failing = False
        try:
            while not (self._closed.is_set() and not self._waiting):
                await self._wake.wait()
                self._wake.clear()
                lines, dropped = self._take()
                try:
                    await in_thread(functools.partial(self._write, lines))
                    failing = False
                except OSError as error:
                    self._dropped += dropped
                    if not failing:
                        self._on_problem(f"[the file of this log is not written: {error}]")
                    failing = True
                    await self._pause()
        finally:
            self._ended = True
            self._release()

    async def _pause(self) -> None:
        """Until it is tried again; at once where there is no other time."""
        self._release()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETRY_S):
                await self._closed.wait()

    def _release(self) -> None:
        # What it could not write before it cannot write now; nobody waits for a disk that hangs.
        started(self._close_file)

    def _close_file(self) -> None:
        """Closes the file once nobody writes it any more. In a thread."""
        with self._lock:
            handler, self._handler = self._handler, None
            if handler is not None:
                handler.close()

    def _open(self) -> logging.Handler:
        path = self._settings.path
        assert path is not None, "a log file has a path"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _Rotating(
            path,
            maxBytes=self._settings.file_bytes,
            backupCount=self._settings.files,
            encoding="utf-8",
            errors="replace",
        )

    def _take(self) -> tuple[list[str], int]:
        """What waits, headed by how much is missing; and for how many lines it stands."""
        lines, dropped = [*self._waiting], self._dropped
        count = len(lines) + dropped
        self._waiting.clear()
        self._dropped = 0
        if dropped:
            lines.insert(0, f"[{dropped} lines were dropped: the disk did not take them]")
        return lines, count

    def _write(self, lines: list[str]) -> None:
        """Appends; a part of them may have been written when it raises OSError. In a thread."""
        with self._lock:
            if self._ended:
                return
            if self._handler is None:
                self._handler = self._open()
            for line in lines:
                self._handler.emit(logging.makeLogRecord({"msg": line}))


class _Rotating(logging.handlers.RotatingFileHandler):
    """Raises what the standard handler would print to stderr; its files are this user's alone.

    Lines may quote requests. Nobody who may write to the folder can have them written elsewhere.
    """

    def _open(self) -> io.TextIOWrapper:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.baseFilename, flags, 0o600)
        return open(descriptor, "a", encoding=self.encoding, errors=self.errors)  # noqa: PTH123 - a descriptor

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        del record
        raise  # noqa: PLE0704 - logging calls this while it handles the error


class EngineLog:
    """The log of one engine process: a tail in memory, and a file where one is wanted."""

    def __init__(self, settings: LogSettings) -> None:
        self.tail = LogTail(settings.lines)
        self._file = LogFile(settings, self._note) if settings.path is not None else None

    def _note(self, line: str) -> None:
        self.tail.feed(f"{line}\n".encode())

    async def pump(self, stream: asyncio.StreamReader, read_bytes: int = 65_536) -> None:
        """Reads until the process and all its heirs have closed their end, then ends the file."""
        try:
            while data := await stream.read(read_bytes):
                lines = self.tail.feed(data)
                if self._file is not None and lines:
                    self._file.write(lines)
        finally:
            if self._file is not None:
                self._file.finish()

    async def close(self) -> None:
        """Closes the file. Idempotent."""
        if self._file is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._file.close()
