"""Every bound of a request, one field at a time. ORCH-3014, ORCH-3016."""

import math
from collections.abc import Callable

import pytest
from google.protobuf import duration_pb2, timestamp_pb2

from llamaorch.orchestrator.v1 import job_pb2
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.core.spec import JobSpec
from orchestrator_core.wire.jobs import Stale, parse_spec
from tests.unit.orchestrator_core.wire.messages import deep_struct
from tests.unit.orchestrator_core.wire.specs import CONTEXT, NOW_MS, small_spec

Edit = Callable[[job_pb2.JobSpec], object]


def _options(**values: object) -> Edit:
    return lambda spec: spec.sampling.engine_options.update(values)


def _label(key: str, value: str) -> Edit:
    return lambda spec: spec.labels.update({key: value})


def _message(role: str, content: str = "x") -> Edit:
    return lambda spec: spec.input.chat.messages.add(role=role, content=content)


def _sampling(name: str, value: object) -> Edit:
    return lambda spec: setattr(spec.sampling, name, value)


def _field(name: str, value: object) -> Edit:
    return lambda spec: setattr(spec, name, value)


BAD: list[tuple[str, str, Edit]] = [
    ("spec.model_id", "is required", _field("model_id", "")),
    ("spec.model_id", "at most 256", _field("model_id", "m" * 257)),
    ("spec.engine", "at most 256", _field("engine", "m" * 257)),
    ("spec.engine_version", "at most 256", _field("engine_version", "m" * 257)),
    ("spec.model_digest", "at most 256", _field("model_digest", "m" * 257)),
    ("spec.sampler_profile_version", "at most", _field("sampler_profile_version", "m" * 257)),
    ("spec.job_id", "A-Za-z0-9", _field("job_id", "with space")),
    ("spec.job_id", "A-Za-z0-9", _field("job_id", "line\n")),
    ("spec.job_id", "1 to 128", _field("job_id", "x" * 129)),
    ("spec.request_id", "at most 128", _field("request_id", "x" * 129)),
    ("spec.session_id", "at most 128", _field("session_id", "x" * 129)),
    ("spec.input", "set text, chat or artifact_id", lambda spec: spec.ClearField("input")),
    ("spec.input", "set text, chat or artifact_id", lambda spec: spec.input.ClearField("text")),
    ("spec.input.text", "not be empty", lambda spec: setattr(spec.input, "text", "")),
    (
        "spec.input.artifact_id",
        "no artifact of yours",
        lambda spec: setattr(spec.input, "artifact_id", "a"),
    ),
    ("spec.input.chat.messages", "at least one", lambda spec: spec.input.chat.SetInParent()),
    ("spec.input.chat.messages[0].role", "is required", _message("")),
    ("spec.input.chat.messages[0].role", "at most 64", _message("r" * 65)),
    ("spec.sampling.temperature", "at least 0, is -0.1", _sampling("temperature", -0.1)),
    ("spec.sampling.temperature", "finite", _sampling("temperature", math.nan)),
    ("spec.sampling.temperature", "finite", _sampling("temperature", math.inf)),
    ("spec.sampling.top_p", "in (0, 1], is 0", _sampling("top_p", 0.0)),
    ("spec.sampling.top_p", "in (0, 1]", _sampling("top_p", 1.01)),
    ("spec.sampling.top_p", "in (0, 1]", _sampling("top_p", math.nan)),
    ("spec.sampling.min_p", "in [0, 1]", _sampling("min_p", -0.01)),
    ("spec.sampling.min_p", "in [0, 1]", _sampling("min_p", 1.01)),
    ("spec.sampling.logprobs", "must be 0 to 20, is 21", _sampling("logprobs", 21)),
    ("spec.sampling.max_tokens", "at least 1", _sampling("max_tokens", 0)),
    ("spec.sampling.stop", "at most 16", lambda spec: spec.sampling.stop.extend(["x"] * 17)),
    ("spec.sampling.stop[1]", "1 to 256", lambda spec: spec.sampling.stop.extend(["x", ""])),
    ("spec.sampling.stop[0]", "1 to 256", lambda spec: spec.sampling.stop.append("ü" * 129)),
    ("spec.sampling.json_schema", "JSON Schema", _sampling("json_schema", "{")),
    ("spec.sampling.json_schema", "JSON Schema", _sampling("json_schema", "[]")),
    ("spec.sampling.json_schema", "JSON Schema", _sampling("json_schema", "[" * 100_000)),
    ("spec.sampling.json_schema", "1 to 262144", _sampling("json_schema", "")),
    ("spec.sampling.grammar", "1 to 262144", _sampling("grammar", "g" * 262_145)),
    ("spec.sampling.engine_options.seed", "spec.sampling.seed", _options(seed=1)),
    ("spec.sampling.engine_options.a.Seed", "spec.sampling.seed", _options(a={"Seed": 1})),
    ("spec.sampling.engine_options.a[0]", "finite", _options(a=[math.inf])),
    ("spec.sampling.engine_options", "1024 values", _options(a=[1] * 1_024)),
    (
        "spec.sampling.engine_options",
        "16 deep",
        lambda spec: spec.sampling.engine_options.CopyFrom(deep_struct(60)),
    ),
    (
        "spec.sampling.engine_options.a",
        "has no value",
        lambda spec: spec.sampling.engine_options.fields["a"].SetInParent(),
    ),
    ("spec.expected_tokens", "at least 1", _field("expected_tokens", 0)),
    ("spec.required_ctx", "at least 1", _field("required_ctx", 0)),
    (
        "spec.requirements.min_compute_cap",
        "MAJOR.MINOR",
        lambda spec: setattr(spec.requirements, "min_compute_cap", "8"),
    ),
    (
        "spec.requirements.quantization",
        "at most 256",
        lambda spec: setattr(spec.requirements, "quantization", "q" * 257),
    ),
    (
        "spec.requirements.device_mask[0]",
        "not be empty",
        lambda spec: spec.requirements.device_mask.append(""),
    ),
    (
        "spec.requirements.required_extensions",
        "at most 64",
        lambda spec: spec.requirements.required_extensions.extend(["x"] * 65),
    ),
    ("spec.labels", "at most 32", lambda spec: spec.labels.update({str(n): "" for n in range(33)})),
    ("spec.labels[]", "1 to 64", _label("", "x")),
    (f"spec.labels[{'k' * 32}]", "1 to 64", _label("k" * 65, "x")),
    ("spec.labels[a]", "256 bytes", _label("a", "x" * 257)),
    (
        "spec.deadline",
        "has passed",
        lambda spec: spec.deadline.FromMilliseconds(NOW_MS),
    ),
    (
        "spec.deadline",
        "valid instant",
        lambda spec: spec.deadline.CopyFrom(timestamp_pb2.Timestamp(seconds=2**62)),
    ),
    (
        "spec.deadline",
        "valid instant",
        lambda spec: spec.deadline.CopyFrom(
            timestamp_pb2.Timestamp(seconds=1_900_000_000, nanos=-1)
        ),
    ),
    (
        "spec.queue_timeout",
        "not negative",
        lambda spec: spec.queue_timeout.CopyFrom(duration_pb2.Duration(seconds=-1)),
    ),
    (
        "spec.queue_timeout",
        "not negative",
        lambda spec: spec.queue_timeout.CopyFrom(duration_pb2.Duration(nanos=-1)),
    ),
    ("spec.queue_timeout", "more than 0", lambda spec: spec.queue_timeout.SetInParent()),
    ("spec.budgets.tokens", "at least 1", lambda spec: setattr(spec.budgets, "tokens", 0)),
    ("spec.budgets.time_ms", "at least 1", lambda spec: setattr(spec.budgets, "time_ms", 0)),
    (
        "spec.budgets.cost_micros",
        "at least 1",
        lambda spec: setattr(spec.budgets, "cost_micros", 0),
    ),
    (
        "spec.failover",
        "cannot keep to sampling.grammar",
        lambda spec: spec.MergeFrom(
            job_pb2.JobSpec(
                failover=job_pb2.FAILOVER_POLICY_CONTINUE,
                sampling=job_pb2.Sampling(grammar="root ::= [a-z]+"),
            )
        ),
    ),
    (
        "spec.failover",
        "cannot keep to sampling.json_schema",
        lambda spec: spec.MergeFrom(
            job_pb2.JobSpec(
                failover=job_pb2.FAILOVER_POLICY_CONTINUE,
                sampling=job_pb2.Sampling(json_schema="{}"),
            )
        ),
    ),
    (
        "spec.failover",
        "as determinism REQUIRED promises",
        lambda spec: spec.MergeFrom(
            job_pb2.JobSpec(
                failover=job_pb2.FAILOVER_POLICY_CONTINUE,
                determinism=job_pb2.DETERMINISM_REQUIRED,
            )
        ),
    ),
]


