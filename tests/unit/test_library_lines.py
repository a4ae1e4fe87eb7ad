"""What libraries log is a line like all others, and quotes nobody. HME-030, ORCH-3302."""

import asyncio
import gc
import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import structlog

from orchestrator_core.telemetry import library_lines as of_orchestratord
from orchestrator_core.telemetry.line_sink import configure_logs as orchestratord_logs
from pool_managerd.telemetry import configure_logs as pool_managerd_logs
from pool_managerd.telemetry import library_lines as of_pool_managerd

CANARY = "canary-5be1 of a prompt"
WAIT_S = 10.0
Said = Callable[[], list[dict[str, object]]]


@pytest.fixture(
    params=[(of_orchestratord, orchestratord_logs), (of_pool_managerd, pool_managerd_logs)],
    ids=["orchestratord", "pool-managerd"],
)
def said(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Said]:
    """Lines of a service whose libraries are heard, at its most talkative."""
    module: ModuleType
    module, configure = request.param
    stream = io.StringIO()
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    configure("debug", "json", stream)
    module.hear_libraries()
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logging.captureWarnings(False)
    structlog.reset_defaults()


def test_trouble_with_a_collector_is_told_in_its_words(said: Said) -> None:
    """They name nobody but the collector; what is below a warning is not told."""
    library = logging.getLogger("opentelemetry.exporter")

    library.info("sent")
    library.warning("cannot reach %s", "collector:4317")

    (line,) = said()
    assert (line["event"], line["level"]) == ("library_said", "warning")
    assert line["library"] == "opentelemetry.exporter"
    assert line["said"] == "cannot reach collector:4317"


def test_words_that_do_not_fit_together_break_nobody(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library goes on, and the place where it spoke is told."""
    lines = (of_orchestratord.LibraryLines, of_pool_managerd.LibraryLines)
    ours = [each for each in logging.getLogger().handlers if isinstance(each, lines)]
    # That of pytest raises.
    monkeypatch.setattr(logging.getLogger(), "handlers", ours)

    logging.getLogger("opentelemetry.exporter").warning("sent %d", "all")

    (line,) = said()
    assert str(line["said"]).startswith("test_library_lines:")


def test_an_exception_that_nobody_caught_is_told_without_its_text(said: Said) -> None:
    """Of a callback of the loop, of a handler of gRPC, and of a thread."""

    def fail() -> None:
        raise ValueError(CANARY)

    async def forgotten() -> None:
        asyncio.get_running_loop().call_soon(fail)
        await asyncio.sleep(0)

    asyncio.run(forgotten())
    try:
        fail()
    except ValueError:
        logging.getLogger("grpc._server").exception("raised by a servicer: %s", CANARY)
    thread = threading.Thread(target=fail, name="worker")
    thread.start()
    thread.join(WAIT_S)

    lines = said()
    assert [line["event"] for line in lines] == ["library_said", "library_said", "thread_raised"]
    assert [line.get("library") for line in lines] == ["asyncio", "grpc._server", None]
    assert all(str(line["exception"]).endswith("ValueError") for line in lines)
    assert all("in fail" in str(line["exception"]) for line in lines)
    assert CANARY not in json.dumps(lines)


def test_a_thread_that_ends_itself_is_no_bug(said: Said) -> None:
    """SystemExit ends a thread and nothing else; Python says nothing of it either."""
    thread = threading.Thread(target=sys.exit, args=(CANARY,))
    thread.start()
    thread.join(WAIT_S)

    assert said() == []


def test_what_nobody_can_catch_is_a_line_without_its_text(said: Said) -> None:
    """Python would write it to stderr as it is, between the lines."""

    class Closing:
        def __del__(self) -> None:
            raise ValueError(CANARY)

    Closing()
    gc.collect()

    (line,) = said()
    assert line["event"] == "nobody_caught"
    assert str(line["where"]).endswith("Closing.__del__")
    assert str(line["exception"]).endswith("ValueError")
    assert CANARY not in json.dumps(line)


def test_a_bug_that_ends_the_process_is_a_line_without_its_text(said: Said) -> None:
    """The last line is JSON too; what ends a process on purpose is none."""
    sys.excepthook(ValueError, ValueError(CANARY), None)

    (line,) = said()
    assert (line["event"], line["level"]) == ("process_raised", "critical")
    assert str(line["exception"]).endswith("ValueError")
    assert CANARY not in json.dumps(line)


def test_a_warning_of_python_is_a_line(said: Said) -> None:
    """What is deprecated, for whoever looks after the service."""
    logging.captureWarnings(False)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(False)

    (line,) = said()
    assert "DeprecationWarning: old" in str(line["said"])
