"""Where log lines go: JSON or pretty, on one stream, many at a time.

A line is put into shape when it is written and not when it happens. Beside the work of a call,
which it finds and leaves in the processor's caches, that costs several times what it costs for many
lines in a row; and each write is a system call, at which every other thread may take the
interpreter.
"""

import asyncio
import atexit
import contextlib
import contextvars
import json
import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal, TextIO

import msgspec
import structlog
from structlog.contextvars import merge_contextvars
from structlog.typing import EventDict, Processor, WrappedLogger

# Lines wait for one another so long, and so many of them no longer.
GATHER_S = 0.05
LINES_MAX = 256
_ENCODER = msgspec.json.Encoder(enc_hook=repr)


class LineSink:
    """A logger that gets lines together: after a pause at once, in a burst each `GATHER_S`.

    Without a loop, and from other threads, lines leave at once. A reader may be gone: what cannot
    be written is dropped, never raised, as a log line must not break the job that it tells about.
    """

    def __init__(self, stream: TextIO, render: Processor) -> None:
        self._stream = stream
        self._render = render
        self._waiting: deque[tuple[str, int, EventDict, contextvars.Context]] = deque()
        # Of two threads that bring a line at once, one must see that nobody else sees to it.
        self._counting = threading.Lock()
        self._drained_s = 0.0
        atexit.register(self.flush)

    def take(self, level: str, at_ns: int, entry: EventDict, context: contextvars.Context) -> None:
        """Takes a line that happened at `at_ns` (since the epoch) in `context`; written soon."""
        with self._counting:
            self._waiting.append((level, at_ns, entry, context))
            waiting = len(self._waiting)
        if waiting > 1:
            if waiting >= LINES_MAX:
                self.flush()
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        # With a loop's time of its own nothing is measured between two of them.
        wait_s = self._drained_s + GATHER_S - loop.time()
        if 0.0 < wait_s <= GATHER_S:
            loop.call_later(wait_s, self._drain_in, loop)
        else:
            loop.call_soon(self._drain_in, loop)

    debug = info = warning = error = critical = take

    def _drain_in(self, loop: asyncio.AbstractEventLoop) -> None:
        self._drained_s = loop.time()
        self.flush()

    def flush(self) -> None:
        """Writes what waits, now."""
        texts = []
        while True:
            try:
                level, at_ns, entry, context = self._waiting.popleft()
            except IndexError:
                break
            texts.append(context.run(self._shaped, level, at_ns, entry))
        if not texts:
            return
        with contextlib.suppress(OSError, ValueError):
            self._stream.write("\n".join([*texts, ""]))
            self._stream.flush()

    def _shaped(self, level: str, at_ns: int, entry: EventDict) -> str:
        """One line; where a bug keeps it from being told whole, that it happened."""
        times = {"level": level, "timestamp": _stamp(at_ns)}
        try:
            told = merge_contextvars(self, level, told_late(self, level, entry))
            return str(self._render(self, level, {**told, **times}))
        except Exception as error:  # noqa: BLE001 - no line may take others with it
            short = {"event": entry.get("event"), "exception": type(error).__name__, **times}
            return str(self._render(self, level, short))


def configure_logs(
    level: str,
    form: Literal["auto", "json", "pretty"] = "auto",
    stream: TextIO | None = None,
) -> LineSink:
    """Sends lines of at least `level` to `stream` (None: stderr). For the composition root only."""
    stream = sys.stderr if stream is None else stream
    pretty = form == "pretty" or (form == "auto" and stream.isatty())
    render: Processor = (
        structlog.dev.ConsoleRenderer(colors=stream.isatty())
        if pretty
        else structlog.processors.JSONRenderer(_json)
    )
    sink = LineSink(stream, render)
    structlog.configure(
        processors=[shown_exception, _hand_over],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=lambda *_: sink,
        cache_logger_on_first_use=False,
    )
    return sink


def set_log_level(level: str) -> None:
    """Lines of at least this level from now on, wherever they go."""
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(number))


class Late:
    """Most of a line that is written often: put together when the line is written, as `tell(*of)`.

    `tell` must look at nothing that changes. What it is given is not shown, whoever prints this.
    """

    __slots__ = ("_of", "_tell")

    def __init__(self, tell: Callable[..., EventDict], *of: object) -> None:
        self._tell = tell
        self._of = of

    def __call__(self) -> EventDict:
        """What the line tells."""
        return self._tell(*self._of)


def told_late(_: WrappedLogger, __: str, entry: EventDict) -> EventDict:
    """What a `Late` under `late` tells, in its place."""
    late = entry.pop("late", None)
    return {**entry, **late()} if isinstance(late, Late) else entry


def shown_exception(_: WrappedLogger, __: str, entry: EventDict) -> EventDict:
    """Tells of an exception where it was raised and its type, never its text.

    That may quote what a client sent.
    """
    raised = entry.pop("exc_info", None)
    error = sys.exc_info()[1] if raised is True else raised
    if isinstance(error, BaseException):
        places = "".join(traceback.format_tb(error.__traceback__))
        entry["exception"] = f"{places}{type(error).__name__}"
    return entry


def _hand_over(
    _: WrappedLogger, level: str, entry: EventDict
) -> tuple[tuple[str, int, EventDict, contextvars.Context], dict[str, Any]]:
    """The arguments of `LineSink.take`."""
    return (level, time.time_ns(), entry, contextvars.copy_context()), {}


@lru_cache(2)
def _second(whole_s: int) -> str:
    return datetime.fromtimestamp(whole_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _stamp(at_ns: int) -> str:
    """RFC 3339 in UTC, with microseconds."""
    whole_s, rest_ns = divmod(at_ns, 1_000_000_000)
    return f"{_second(whole_s)}.{rest_ns // 1000:06d}Z"


def _json(entry: object, **options: Any) -> str:
    """One line; several times as fast as `json.dumps`, which takes what this one does not."""
    try:
        return _ENCODER.encode(entry).decode()
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError):
        # A text that is no Unicode, or a number of more than 64 bits.
        return json.dumps(entry, **options)
