"""Requests to jobs: what is taken over, and how each bad field is named. ORCH-3014, ORCH-3016."""

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given, settings

from llamaorch.orchestrator.v1 import job_pb2
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.core.spec import Budgets, Failover, JobSpec, Needs, Priority
from orchestrator_core.wire.errors import to_status
from orchestrator_core.wire.jobs import BUDGET_MAX, SPEC_BYTES_MAX, SpecContext, Stale, parse_spec
from orchestrator_core.wire.limits import WireLimits
from tests.unit.orchestrator_core.wire.messages import messages
from tests.unit.orchestrator_core.wire.specs import CONTEXT, NOW_MS, full_spec, small_spec

Edit = Callable[[job_pb2.JobSpec], object]


def accepted(spec: job_pb2.JobSpec, context: SpecContext = CONTEXT) -> JobSpec:
    """The job of a request that must be accepted."""
    job = parse_spec(spec, context)
    assert isinstance(job, JobSpec), job
    return job


def refused(spec: job_pb2.JobSpec, context: SpecContext = CONTEXT) -> dict[str, str]:
    """The bad fields of a request that must be refused, with what is said about each."""
    parsed = parse_spec(spec, context)
    refusal = parsed.refusal if isinstance(parsed, Stale) else parsed
    assert isinstance(refusal, Refusal), refusal
    assert refusal.reason is Reason.INVALID_PARAMS
    return {violation.field: violation.description for violation in refusal.violations}


@settings(max_examples=300, deadline=None)
@given(messages(job_pb2.JobSpec))
def test_no_message_makes_it_raise(spec: job_pb2.JobSpec) -> None:
    """Whatever a client sends becomes a job or a refusal that names a field."""
    before = spec.SerializeToString(deterministic=True)

    parsed = parse_spec(spec, CONTEXT)

    assert spec.SerializeToString(deterministic=True) == before
    if not isinstance(parsed, JobSpec):
        refusal = parsed.refusal if isinstance(parsed, Stale) else parsed
        assert refusal.reason is Reason.INVALID_PARAMS
        assert refusal.violations
        assert all(violation.field.startswith("spec.") for violation in refusal.violations)
        to_status(refusal)
    else:
        assert parsed.job_id
        seed = spec.sampling.seed if spec.sampling.HasField("seed") else 77
        assert job_pb2.JobSpec.FromString(parsed.payload).sampling.seed == parsed.seed == seed


def test_every_field_is_taken_over() -> None:
    """A full request becomes a job with nothing lost."""
    job = accepted(full_spec())

    assert dataclasses.replace(job, payload=b"", digest="") == JobSpec(
        labels=(("run", "7"), ("team", "a"), ("zone", "z")),
        seed=5,
        job_id="job-1",
        needs=Needs(
            model_id="model",
            engine="llama.cpp",
            engine_version="b1",
            model_digest="sha256:aa",
            sampler_profile_version="1",
            deterministic=True,
            min_vram_bytes=12_884_901_888,
            quantization="Q4_K_M",
            min_compute_cap=(8, 6),
            required_extensions=("grammar", "json_schema"),
            device_mask=("GPU-a", "GPU-b"),
            required_ctx=4096,
        ),
        priority=Priority.BATCH,
        identity="somebody",
        request_id="request-1",
        session_id="session-1",
        prompt_bytes=len("Be brief.Grüße".encode()),
        max_tokens=64,
        expected_tokens=32,
        est_kv_bytes=1_048_576,
        deadline_ms=1_893_456_000_500,
        queue_timeout_ms=12_001,
        kv_reuse=True,
        failover=Failover.VERIFIED_REPLAY,
        cancel_on_disconnect=True,
    )
    assert job_pb2.JobSpec.FromString(job.payload) == full_spec()


def test_what_is_unset_gets_the_documented_default() -> None:
    """The shortest request is interactive, best effort, and told its id and seed."""
    job = accepted(
        small_spec(),
        SpecContext("me", "new-job", 77, NOW_MS, traceparent="00-t", correlation_id="c"),
    )

    assert dataclasses.replace(job, payload=b"", digest="") == JobSpec(
        seed=77,
        job_id="new-job",
        needs=Needs("model"),
        identity="me",
        traceparent="00-t",
        correlation_id="c",
        prompt_bytes=5,
    )
    filled = small_spec()
    filled.job_id = "new-job"
    filled.sampling.seed = 77
    assert job_pb2.JobSpec.FromString(job.payload) == filled


