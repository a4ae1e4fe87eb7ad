"""To which trace a job belongs: that of its caller, else one of its own; and which it links to."""

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from orchestrator_core.core.config import CoreConfig, QueuePolicy
from orchestrator_core.core.effects import SendStart
from orchestrator_core.core.events import AttemptEnded, CancelRequested
from orchestrator_core.telemetry.tracing import parse_traceparent
from tests.unit.orchestrator_core.telemetry.harness import (
    DIED,
    TRACE_ID,
    TRACEPARENT,
    Harness,
    snapshot,
    spec,
)


def test_without_tracing_a_trace_goes_through_unchanged() -> None:
    """Nothing is exported, but the caller's context reaches the job and the pool."""
    harness = Harness(traced=False)
    harness.host()

    with harness.telemetry.rpc("enqueue", [("traceparent", TRACEPARENT)]) as rpc:
        harness.enqueue(spec(traceparent=rpc.traceparent))

    assert rpc.traceparent == TRACEPARENT
    assert harness.telemetry.steps.dispatch_traceparent("j", 1) == TRACEPARENT
    assert harness.telemetry.steps.trace_id("j") == TRACE_ID
    assert not harness.spans()


@pytest.mark.parametrize("traced", [True, False])
def test_every_call_has_a_trace_id(traced: bool) -> None:
    """A caller without a trace context gets a fresh one, exported or not."""
    harness = Harness(traced=traced)

    with harness.telemetry.rpc("enqueue", None) as first:
        pass
    with harness.telemetry.rpc("enqueue", [("traceparent", "garbage")]) as second:
        pass

    assert parse_traceparent(first.traceparent) is not None
    assert first.trace_id != second.trace_id


@pytest.mark.parametrize("traced", [True, False])
def test_a_job_without_a_context_is_still_one_trace(traced: bool) -> None:
    """Its attempts and its trace id agree."""
    harness = Harness(traced=traced)
    harness.host()
    harness.enqueue(spec(traceparent=""))

    handed = parse_traceparent(harness.telemetry.steps.dispatch_traceparent("j", 1))

    assert handed is not None
    assert harness.telemetry.steps.trace_id("j") == f"{handed.trace_id:032x}"
    assert len({span.context.trace_id for span in harness.spans()}) <= 1


def test_a_start_that_leaves_after_the_end_still_has_a_context() -> None:
    """Gated effects leave late: the job may have ended, its stored context remains."""
    harness = Harness()
    harness.host()
    effects = harness.enqueue(spec())

    harness.step(CancelRequested("j", reply_to=2))

    (start,) = [effect for effect in effects if isinstance(effect, SendStart)]
    assert harness.telemetry.steps.dispatch_traceparent("j", start.attempt) == TRACEPARENT
    assert harness.telemetry.steps.trace_id("j") == TRACE_ID
    assert harness.telemetry.steps.dispatch_traceparent("unknown", 1) == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        TRACEPARENT + "\n" + "x" * 400,
    ],
)
def test_a_malformed_traceparent_is_ignored(text: str) -> None:
    """What W3C calls invalid starts a new trace instead of poisoning one."""
    assert parse_traceparent(text) is None


def _linked(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


def test_what_follows_a_lost_attempt_links_to_it() -> None:
    """The second wait and the second dispatch; the first ones link to nothing."""
    harness = Harness()
    harness.host(snapshot("p"), snapshot("q"))
    harness.enqueue(spec())
    harness.step(AttemptEnded("j", 1, 1, error=DIED))
    harness.run(attempt=2)

    first, second = harness.spans("dispatch")
    waits = harness.spans("queue.wait")
    assert [_linked(span) for span in waits] == [[], [first.context.span_id]]
    assert [_linked(first), _linked(second)] == [[], [first.context.span_id]]


def test_a_displacement_links_both_traces() -> None:
    """The one that gave way and the one that took its place."""
    harness = Harness(CoreConfig(queue_capacity=1, queue_policy=QueuePolicy.DROP_LRU))
    harness.host(snapshot(slots_total=1))
    harness.enqueue(spec("running"))
    harness.enqueue(spec("old", traceparent=f"00-{'1' * 32}-{'2' * 16}-01"))
    with harness.telemetry.rpc("enqueue", []) as rpc:
        harness.enqueue(spec("new", traceparent=rpc.traceparent))

    (admit,) = [
        s for s in harness.spans("admit") if (s.attributes or {})["llamaorch.job_id"] == "new"
    ]
    assert _linked(admit) == [int("2" * 16, 16)]
    assert [link.context for link in harness.span("drop").links] == [rpc.context]
