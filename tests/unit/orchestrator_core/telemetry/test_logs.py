"""Log lines: constant names, the required keys, a sentence for people, and no secrets."""

import asyncio
import contextlib
import io
import json

import pytest
import structlog

from orchestrator_core.core.config import CoreConfig, QueuePolicy
from orchestrator_core.core.events import (
    AcceptsFailed,
    AttemptEnded,
    AttemptError,
    AttemptErrorKind,
    AttemptRefused,
    AttemptStarted,
    CancelRequested,
    DrainRequested,
    HostRegistered,
    Tick,
)
from orchestrator_core.core.outcome import FieldViolation, Reason, Refusal
from orchestrator_core.errors import RefusalError
from orchestrator_core.telemetry.line_sink import Late, configure_logs
from tests.unit.orchestrator_core.telemetry.harness import (
    TRACE_ID,
    TRACEPARENT,
    Harness,
    snapshot,
    spec,
)

CANARY = "canary-7f3a prompt of a user"
REQUIRED = {
    *("job_id", "session_id", "engine", "engine_version", "pool_id", "replica_id"),
    *("queue_position", "predicted_start_ms", "tokens_in", "tokens_out", "decode_time_ms"),
    *("model_id", "quant", "ctx", "kv_warmth", "queue_time_ms", "correlation_id", "trace_id"),
}
DIED = AttemptError(AttemptErrorKind.ENGINE_DIED, "the engine process ended")


def test_the_line_of_a_finished_job_has_every_required_key() -> None:
    """ORCH-3027 lists them; the values are the job's."""
    harness = Harness()
    harness.host()

    harness.enqueue(spec(correlation_id="c-1", session_id="s-1", kv_reuse=True))
    harness.run()

    line = harness.line("job_finished")
    assert line.keys() >= REQUIRED
    assert (line["tokens_in"], line["tokens_out"], line["decode_time_ms"]) == (11, 4, 100)
    assert (line["correlation_id"], line["session_id"]) == ("c-1", "s-1")
    assert (line["trace_id"], line["kv_warmth"], line["replica_id"]) == (TRACE_ID, True, "p#1")


def test_a_job_is_told_from_accept_to_end() -> None:
    """Each step of a job is one line with the same ids and a sentence. ORCH-3300."""
    harness = Harness()
    harness.host()

    harness.enqueue(spec())
    harness.run()

    lines = [line for line in harness.lines() if line.get("job_id") == "j"]
    events = [line["event"] for line in lines]
    assert events == ["job_accepted", "job_placed", "job_started", "job_finished"]
    assert all(line["human"].endswith(".") for line in lines)
    assert {line["trace_id"] for line in lines} == {TRACE_ID}


def test_what_goes_wrong_is_told() -> None:
    """Rejected, refused, retried, expired, dropped, cancelled, failed, retracted, hosts, drain."""
    harness = Harness(CoreConfig(queue_capacity=1, queue_policy=QueuePolicy.DROP_LRU))
    harness.enqueue(spec("rejected"))
    harness.host(snapshot("p"), snapshot("q", model_id="n"))
    harness.enqueue(spec("refused"))
    harness.step(AttemptRefused("refused", 1, "no_slot"))
    harness.step(Tick(), 1_000)
    harness.enqueue(spec("dropped"))
    harness.enqueue(spec("expired", queue_timeout_ms=1))
    harness.step(Tick(), 1)
    harness.enqueue(spec("retracted"))
    harness.step(AcceptsFailed(("retracted",)))
    harness.step(AttemptEnded("refused", 2, 5, error=DIED))
    harness.step(AttemptStarted("refused", 3))
    harness.step(CancelRequested("refused", reply_to=2))
    harness.step(HostRegistered("g", 9, (snapshot("p", host_id="g"),)))
    harness.telemetry.host_down("h", "its stream ended")
    harness.step(DrainRequested())

    events = {line["event"] for line in harness.lines()}
    assert events >= {
        *("job_rejected", "attempt_refused", "job_dropped", "job_expired", "job_retracted"),
        *("job_cancelled", "host_up", "host_down", "drain_started"),
        "pool_refused",
    }
    assert all(line.get("human", "").endswith(".") for line in harness.lines())


def test_a_rejection_says_which_job_and_why() -> None:
    """HME-030: with what its caller finds it by, and what would have to change."""
    harness = Harness()
    with harness.telemetry.rpc("enqueue", [("traceparent", TRACEPARENT)]) as rpc:
        rpc.asked = spec(session_id="s", correlation_id="c-1")
        harness.enqueue(rpc.asked)

    line = harness.line("job_rejected")
    message = "no pool is registered; start a pool-managerd that points at this orchestrator"
    assert (line["job_id"], line["session_id"], line["model_id"]) == ("j", "s", "m")
    assert (line["correlation_id"], line["trace_id"]) == ("c-1", TRACE_ID)
    assert line["error"] == message
    assert line["human"] == f"A job for m was rejected: POOL_UNAVAILABLE: {message}."