def test_a_seed_of_zero_is_a_choice() -> None:
    """Zero differs from unset."""
    spec = small_spec()
    spec.sampling.seed = 0

    assert job_pb2.JobSpec.FromString(accepted(spec).payload).sampling.seed == 0


def test_labels_are_kept_beside_the_payload() -> None:
    """They outlive the prompt, and equal ones are equal in whatever order they came."""
    assert accepted(full_spec()).labels == (("run", "7"), ("team", "a"), ("zone", "z"))


def test_unknown_enum_values_count_as_unspecified() -> None:
    """A newer client's values are tolerated."""
    spec = small_spec()
    for name in ("priority", "determinism", "kv_hint", "failover", "on_disconnect"):
        setattr(spec, name, 99)

    job = accepted(spec)

    plain = accepted(small_spec())
    assert dataclasses.replace(job, payload=b"", digest="") == dataclasses.replace(
        plain, payload=b"", digest=""
    )


def _temperature(value: float) -> Edit:
    return lambda spec: setattr(spec.sampling, "temperature", value)


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([], Failover.FAIL),
        ([_temperature(0.0)], Failover.VERIFIED_REPLAY),
        ([_temperature(0.1)], Failover.FAIL),
        (
            [lambda spec: setattr(spec, "determinism", job_pb2.DETERMINISM_REQUIRED)],
            Failover.VERIFIED_REPLAY,
        ),
        (
            [
                _temperature(0.0),
                lambda spec: setattr(spec, "failover", job_pb2.FAILOVER_POLICY_FAIL),
            ],
            Failover.FAIL,
        ),
        (
            [lambda spec: setattr(spec, "failover", job_pb2.FAILOVER_POLICY_VERIFIED_REPLAY)],
            Failover.VERIFIED_REPLAY,
        ),
    ],
)
def test_failover_defaults_to_replay_where_output_can_be_reproduced(
    edits: list[Edit], expected: Failover
) -> None:
    """Greedy and deterministic jobs replay, others fail, and the client's word counts. LO-304."""
    spec = small_spec()
    for edit in edits:
        edit(spec)

    assert accepted(spec).failover is expected


def test_a_short_timeout_does_not_become_none() -> None:
    """A timeout below a millisecond rounds up."""
    spec = small_spec()
    spec.queue_timeout.nanos = 1

    assert accepted(spec).queue_timeout_ms == 1


def test_budgets_reach_the_core() -> None:
    """Each alone; what is left out is unbounded. ORCH-3014."""
    for name in ("tokens", "time_ms", "cost_micros"):
        spec = small_spec()
        setattr(spec.budgets, name, 5)
        spec.session_id = "s"
        setattr(spec.session_budgets, name, 6)

        assert accepted(spec).budgets == Budgets(**{name: 5})
        assert accepted(spec).session_budgets == Budgets(**{name: 6})

    assert accepted(small_spec()).budgets == Budgets()


@pytest.mark.parametrize("name", ["tokens", "time_ms", "cost_micros"])
def test_budgets_are_so_small_that_sums_of_them_can_be_told(name: str) -> None:
    """Of two jobs with 2^64 - 1 each, GetSession could not say what is set aside."""
    most, too_much = small_spec(), small_spec()
    for spec, amount in ((most, BUDGET_MAX), (too_much, BUDGET_MAX + 1)):
        spec.session_id = "s"
        setattr(spec.budgets, name, amount)
        setattr(spec.session_budgets, name, amount)

    assert accepted(most).budgets == Budgets(**{name: BUDGET_MAX})
    assert list(refused(too_much)) == [f"spec.budgets.{name}", f"spec.session_budgets.{name}"]
    assert BUDGET_MAX * 10_000 < 2**64


def test_every_bad_field_is_named_at_once() -> None:
    """A client can mend everything after one answer."""
    spec = job_pb2.JobSpec(job_id="no way")
    spec.sampling.top_p = 2
    spec.sampling.max_tokens = 0
    spec.budgets.tokens = 0

    assert list(refused(spec)) == [
        "spec.job_id",
        "spec.model_id",
        "spec.input",
        "spec.sampling.top_p",
        "spec.sampling.max_tokens",
        "spec.budgets.tokens",
    ]


def test_the_message_counts_the_further_bad_fields() -> None:
    """The sentence for people names the first field and how many follow."""
    refusal = parse_spec(job_pb2.JobSpec(), CONTEXT)

    assert isinstance(refusal, Refusal)
    assert refusal.message == "spec.model_id is required: name the model to run (and 1 more)"


