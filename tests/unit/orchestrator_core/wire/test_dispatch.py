"""Commands to hosts and what they tell back. LO-304, LO-305."""

from dataclasses import replace

import pytest

from llamaorch.orchestrator.v1 import events_pb2, job_pb2
from llamaorch.pool.v1 import dispatch_pb2
from orchestrator_core.core.effects import SendStart, SendVerdicts, Verdict
from orchestrator_core.core.events import (
    AttemptEnded,
    AttemptError,
    AttemptErrorKind,
    AttemptRefused,
    AttemptStarted,
    HeldAttempt,
)
from orchestrator_core.core.outcome import Finish, Usage
from orchestrator_core.core.spec import JobSpec, StartMode
from orchestrator_core.wire import dispatch
from orchestrator_core.wire.jobs import SpecContext, parse_spec
from tests.unit.orchestrator_core.wire.specs import NOW_MS, full_spec, small_spec

KEY = ("job-1", 2)
# Told by the orchestrator itself, never by a pool.
HERE_ONLY = {AttemptErrorKind.OUTPUT_LOST}


def send(
    message: job_pb2.JobSpec, mode: StartMode = StartMode.FRESH, remaining_ms: int | None = 500
) -> SendStart:
    """The effect that starts attempt 2 of a job."""
    context = SpecContext("me", "new", 77, NOW_MS, traceparent="00-job", correlation_id="c-1")
    spec = parse_spec(message, context)
    assert isinstance(spec, JobSpec)
    return SendStart("host", "pool", "pool@1", 2, spec, mode, remaining_ms)


def test_a_start_carries_what_the_engine_needs() -> None:
    """Input, sampling with the seed, session, deadline and trace reach the host."""
    message = dispatch.start_to_proto(send(full_spec()), 9)

    assert message == dispatch_pb2.StartAttempt(
        handle=9,
        job_id="job-1",
        attempt=2,
        pool_id="pool",
        replica_id="pool@1",
        model_id="model",
        input=full_spec().input,
        sampling=full_spec().sampling,
        session_id="session-1",
        remaining_ms=500,
        traceparent="00-job",
        correlation_id="c-1",
    )


def test_a_start_carries_the_cap_that_a_budget_left() -> None:
    """The core's max_tokens goes to the engine, not the one that was asked for. ORCH-3014."""
    start = send(small_spec())
    capped = replace(start, spec=replace(start.spec, max_tokens=7))

    assert dispatch.start_to_proto(capped, 9).sampling.max_tokens == 7
    assert not dispatch.start_to_proto(start, 9).sampling.HasField("max_tokens")


def test_a_start_always_has_a_seed() -> None:
    """The seed that the server chose is the one that the engine gets. ORCH-3045."""
    message = dispatch.start_to_proto(send(small_spec(), remaining_ms=None), 9)

    assert message.sampling.HasField("seed")
    assert message.sampling.seed == 77
    assert not message.HasField("remaining_ms")


def test_the_dispatch_span_replaces_the_jobs_own() -> None:
    """A trace goes on from the span that sent the attempt."""
    message = dispatch.start_to_proto(send(small_spec()), 9, traceparent="00-dispatch")

    assert message.traceparent == "00-dispatch"


def test_a_replay_says_up_to_where_to_verify() -> None:
    """What followers hold is generated again, compared and not sent. LO-304."""
    point = events_pb2.ResumePoint(attempt=1, text_offset=40, prefix_digest=2**64 - 1)

    replayed = dispatch.start_to_proto(send(full_spec(), StartMode.VERIFIED_REPLAY), 9, point)
    fresh = dispatch.start_to_proto(send(full_spec()), 9, point)

    assert replayed.verify_until == point
    assert not fresh.HasField("verify_until")


def test_a_continuation_follows_the_delivered_output() -> None:
    """Text, proof and counts are sent, and only what is left of max_tokens is asked for. LO-304."""
    start = send(full_spec(), StartMode.CONTINUE)
    start = replace(start, spec=replace(start.spec, max_tokens=10))
    follows = dispatch.Delivered(3, "één ", 6, 99, tokens=4, token_ids=(7, 8, 9, 1))

    message = dispatch.start_to_proto(start, 9, follows=follows)

    point = events_pb2.ResumePoint(attempt=3, text_offset=6, prefix_digest=99)
    assert message.continue_from == point
    assert (message.continue_text, message.continue_index) == ("één ", 4)
    assert (message.continue_tokens, list(message.continue_token_ids)) == (4, [7, 8, 9, 1])
    assert message.sampling.max_tokens == 6
    assert message.sampling.seed == start.spec.seed
    assert not message.HasField("verify_until")


def test_a_deadline_that_has_passed_leaves_nothing() -> None:
    """Negative time does not wrap around."""
    assert dispatch.start_to_proto(send(small_spec(), remaining_ms=-3), 9).remaining_ms == 0


def test_a_taken_up_attempt_is_started() -> None:
    """The handle stands for the attempt it is bound to."""
    message = dispatch_pb2.AttemptStarted(handle=9, kv_warmth=True)

    assert dispatch.attempt_started(message, KEY) == AttemptStarted("job-1", 2, kv_warmth=True)