def test_a_request_that_cannot_be_read_is_told_by_its_fields() -> None:
    """ORCH-3302: their names, not what stood in them, nor the keys of labels."""
    harness = Harness()
    violations = (
        FieldViolation("spec.labels[canary-key]", "canary-value is too long"),
        FieldViolation("spec.sampling.top_p", "must be in (0, 1], is canary"),
    )
    refused = Refusal(Reason.INVALID_PARAMS, "canary", violations=violations)
    with contextlib.suppress(RefusalError), harness.telemetry.rpc("enqueue", []) as rpc:
        rpc.correlation_id = "c-1"
        raise RefusalError(refused)

    line = harness.line("job_rejected")
    assert line["fields"] == ["spec.labels", "spec.sampling.top_p"]
    assert line["correlation_id"] == "c-1"
    assert "canary" not in harness.stream.getvalue()


def test_a_cancel_that_nobody_confirms_is_told_with_what_finds_its_job() -> None:
    """Long after its end, of which there is a line already."""
    harness = Harness(CoreConfig(cancel_timeout_ms=100))
    harness.host()
    harness.enqueue(spec(correlation_id="c-1"))
    harness.step(AttemptStarted("j", 1))
    harness.step(CancelRequested("j", reply_to=2))
    harness.step(Tick(), 100)
    harness.step(Tick(), 100)

    line = harness.line("cancel_unconfirmed")
    assert (line["job_id"], line["pool_id"]) == ("j", "p")
    assert (line["correlation_id"], line["trace_id"]) == ("c-1", TRACE_ID)


def test_no_prompt_reaches_any_signal() -> None:
    """The payload of a job is in no line, span or metric, however the job ends. ORCH-3302."""
    harness = Harness()
    harness.host(snapshot("p"), snapshot("q"))
    secret = {"payload": CANARY.encode(), "identity": CANARY}
    harness.enqueue(spec("a", **secret))
    harness.enqueue(spec("b", **secret))
    harness.enqueue(spec("a", **{**secret, "digest": "another"}))
    harness.run("a")
    harness.step(AttemptEnded("b", 1, 9, error=DIED))
    harness.step(AttemptStarted("b", 2))
    harness.step(CancelRequested("b", reply_to=2))
    harness.enqueue(spec("c", **secret))
    harness.step(AcceptsFailed(("c",)))

    signals = harness.stream.getvalue()
    signals += "".join(span.to_json() for span in harness.spans())
    harness.series("queue_depth")
    data = harness.reader.get_metrics_data()
    signals += data.to_json() if data is not None else ""

    assert "job_finished" in signals
    assert "tasks_enqueued_total" in signals
    assert "canary-7f3a" not in signals


@pytest.fixture
def _log_configuration() -> object:
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("_log_configuration")
def test_lines_are_json_with_time_and_level_unless_a_terminal_reads_them() -> None:
    """Below the level nothing is written."""
    stream = io.StringIO()
    configure_logs("info", stream=stream)
    log = structlog.get_logger("orchestratord")

    log.debug("unseen")
    log.info("seen", pool_id="p")

    (line,) = [json.loads(text) for text in stream.getvalue().splitlines()]
    assert (line["event"], line["level"], line["pool_id"]) == ("seen", "info", "p")
    assert line["timestamp"].endswith("Z")


@pytest.mark.usefixtures("_log_configuration")
def test_pretty_lines_are_for_people() -> None:
    """The same facts, not as JSON."""
    stream = io.StringIO()
    configure_logs("info", "pretty", stream)

    structlog.get_logger("orchestratord").info("seen", pool_id="p")

    assert "pool_id=p" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


class GoneReader(io.StringIO):
    """A stream whose other end was closed."""

    def write(self, _: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self) -> None:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_log_that_nobody_reads_breaks_nothing() -> None:
    """A line that cannot be written is dropped: no job fails for it."""
    configure_logs("info", "json", GoneReader())

    try:
        structlog.get_logger("orchestratord").info("job_accepted", job_id="a")
        pretty = GoneReader()
        configure_logs("info", "pretty", pretty)
        structlog.get_logger("orchestratord").info("job_accepted", job_id="b")
    finally:
        structlog.reset_defaults()

    assert pretty.getvalue() == ""


def test_a_line_that_cannot_be_told_keeps_no_other_back() -> None:
    """A bug in what a line tells late costs its keys: its event and the other lines are written."""
    stream = io.StringIO()
    configure_logs("info", "json", stream)

    def broken() -> dict[str, object]:
        raise IndexError

    async def burst() -> None:
        log = structlog.get_logger("orchestratord")
        log.info("before")
        log.info("broken", late=Late(broken))
        log.info("after")
        await asyncio.sleep(0)

    try:
        asyncio.run(burst())
    finally:
        structlog.reset_defaults()

    lines = [json.loads(text) for text in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["before", "broken", "after"]
    assert lines[1]["exception"] == "IndexError"
