"""Where log lines go: JSON or pretty, on one stream, many at a time.

A line is put into shape when it is written and not when it happens: see `gathering`. And each write
is a system call, at which every other thread may take the interpreter.
"""

import atexit
import contextlib
import contextvars
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple, TextIO

import msgspec
import structlog
from structlog.contextvars import STRUCTLOG_KEY_PREFIX
from structlog.typing import EventDict, Processor, WrappedLogger

from orchestrator_core.telemetry.gathering import Gathered

_VARIABLES_MAX = 64
_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
_ENCODER = msgspec.json.Encoder(enc_hook=repr)


class Line(NamedTuple):
    """A line that happened at `at_ns`, since the epoch, in `context`."""

    level: str
    at_ns: int
    entry: EventDict
    context: contextvars.Context


class LineSink:
    """Writes lines, many at a time.

    A reader may be gone: what cannot be written is dropped, never raised, as a log line must not
    break the job that it tells about.
    """

    def __init__(self, stream: TextIO, render: Processor) -> None:
        self._stream = stream
        self._render = render
        self._lines = Gathered(self._write)
        self.take = self._lines.put
        atexit.register(self.flush)

    def flush(self) -> None:
        """Writes what waits, now."""
        self._lines.flush()

    def _write(self, lines: list[Line]) -> None:
        texts = [self._shaped(line) for line in lines]
        with contextlib.suppress(OSError, ValueError):
            self._stream.write("\n".join([*texts, ""]))
            self._stream.flush()

    def _shaped(self, line: Line) -> str:
        """One line; where a bug keeps it from being told whole, that it happened."""
        level, at_ns, entry, context = line
        times = {"level": level, "timestamp": _stamp(at_ns)}
        try:
            told = {**bound_in(context), **told_late(self, level, entry)}
            return str(self._render(self, level, {**told, **times}))
        except Exception as error:  # noqa: BLE001 - no line may take others with it
            short = {"event": entry.get("event"), "exception": type(error).__name__, **times}
            return str(self._render(self, level, short))


class LineLogger(structlog.BoundLoggerBase):
    """structlog's logger without a chain of processors.

    That takes longer than all else of a line until it is written.
    """

    def debug(self, event: str, **told: object) -> None:
        """Below what operators need."""
        self._hand_over("debug", event, told)

    def info(self, event: str, **told: object) -> None:
        """What happened."""
        self._hand_over("info", event, told)

    def warning(self, event: str, **told: object) -> None:
        """What somebody should look at."""
        self._hand_over("warning", event, told)

    def error(self, event: str, **told: object) -> None:
        """What failed."""
        self._hand_over("error", event, told)

    def critical(self, event: str, **told: object) -> None:
        """What ends the process."""
        self._hand_over("critical", event, told)

    def exception(self, event: str, **told: object) -> None:
        """An error, with the exception that is being handled."""
        self.error(event, **{"exc_info": True, **told})

    def log(self, level: int, event: str, **told: object) -> None:
        """A line of a level by its number."""
        getattr(self, logging.getLevelName(level).lower())(event, **told)

    def _hand_over(self, level: str, event: str, told: EventDict) -> None:
        at_ns = time.time_ns()
        entry = {**self._context, **told, "event": event} if self._context else told
        entry["event"] = event
        if "exc_info" in entry:
            entry = shown_exception(self, level, entry)
        self._logger.take(Line(level, at_ns, entry, contextvars.copy_context()))


@cache
def _logger_from(level: str) -> type[LineLogger]:
    """The logger that tells lines of at least `level`."""
    least = logging.getLevelNamesMapping()[level.upper()]
    quiet = {name: _unsaid for name, number in _LEVELS.items() if number < least}
    return type("LineLogger", (LineLogger,), quiet)


def _unsaid(_: LineLogger, __: str, **___: object) -> None:
    """A line below the level."""


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
        processors=[],
        wrapper_class=_logger_from(level),
        logger_factory=lambda *_: sink,
        cache_logger_on_first_use=False,
    )
    return sink


def set_log_level(level: str) -> None:
    """Lines of at least this level from now on, wherever they go."""
    wrapper: type[Any] = _logger_from(level)
    if not issubclass(structlog.get_config()["wrapper_class"], LineLogger):
        least = logging.getLevelNamesMapping()[level.upper()]
        wrapper = structlog.make_filtering_bound_logger(least)
    structlog.configure(wrapper_class=wrapper)


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


def bound_in(context: contextvars.Context) -> EventDict:
    """What was bound to be told in every line, as `structlog.contextvars` keeps it."""
    return {
        key: value
        for variable, value in context.items()
        if (key := _bound_as(variable)) and value is not Ellipsis
    }


@lru_cache(_VARIABLES_MAX)
def _bound_as(variable: contextvars.ContextVar[Any]) -> str:
    """The key that a variable stands for; empty for a variable of others."""
    name = variable.name
    return name.removeprefix(STRUCTLOG_KEY_PREFIX) if name.startswith(STRUCTLOG_KEY_PREFIX) else ""


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
