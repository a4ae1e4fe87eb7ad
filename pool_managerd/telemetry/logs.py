"""Log lines: a JSON object each, or pretty for a terminal. Never prompts, tokens or secrets.

HME-030, ORCH-3300, ORCH-3302.
"""

import contextlib
import logging
import sys
import traceback
from typing import Final, Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_SERVICE: Final = "pool-managerd"

log: structlog.stdlib.BoundLogger = structlog.get_logger(_SERVICE)


class _Unfailing:
    """A stream whose reader may be gone: what cannot be written is dropped, never raised.

    A log line must not break the job that it tells about.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes, or drops the text."""
        with contextlib.suppress(OSError, ValueError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes, or gives up."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def configure_logs(
    level: str,
    form: Literal["auto", "json", "pretty"] = "auto",
    stream: TextIO | None = None,
) -> None:
    """Sends lines of at least `level` to `stream` (None: stderr). For the composition root only."""
    stream = sys.stderr if stream is None else stream
    pretty = form == "pretty" or (form == "auto" and stream.isatty())
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=stream.isatty())
        if pretty
        else structlog.processors.JSONRenderer(sort_keys=False)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            shown_exception,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Unfailing(stream))),
        # A logger that was kept would keep its level.
        cache_logger_on_first_use=False,
    )


def set_log_level(level: str) -> None:
    """Lines of at least this level from now on, wherever they go."""
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(number))


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
