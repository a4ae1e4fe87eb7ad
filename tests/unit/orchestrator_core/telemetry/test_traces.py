"""Decisions as spans: one trace per job, the right parents, the facts that explain a decision."""

import pytest

from orchestrator_core.core.config import CoreConfig, QueuePolicy
from orchestrator_core.core.events import (
    AcceptsFailed,
    AttemptEnded,
    AttemptRefused,
    AttemptStarted,
    CancelRequested,
    DrainRequested,
    HeldAttempt,
    OutputProgressed,
    Recovered,
    Tick,
)
from orchestrator_core.core.machine import Core
from orchestrator_core.core.records import AcceptRecord, DispatchRecord
from orchestrator_core.core.spec import Failover, Needs
from orchestrator_core.telemetry.tracing import parse_traceparent
from tests.unit.orchestrator_core.telemetry.harness import (
    DIED,
    PARENT_ID,
    START_MS,
    TRACE_ID,
    TRACEPARENT,
    Harness,
    snapshot,
    spec,
)


def test_a_finished_job_is_one_trace_under_the_span_that_enqueued_it() -> None:
    """Admit, wait, place, dispatch and decode are children of the stored context."""
    harness = Harness()
    harness.host()

    harness.enqueue(spec())
    harness.run()

    spans = harness.spans()
    assert [span.name for span in spans] == ["admit", "queue.wait", "place", "dispatch", "decode"]
    assert {f"{span.context.trace_id:032x}" for span in spans} == {TRACE_ID}
    assert {f"{span.parent.span_id:016x}" for span in spans if span.parent} == {PARENT_ID}
    assert all(span.parent is not None for span in spans)
    assert harness.open_spans == 0


def test_spans_last_as_long_as_what_they_stand_for() -> None:
    """Start and end are the core's instants."""
    harness = Harness()
    harness.host(snapshot(slots_total=1))
    harness.enqueue(spec("first"))
    harness.enqueue(spec("second"))

    harness.run("first")
    harness.run("second")

    waits = harness.spans("queue.wait")
    decodes = harness.spans("decode")
    dispatches = harness.spans("dispatch")
    assert [_length_ms(span) for span in waits] == [0, 125]
    assert [_length_ms(span) for span in dispatches] == [5, 5]
    assert [_length_ms(span) for span in decodes] == [120, 120]
    assert waits[0].start_time == START_MS * 1_000_000


def test_admit_tells_position_and_prediction() -> None:
    """The verdict of admission carries what the client was told."""
    harness = Harness()
    harness.host()

    harness.enqueue(spec(correlation_id="c-1", session_id="s-1"))

    admit = harness.attributes("admit")
    assert admit["verdict"] == "accepted"
    assert admit["queue_position"] == 1
    assert admit["predicted_start_ms"] == 0
    assert admit["correlation_id"] == "c-1"
    assert admit["session_id"] == "s-1"


def test_place_tells_the_best_five_candidates_and_counts_exclusions() -> None:
    """A placement among many pools stays a small span."""
    harness = Harness()
    pools = [snapshot(f"p{n}", perf_tokens_per_s=10.0 + n) for n in range(8)]
    harness.host(*pools, snapshot("other", model_id="n"))

    effects = harness.enqueue(spec())

    (record,) = [effect for effect in effects if isinstance(effect, DispatchRecord)]
    place = harness.attributes("place")
    assert place["pool_id"] == record.pool_id == "p7"
    assert len(place["place.candidates.pool_id"]) == 5
    assert place["place.candidates.pool_id"][0] == "p7"
    assert list(place["place.candidates.predicted_end_ms"]) == sorted(
        place["place.candidates.predicted_end_ms"]
    )
    assert set(place["place.candidates.snapshot_version"]) == {7}
    assert set(place["place.candidates.snapshot_age_ms"]) == {0}
    assert place["place.candidates_total"] == 8


def test_the_pool_continues_the_dispatch_span() -> None:
    """What an attempt hands to its pool names the dispatch span of that attempt."""
    harness = Harness()
    harness.host()
    harness.enqueue(spec())

    handed = parse_traceparent(harness.telemetry.steps.dispatch_traceparent("j", 1))
    harness.run()

    dispatch = harness.span("dispatch").context
    assert handed is not None
    assert (handed.trace_id, handed.span_id) == (dispatch.trace_id, dispatch.span_id)
    assert handed.trace_flags.sampled


def test_decode_tells_what_the_job_took() -> None:
    """Token counts and times are on the span of the generation."""
    harness = Harness()
    harness.host()
    harness.enqueue(spec(session_id="s", kv_reuse=True))

    harness.run()

    decode = harness.attributes("decode")
    assert decode["outcome"] == "finished"
    assert (decode["tokens_in"], decode["tokens_out"]) == (11, 4)
    assert (decode["first_token_ms"], decode["decode_time_ms"]) == (25, 100)
    assert decode["kv_warmth"] is True


