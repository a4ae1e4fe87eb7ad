"""Events as followers receive them. ORCH-2002, ORCH-3029, ORCH-3100, ORCH-3009, ORCH-3023."""

import hashlib

import pytest

from llamaorch.orchestrator.v1 import events_pb2, job_pb2
from orchestrator_core.core.effects import JobEnded, JobStarted
from orchestrator_core.core.job import Job
from orchestrator_core.core.outcome import Finish, Outcome, Reason, Refusal, Usage
from orchestrator_core.core.spec import Budgets, JobSpec, StartMode
from orchestrator_core.core.states import JobState
from orchestrator_core.wire import events
from orchestrator_core.wire.errors import to_status
from orchestrator_core.wire.jobs import parse_spec
from tests.unit.orchestrator_core.wire.specs import CONTEXT, full_spec

WHERE = events.Where("pool", "replica", "llama.cpp", "b1")


def job() -> Job:
    """A job that was accepted at 100 and started at 350."""
    spec = parse_spec(full_spec(), CONTEXT)
    assert isinstance(spec, JobSpec)
    return Job(spec, 1, 100, position_at_admission=3, predicted_start_ms=200, started_ms=350)


def test_queued_tells_the_place_and_what_is_known_of_the_start() -> None:
    """An absent prediction stays absent."""
    event = events.queued(2, 0, None)

    assert event.queued.queue_position == 2
    assert event.queued.HasField("predicted_start_ms")
    assert not event.queued.HasField("predicted_end_ms")


def test_a_fresh_attempt_is_started() -> None:
    """Started carries position, prediction, place and seed. ORCH-3029."""
    effect = JobStarted("job-1", 1, StartMode.FRESH, kv_warmth=True)

    event = events.started_or_resumed(job(), effect, WHERE, 0)

    assert event == events_pb2.JobEvent(
        started=events_pb2.Started(
            queue_position=3,
            predicted_start_ms=200,
            queue_time_ms=250,
            pool_id="pool",
            replica_id="replica",
            attempt=1,
            kv_warmth=True,
            seed=5,
            engine="llama.cpp",
            engine_version="b1",
        )
    )


def test_a_replayed_attempt_is_resumed() -> None:
    """A verified replay is announced with the output that stands. LO-304, ORCH-3009."""
    effect = JobStarted("job-1", 2, StartMode.VERIFIED_REPLAY, kv_warmth=False)

    event = events.started_or_resumed(job(), effect, WHERE, 40)

    assert event == events_pb2.JobEvent(
        resumed=events_pb2.Resumed(
            attempt=2,
            mode=events_pb2.RESUME_MODE_VERIFIED_REPLAY,
            text_offset=40,
            kv_warmth=False,
            pool_id="pool",
            replica_id="replica",
        )
    )


def test_metrics_tell_depth_and_probability() -> None:
    """Keys and values never migrate. ORCH-3100, ORCH-3023."""
    event = events.metrics(7, 0.5, None, kv_warmth=True).metrics

    assert (event.queue_depth, event.on_time_probability, event.kv_warmth) == (7, 0.5, True)
    assert not event.kv_migrated
    assert not events.metrics(7, None, None, kv_warmth=True).metrics.HasField("on_time_probability")


def test_metrics_tell_what_is_left_of_the_budgets() -> None:
    """What is unbounded is absent, and nothing left is 0. ORCH-3100, HME-021, ORCH-3099."""
    event = events.metrics(0, None, Budgets(tokens=0, cost_micros=5), kv_warmth=False).metrics

    assert (event.remaining.tokens, event.remaining.cost_micros) == (0, 5)
    assert event.remaining.HasField("tokens")
    assert not event.remaining.HasField("time_ms")
    assert not events.metrics(0, None, None, kv_warmth=False).metrics.HasField("remaining")


def test_a_finished_job_ends_with_its_usage_and_the_proof_of_its_text() -> None:
    """End says why, what it took, how much text, and the digest of it."""
    outcome = Outcome(Finish.LENGTH, None, 12, 2**64 - 1)
    usage = Usage(3, 4, 5, 6, 7)

    event = events.ended(JobEnded("job-1", JobState.FINISHED, outcome, usage))

    assert event == events_pb2.JobEvent(
        end=events_pb2.End(
            state=job_pb2.JOB_STATE_FINISHED,
            finish_reason=job_pb2.FINISH_REASON_LENGTH,
            usage=job_pb2.Usage(
                tokens_in=3, tokens_out=4, queue_time_ms=5, first_token_ms=6, decode_time_ms=7
            ),
            text_bytes=12,
            text_digest=2**64 - 1,
        )
    )


def test_a_job_cancelled_in_the_queue_ends_with_no_text() -> None:
    """Its digest is that of no text, so that a follower's check holds."""
    effect = JobEnded("job-1", JobState.CANCELLED, Outcome(), Usage())

    end = events.ended(effect).end

    assert end.state == job_pb2.JOB_STATE_CANCELLED
    assert end.finish_reason == job_pb2.FINISH_REASON_CANCELLED
    assert end.text_bytes == 0
    assert end.text_digest == int.from_bytes(hashlib.sha256(b"").digest()[:8], "big")
    assert not end.usage.HasField("tokens_out")


def test_what_was_delivered_counts_where_the_outcome_does_not_say() -> None:
    """A job cancelled while running ends where its followers are."""
    effect = JobEnded("job-1", JobState.CANCELLED, Outcome(Finish.CANCELLED), Usage())

    end = events.ended(effect, events.Output(9, 99)).end

    assert (end.text_bytes, end.text_digest) == (9, 99)


@pytest.mark.parametrize("state", [JobState.EXPIRED, JobState.DROPPED, JobState.FAILED])
def test_every_other_outcome_is_an_error(state: JobState) -> None:
    """Dropped, expired and failed jobs end with the status of their refusal."""
    refusal = Refusal(Reason.DEADLINE, "too late")

    event = events.ended(JobEnded("job-1", state, Outcome(error=refusal), Usage()))

    assert event == events_pb2.JobEvent(error=to_status(refusal))
    assert event == events.error(refusal)


def test_a_failure_without_an_error_is_our_bug() -> None:
    """Followers still get exactly one outcome."""
    event = events.ended(JobEnded("job-1", JobState.FAILED, Outcome(), Usage()))

    assert event.error == to_status(Refusal(Reason.INTERNAL, ""))
