"""Log lines: one JSON object each. Never prompts, tokens or secrets. HME-030, ORCH-3300."""

import contextlib
import logging
import sys
from typing import Final, TextIO, cast

import structlog

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


def configure_logs(level: str) -> None:
    """Sends JSON lines of at least `level` to stderr."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(sort_keys=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Unfailing(sys.stderr))),
        cache_logger_on_first_use=True,
    )