def test_a_rejection_is_a_span_of_the_callers_trace() -> None:
    """A refusal leaves no job, so its span hangs under the call."""
    harness = Harness()

    with harness.telemetry.rpc("enqueue", [("traceparent", TRACEPARENT)]) as rpc:
        rpc.asked = spec(session_id="s", correlation_id="c-1")
        harness.enqueue(rpc.asked)

    admit, call = harness.span("admit"), harness.span("enqueue")
    told = harness.attributes("admit")
    assert told["reason"] == "POOL_UNAVAILABLE"
    assert {key: told[key] for key in ("job_id", "session_id", "model_id", "priority")} == {
        "job_id": "j",
        "session_id": "s",
        "model_id": "m",
        "priority": "interactive",
    }
    assert told["correlation_id"] == "c-1"
    assert admit.parent is not None
    assert admit.parent.span_id == call.context.span_id
    assert call.parent is not None
    assert f"{call.parent.span_id:016x}" == PARENT_ID
    assert rpc.trace_id == TRACE_ID
    assert harness.line("job_rejected")["trace_id"] == TRACE_ID


def test_a_repeated_request_is_marked_as_duplicate() -> None:
    """The second answer to one request is no second admission."""
    harness = Harness()
    harness.host()
    harness.enqueue(spec())

    with harness.telemetry.rpc("enqueue", [("traceparent", TRACEPARENT)]):
        harness.enqueue(spec())

    verdicts = [(span.attributes or {})["llamaorch.verdict"] for span in harness.spans("admit")]
    assert verdicts == ["accepted", "duplicate"]


def test_a_cancelled_job_closes_its_spans_and_says_who_cancelled() -> None:
    """Cancel ends the open span and is an instant of its own."""
    harness = Harness()
    harness.host()
    harness.enqueue(spec())
    harness.step(AttemptStarted("j", 1), 5)

    harness.step(CancelRequested("j", reply_to=2), 10)

    assert harness.attributes("decode")["outcome"] == "cancelled"
    assert harness.attributes("cancel")["why"] == "client"
    assert _length_ms(harness.span("cancel")) == 0
    assert harness.telemetry.steps.tracked == 0


def test_a_dropped_job_names_the_job_that_took_its_place() -> None:
    """Both sides of a displacement know the other."""
    harness = Harness(CoreConfig(queue_capacity=1, queue_policy=QueuePolicy.DROP_LRU))
    harness.host(snapshot(slots_total=1))
    harness.enqueue(spec("running"))
    harness.enqueue(spec("old"))

    harness.enqueue(spec("new"))

    assert harness.attributes("drop")["job_id"] == "old"
    assert harness.attributes("drop")["displaced_by_job_id"] == "new"
    admits = {(s.attributes or {})["llamaorch.job_id"]: s for s in harness.spans("admit")}
    assert (admits["new"].attributes or {})["llamaorch.displaced_job_id"] == "old"


def test_an_expired_job_names_the_reason() -> None:
    """A deadline in the queue ends the wait and is an instant of its own."""
    harness = Harness()
    harness.host(snapshot(slots_total=1))
    harness.enqueue(spec("running"))
    harness.enqueue(spec("late", queue_timeout_ms=50))

    harness.step(Tick(), 50)

    assert harness.attributes("expire")["job_id"] == "late"
    assert harness.attributes("expire")["reason"] == "DEADLINE"
    assert (harness.spans("queue.wait")[-1].attributes or {})["llamaorch.outcome"] == "expired"


def test_a_silent_retry_has_a_span_and_a_second_wait() -> None:
    """Nothing was delivered: the job waits and is dispatched again, in the same trace."""
    harness = Harness()
    harness.host(snapshot("p"), snapshot("q"))
    harness.enqueue(spec())

    harness.step(AttemptEnded("j", 1, 2, error=DIED), 7)

    assert harness.attributes("retry")["attempt"] == 1
    assert harness.total("failovers_total", pool_id="p") == 1
    assert (harness.line("job_retried")["pool_id"], harness.line("job_retried")["replica_id"]) == (
        "p",
        "p#1",
    )
    assert (harness.spans("dispatch")[0].attributes or {})["llamaorch.outcome"] == "lost"
    assert not harness.spans("failover")
    assert len(harness.spans("place")) == len(harness.spans("queue.wait")) == 2
    assert {f"{span.context.trace_id:032x}" for span in harness.spans()} == {TRACE_ID}