def test_a_flood_of_bad_fields_is_bounded() -> None:
    """Thousands of bad entries give a bounded refusal with the true count."""
    spec = small_spec()
    for _ in range(4_000):
        spec.input.chat.messages.add(content="x")

    refusal = parse_spec(spec, CONTEXT)

    assert isinstance(refusal, Refusal)
    assert len(refusal.violations) == 64
    assert refusal.metadata["violations_total"] == "4000"


@pytest.mark.parametrize("form", ["text", "chat"])
def test_an_input_above_the_limit_is_refused(form: str) -> None:
    """The limit counts UTF-8 bytes of text, over all messages. ORCH-3014."""
    context = dataclasses.replace(CONTEXT, limits=WireLimits(input_bytes_max=10))
    fits, too_long = small_spec(), small_spec()
    if form == "text":
        fits.input.text, too_long.input.text = "ü" * 5, "ü" * 5 + "x"
    else:
        for spec in (fits, too_long):
            spec.input.chat.messages.add(role="user", content="ü" * 4)
        fits.input.chat.messages.add(role="user", content="xx")
        too_long.input.chat.messages.add(role="user", content="xxx")

    assert accepted(fits, context).prompt_bytes == 10
    assert refused(too_long, context) == {
        "spec.input": "has 11 bytes of text, at most 10 are allowed"
    }


def test_what_time_alone_made_bad_may_still_be_a_repetition() -> None:
    """It has the digest of when it was good; with another bad field it never was. ORCH-3024."""
    spec = small_spec()
    spec.input.artifact_id = "gone"
    spec.deadline.FromMilliseconds(NOW_MS + 1)
    there = dataclasses.replace(CONTEXT, inputs=lambda _: 5)
    first = accepted(spec, there)

    again = parse_spec(spec, dataclasses.replace(CONTEXT, now_ms=NOW_MS + 1))
    spec.budgets.tokens = 0
    never = parse_spec(spec, CONTEXT)

    assert isinstance(again, Stale)
    assert again.spec.digest == first.digest
    fields = [violation.field for violation in again.refusal.violations]
    assert fields == ["spec.input.artifact_id", "spec.deadline"]
    assert isinstance(never, Refusal)
    assert {"spec.input.artifact_id", "spec.budgets.tokens"} == set(refused(spec))


@pytest.mark.parametrize("ahead_ms", [-60_000, 0, 60_000])
def test_a_deadline_means_what_its_client_meant_where_the_clocks_are_apart(ahead_ms: int) -> None:
    """OC-CORE-1022: what is left of the time counts, by the clock that clients have too."""
    spec = small_spec()
    context = dataclasses.replace(CONTEXT, now_ms=NOW_MS + ahead_ms, ahead_ms=ahead_ms)
    spec.deadline.FromMilliseconds(NOW_MS + 5)

    in_time = accepted(spec, context)
    spec.deadline.FromMilliseconds(NOW_MS)

    assert in_time.deadline_ms == context.now_ms + 5
    assert isinstance(parse_spec(spec, context), Stale)


def test_what_could_not_be_sent_to_a_host_is_refused() -> None:
    """The command that starts a job is a message too, whatever it is that makes the job long."""
    fits, too_long = small_spec(), small_spec()
    for spec in (fits, too_long):
        spec.sampling.engine_options["note"] = ""
    room = SPEC_BYTES_MAX - len(accepted(fits).payload)
    # Lengths of the messages around a long text take some bytes more than around an empty one.
    fits.sampling.engine_options["note"] = "y" * (room - 64)
    too_long.sampling.engine_options["note"] = "y" * (room + 1)

    accepted(fits)

    assert list(refused(too_long)) == ["spec.input"]
    assert "put it as an artifact" in refused(too_long)["spec.input"]


def test_equal_needs_are_equal_however_they_are_listed() -> None:
    """The order and repetition of required things do not open another lane."""
    first, second = small_spec(), small_spec()
    first.requirements.device_mask.extend(["b", "a"])
    second.requirements.device_mask.extend(["a", "b", "a"])

    assert accepted(first).needs == accepted(second).needs


def test_a_limit_must_be_positive() -> None:
    """Nothing is unbounded, and nothing is impossible."""
    with pytest.raises(ValueError, match="labels_max must be positive"):
        WireLimits(labels_max=0)
