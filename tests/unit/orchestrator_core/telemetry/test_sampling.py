"""A trace that was sampled out is exported after all where something went wrong. Design §8."""

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from orchestrator_core.core.config import CoreConfig, QueuePolicy
from orchestrator_core.core.events import (
    AttemptEnded,
    AttemptError,
    AttemptErrorKind,
    AttemptStarted,
    CancelRequested,
    EnqueueRequested,
    PoolDrainRequested,
)
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.errors import RefusalError
from orchestrator_core.telemetry import held
from orchestrator_core.telemetry.calls import watched_call
from orchestrator_core.telemetry.held import HeldSpans
from orchestrator_core.telemetry.tracing import parse_traceparent
from tests.unit.orchestrator_core.telemetry.harness import (
    START_MS,
    TRACEPARENT,
    Harness,
    snapshot,
    spec,
)

SAMPLED_OUT = TRACEPARENT.removesuffix("01") + "00"
DIED = AttemptError(AttemptErrorKind.ENGINE_DIED, "the engine process ended")
BROKE = AttemptError(AttemptErrorKind.INVALID_REQUEST, "no such grammar")


def _enqueue(harness: Harness, job_id: str = "j", traceparent: str = SAMPLED_OUT) -> None:
    """As the servicer does, from a caller with that trace context."""
    with harness.telemetry.rpc("enqueue", [("traceparent", traceparent)]) as rpc:
        job = spec(job_id, traceparent=rpc.traceparent)
        harness.step(EnqueueRequested(job, reply_to=1))


def _refused(harness: Harness, error: RefusalError, *, by_core: bool) -> None:
    with harness.telemetry.rpc("enqueue", [("traceparent", SAMPLED_OUT)]) as rpc:
        if by_core:
            job = spec("refused", traceparent=rpc.traceparent)
            harness.step(EnqueueRequested(job, reply_to=1))
        raise error


def _names(harness: Harness) -> list[str]:
    return sorted(span.name for span in harness.spans())


def test_a_job_that_finishes_stays_sampled_out() -> None:
    """Nothing of it is exported, and nothing is kept."""
    harness = Harness()
    harness.host()
    _enqueue(harness)
    held_while_it_runs = harness.held_spans

    harness.run()

    assert held_while_it_runs == 4, "enqueue, admit, queue.wait, place"
    assert _names(harness) == []
    assert harness.held_spans == 0


def test_a_job_that_fails_is_exported_whole() -> None:
    """From the call that brought it to its end, under the caller's span."""
    harness = Harness()
    harness.host()
    _enqueue(harness)
    harness.step(AttemptStarted("j", 1))

    harness.step(AttemptEnded("j", 1, 1, error=BROKE))

    whole = ["admit", "decode", "dispatch", "enqueue", "fail", "place", "queue.wait"]
    assert _names(harness) == whole
    assert len({span.context.trace_id for span in harness.spans()}) == 1
    assert harness.held_spans == 0


def test_a_job_that_lost_an_attempt_is_exported_although_it_finished() -> None:
    """Why did it take so long? is asked of such jobs."""
    harness = Harness()
    harness.host(snapshot("p"), snapshot("q"))
    _enqueue(harness)
    harness.step(AttemptEnded("j", 1, 1, error=DIED))

    harness.run(attempt=2)

    assert _names(harness).count("dispatch") == 2
    assert "retry" in _names(harness)


def test_a_job_that_gave_way_is_exported_and_who_took_its_place_is_not() -> None:
    """Each job has its own decision, also within one trace."""
    harness = Harness(CoreConfig(queue_capacity=1, queue_policy=QueuePolicy.DROP_LRU))
    harness.host(snapshot(slots_total=1))
    for job_id in ("running", "old", "new"):
        _enqueue(harness, job_id)
    harness.step(CancelRequested("new", reply_to=2))

    jobs = {(span.attributes or {}).get("llamaorch.job_id") for span in harness.spans()}
    assert jobs == {"old"}


@pytest.mark.parametrize("by_core", [True, False])
def test_a_rejected_call_is_exported(*, by_core: bool) -> None:
    """Whether the core refuses it or what is before the core."""
    harness = Harness(CoreConfig(queue_capacity=1))
    harness.host(snapshot(slots_total=1))
    _enqueue(harness, "running")
    _enqueue(harness, "waits")
    error = RefusalError(Refusal(Reason.INVALID_PARAMS, "bad field"))
    if by_core:
        error = RefusalError(Refusal(Reason.ADMISSION_REJECT, "full"))

    with pytest.raises(RefusalError):
        _refused(harness, error, by_core=by_core)

    assert _names(harness) == ["admit", "enqueue"]


def test_a_sampled_job_is_exported_as_it_goes() -> None:
    """Nothing is held of it."""
    harness = Harness()
    harness.host()

    _enqueue(harness, traceparent=TRACEPARENT)

    assert _names(harness) == ["admit", "enqueue", "place", "queue.wait"]
    assert harness.held_spans == 0


def test_what_is_held_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By families, the oldest go first; by spans of one; and by decisions remembered."""
    monkeypatch.setattr(held, "FAMILIES_MAX", 2)
    monkeypatch.setattr(held, "SPANS_MAX", 3)
    monkeypatch.setattr(held, "DECIDED_MAX", 2)
    out: list[ReadableSpan] = []
    spans = HeldSpans(out.append)

    for family in (1, 2, 3):
        for number in range(5):
            spans.add(family, ReadableSpan(f"{family}.{number}"))
    for family in (1, 2, 3):
        spans.decide(family, keep=True)

    assert [span.name for span in out] == ["2.0", "2.1", "2.2", "3.0", "3.1", "3.2"]
    assert len(spans) == 0


def test_a_span_that_ends_after_the_decision_follows_it() -> None:
    """The call may end after its job."""
    out: list[ReadableSpan] = []
    spans = HeldSpans(out.append)
    spans.decide(1, keep=True)
    spans.decide(1, keep=False)
    spans.decide(2, keep=False)

    spans.add(1, ReadableSpan("late"))
    spans.add(2, ReadableSpan("unwanted"))

    assert [span.name for span in out] == ["late"]
    assert len(spans) == 0


@pytest.mark.parametrize("traceparent", [TRACEPARENT, SAMPLED_OUT])
def test_what_an_operator_decides_is_told_under_the_call_that_asked_for_it(
    traceparent: str,
) -> None:
    """Whatever its caller sampled: such decisions are rare, and explain what jobs meet."""
    harness = Harness()
    harness.host()
    call = parse_traceparent(traceparent)
    asked = watched_call.set(call)
    harness.step(PoolDrainRequested("p", draining=True, timeout_ms=1_000, reply_to=1))
    harness.telemetry.pool_reloaded("p", "done", "", (START_MS, START_MS + 10))
    watched_call.reset(asked)

    assert call is not None
    assert _names(harness) == ["drain", "reload"]
    parents = [span.parent.span_id for span in harness.spans() if span.parent is not None]
    assert parents == [call.span_id] * 2
    assert harness.held_spans == 0