def test_a_loss_after_output_is_a_failover() -> None:
    """Delivered output makes the next attempt a verified replay."""
    harness = Harness()
    harness.host(snapshot("p"), snapshot("q"))
    harness.enqueue(spec(failover=Failover.VERIFIED_REPLAY))
    harness.step(AttemptStarted("j", 1))
    harness.step(OutputProgressed("j", 1, 1))

    harness.step(AttemptEnded("j", 1, 2, error=DIED), 7)
    harness.step(AttemptStarted("j", 2))
    harness.step(CancelRequested("j", reply_to=2))

    assert harness.attributes("failover")["why"] == "lost"
    lost, replay = harness.spans("decode")
    assert (lost.attributes or {})["error.type"] == "lost"
    assert (replay.attributes or {})["llamaorch.mode"] == "verified_replay"


def test_a_refused_attempt_is_a_retry_and_waits_again() -> None:
    """A pool's refusal closes the dispatch span and opens a new wait."""
    harness = Harness()
    harness.host()
    harness.enqueue(spec())

    harness.step(AttemptRefused("j", 1, "no_slot"), 3)
    harness.step(CancelRequested("j", reply_to=2), 4)

    assert harness.attributes("dispatch")["outcome"] == "refused"
    assert harness.attributes("retry")["why"] == "refused"
    assert [_length_ms(span) for span in harness.spans("queue.wait")] == [0, 4]


def test_an_accept_that_the_journal_refused_is_retracted() -> None:
    """The trace says that the job never was."""
    harness = Harness()
    harness.host()
    harness.enqueue(spec())

    harness.step(AcceptsFailed(("j",)), 3)

    assert harness.attributes("retract")["job_id"] == "j"
    assert harness.attributes("dispatch")["outcome"] == "retracted"
    assert harness.telemetry.steps.tracked == 0


def test_a_recovered_job_goes_on_in_its_trace() -> None:
    """After a restart the stored context is the parent again, though no state survived."""
    first = Harness()
    first.host()
    records = first.enqueue(spec())
    accepts = tuple(r for r in records if isinstance(r, AcceptRecord))
    dispatches = tuple(r for r in records if isinstance(r, DispatchRecord))
    second = Harness(core=Core(CoreConfig()))

    second.step(Recovered(accepts, dispatches))
    second.host(held=[HeldAttempt("j", 1, "p", "p#1", ended=False)])
    second.run()

    assert [span.name for span in second.spans()] == ["adopt", "decode"]
    assert {f"{span.context.trace_id:032x}" for span in second.spans()} == {TRACE_ID}
    assert second.attributes("adopt")["verdict"] == "adopt"
    assert second.telemetry.steps.dispatch_traceparent("j", 1) == TRACEPARENT


def test_a_drain_is_a_span_once() -> None:
    """The drain tells what it waits for."""
    harness = Harness()
    harness.host()
    harness.enqueue(spec())

    harness.step(DrainRequested())
    harness.step(Tick())

    assert harness.attributes("drain") == {"queue_depth": 0, "live_attempts": 1}


@pytest.mark.parametrize("caller", [TRACEPARENT, ""])
def test_an_outbound_decision_is_a_span(caller: str) -> None:
    """ORCH-3080: in the trace of whoever asked, with the ids that the log line has."""
    harness = Harness()
    told: dict[str, str | bool] = {"decision_id": "d", "remote_host": "h", "allowed": False}

    harness.telemetry.outbound_decided(told, "no", (("traceparent", caller),), START_MS)

    (span,) = harness.spans()
    assert harness.attributes("outbound.decide") == told
    assert (f"{span.get_span_context().trace_id:032x}" == TRACE_ID) == bool(caller)


def _length_ms(span: object) -> int:
    start_ns, end_ns = getattr(span, "start_time", 0), getattr(span, "end_time", 0)
    return (end_ns - start_ns) // 1_000_000


# ORCH-3027; a job's client chooses what is asked for.
REQUIRED = {
    *("job_id", "session_id", "engine", "engine_version", "pool_id", "replica_id"),
    *("queue_position", "predicted_start_ms", "tokens_in", "tokens_out", "decode_time_ms"),
    *("model_id", "quant", "ctx", "kv_warmth", "queue_time_ms"),
}


def test_decode_has_every_required_field_and_those_of_the_conventions() -> None:
    """ORCH-3027, on the span that tells how a job went; GenAI names beside ours."""
    harness = Harness()
    harness.host(snapshot(quantizations=("F16",), ctx_max=4096))
    needs = Needs(model_id="m", engine="mock", quantization="F16", required_ctx=512)
    harness.enqueue(spec(needs=needs, session_id="s"))
    harness.run()

    attributes = harness.attributes("decode")
    assert attributes.keys() >= REQUIRED
    assert attributes["gen_ai.provider.name"] == "mock"
    assert attributes["gen_ai.request.model"] == "m"
    assert attributes["gen_ai.conversation.id"] == "s"
    assert attributes["gen_ai.usage.output_tokens"] == attributes["tokens_out"] == 4
    assert attributes["gen_ai.response.finish_reasons"] == ["eos"]