@pytest.mark.parametrize(
    ("reason", "text"),
    [(dispatch_pb2.REFUSAL_REASON_NO_SLOT, "no_slot"), (0, "unknown"), (99, "unknown")],
)
def test_a_refusal_names_its_reason(reason: int, text: str) -> None:
    """A reason that is not known here is still a refusal."""
    message = dispatch_pb2.AttemptRefused(handle=9, message="m" * 2_000)
    message.reason = reason  # type: ignore[assignment]

    refused = dispatch.attempt_refused(message, KEY)

    assert refused == AttemptRefused("job-1", 2, text, "m" * 1_000)


def test_a_regular_end_is_taken_over() -> None:
    """Finish, usage, and the proof of the text; absent counts stay None."""
    message = dispatch_pb2.AttemptEnded(
        handle=9,
        finish_reason=job_pb2.FINISH_REASON_LENGTH,
        usage=dispatch_pb2.AttemptUsage(tokens_out=0, decode_time_ms=5),
        text_bytes=7,
        text_digest=2**64 - 1,
    )

    assert dispatch.attempt_ended(message, KEY, 31) == AttemptEnded(
        "job-1",
        2,
        frame_seq=31,
        finish=Finish.LENGTH,
        usage=Usage(tokens_out=0, decode_time_ms=5),
        text_bytes=7,
        text_digest=2**64 - 1,
    )


def test_an_unknown_finish_is_a_regular_end() -> None:
    """A newer host's reason does not turn a finished job into a failed one."""
    message = dispatch_pb2.AttemptEnded(handle=9)
    message.finish_reason = 99  # type: ignore[assignment]

    ended = dispatch.attempt_ended(message, KEY, 1)

    assert (ended.finish, ended.error) == (Finish.STOP, None)


@pytest.mark.parametrize("kind", sorted(set(AttemptErrorKind) - HERE_ONLY, key=lambda k: k.name))
def test_every_kind_of_failure_is_known(kind: AttemptErrorKind) -> None:
    """The wire's kinds and the core's are the same set. ORCH-3039."""
    message = dispatch_pb2.AttemptEnded(handle=9)
    message.error.kind = dispatch_pb2.AttemptErrorKind.Value(f"ATTEMPT_ERROR_KIND_{kind.name}")
    message.error.message = "why"

    ended = dispatch.attempt_ended(message, KEY, 1)

    assert (ended.finish, ended.error) == (None, AttemptError(kind, "why"))


def test_an_unknown_kind_is_an_engine_error() -> None:
    """A failure stays a failure."""
    message = dispatch_pb2.AttemptEnded(handle=9)
    message.error.kind = 99  # type: ignore[assignment]

    ended = dispatch.attempt_ended(message, KEY, 1)

    assert ended.error == AttemptError(AttemptErrorKind.ENGINE_ERROR, "")


def test_an_end_without_an_outcome_is_a_failure() -> None:
    """Output that may be missing is never called finished."""
    ended = dispatch.attempt_ended(dispatch_pb2.AttemptEnded(handle=9), KEY, 1)

    assert ended.finish is None
    assert ended.error is not None
    assert ended.error.kind is AttemptErrorKind.ENGINE_ERROR


@pytest.mark.parametrize("ended", [False, True])
def test_a_held_attempt_says_whether_it_ended(ended: bool) -> None:
    """A host lists what it holds when it registers."""
    message = dispatch_pb2.HeldAttempt(
        job_id="job-1", attempt=2, pool_id="pool", replica_id="pool@1"
    )
    if ended:
        message.ended.SetInParent()

    assert dispatch.held_attempt(message) == HeldAttempt("job-1", 2, "pool", "pool@1", ended)


def test_verdicts_keep_their_order_and_bind_what_is_adopted() -> None:
    """Each held attempt gets its answer; an adopted one a handle and where to go on."""
    verdicts = SendVerdicts(
        "host",
        1,
        (("a", 1, Verdict.RELEASE), ("b", 2, Verdict.ADOPT), ("c", 3, Verdict.ABORT)),
    )

    messages = dispatch.verdicts_to_proto(verdicts, {("b", 2): dispatch.Adoption(7, 40)})

    assert messages == [
        dispatch_pb2.AttemptVerdict(
            job_id="a", attempt=1, verdict=dispatch_pb2.HELD_VERDICT_RELEASE
        ),
        dispatch_pb2.AttemptVerdict(
            job_id="b",
            attempt=2,
            verdict=dispatch_pb2.HELD_VERDICT_ADOPT,
            handle=7,
            first_index=40,
        ),
        dispatch_pb2.AttemptVerdict(job_id="c", attempt=3, verdict=dispatch_pb2.HELD_VERDICT_ABORT),
    ]


def test_an_adoption_without_a_handle_is_misuse() -> None:
    """An adopted attempt must not go out with handle 0."""
    verdicts = SendVerdicts("host", 1, (("b", 2, Verdict.ADOPT),))

    with pytest.raises(KeyError):
        dispatch.verdicts_to_proto(verdicts, {})