@pytest.mark.parametrize(("field", "said", "edit"), BAD)
def test_a_bad_field_is_named_with_what_to_change(field: str, said: str, edit: Edit) -> None:
    """One bad field is refused by its proto path, alone."""
    spec = small_spec()
    edit(spec)

    parsed = parse_spec(spec, CONTEXT)
    refusal = parsed.refusal if isinstance(parsed, Stale) else parsed

    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.INVALID_PARAMS
    assert [violation.field for violation in refusal.violations] == [field]
    assert said in refusal.violations[0].description


GOOD: list[Edit] = [
    _field("job_id", "A.b_c:d-9"),
    _field("job_id", "x" * 128),
    _sampling("temperature", 0.0),
    _sampling("temperature", 100.0),
    _sampling("top_p", 1.0),
    _sampling("top_p", 5e-324),
    _sampling("min_p", 0.0),
    _sampling("min_p", 1.0),
    _sampling("logprobs", 0),
    _sampling("logprobs", 20),
    _sampling("max_tokens", 1),
    _sampling("top_k", 0),
    _sampling("json_schema", "true"),
    _sampling("grammar", "root ::= 'x'"),
    _options(a=None, seeds=[1], b=[{"c": {}}]),
    lambda spec: spec.sampling.stop.extend(["ü" * 128] * 16),
    lambda spec: spec.budgets.SetInParent(),
    lambda spec: spec.deadline.FromMilliseconds(NOW_MS + 1),
    lambda spec: spec.queue_timeout.CopyFrom(duration_pb2.Duration(nanos=1)),
    _message("assistant", ""),
    lambda spec: setattr(spec.requirements, "min_compute_cap", "8.10"),
    _label("k" * 64, "v" * 256),
]


@pytest.mark.parametrize("edit", GOOD)
def test_the_edges_of_what_is_allowed_are_allowed(edit: Edit) -> None:
    """Bounds belong to the allowed range."""
    spec = small_spec()
    edit(spec)

    assert isinstance(parse_spec(spec, CONTEXT), JobSpec)
