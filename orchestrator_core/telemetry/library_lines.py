"""What libraries log, as lines like all others. HME-030.

Python writes it to stderr as it is: between JSON lines, and with the text of exceptions, which may
quote what a client sent. ORCH-3302.
"""

import contextlib
import logging
import sys
import threading
from types import TracebackType
from typing import Final

import structlog

from orchestrator_core.telemetry.names import SERVICE

# They tell of collectors and of code; what others say may hold a client's words.
_QUOTED: Final = ("opentelemetry.", "py.warnings")
TEXT_MAX: Final = 500


def hear_libraries() -> None:
    """Warnings and worse of all libraries become log lines. For the composition root only.

    So does what ends a thread or the process, and what is raised where nobody can catch it.
    """
    logging.getLogger().addHandler(LibraryLines(logging.WARNING))
    logging.captureWarnings(True)
    threading.excepthook = _thread_raised
    sys.excepthook = _process_raised
    sys.unraisablehook = _nobody_caught


class LibraryLines(logging.Handler):
    """Writes records of `logging`: of most libraries only who says it, where, and what was raised.

    Whatever the level of our own lines, theirs below a warning are left out.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line."""
        said = f"{record.module}:{record.lineno}"
        if record.name.startswith(_QUOTED):
            # What cannot be put together is the library's bug, and must not raise within it.
            with contextlib.suppress(Exception):
                said = record.getMessage()[:TEXT_MAX]
        log = structlog.get_logger(SERVICE)
        (log.error if record.levelno >= logging.ERROR else log.warning)(
            "library_said",
            library=record.name,
            said=said,
            exc_info=record.exc_info[1] if record.exc_info else None,
            human=f"The library {record.name.partition('.')[0]} reports trouble: {said}",
        )


def _thread_raised(about: threading.ExceptHookArgs) -> None:
    if issubclass(about.exc_type, SystemExit):
        # A thread may end itself so, as Python's own hook has it.
        return
    name = "" if about.thread is None else about.thread.name
    structlog.get_logger(SERVICE).error(
        "thread_raised",
        thread=name,
        exc_info=about.exc_value,
        human=f"The thread {name} ended because of a bug.",
    )


def _nobody_caught(about: "sys.UnraisableHookArgs") -> None:
    """In a finalizer, say: Python would write the exception's text to stderr."""
    where = getattr(about.object, "__qualname__", type(about.object).__qualname__)
    structlog.get_logger(SERVICE).error(
        "nobody_caught",
        where=where,
        exc_info=about.exc_value,
        human=f"A bug in {where} was raised where nobody could catch it: report it.",
    )


def _process_raised(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not issubclass(kind, Exception):
        sys.__excepthook__(kind, error, trace)
        return
    structlog.get_logger(SERVICE).critical(
        "process_raised",
        exc_info=error,
        human="The service ended because of a bug: report it.",
    )
