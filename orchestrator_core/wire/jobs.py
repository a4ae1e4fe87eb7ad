"""JobSpec of the wire to JobSpec of the core: everything is checked, every bad field is named.

What cannot be honoured yet is refused, never ignored. ORCH-3014, ORCH-3016, ORCH-3024.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

from google.protobuf import duration_pb2, timestamp_pb2

from llamaorch.orchestrator.v1 import job_pb2
from orchestrator_core.core.outcome import Refusal
from orchestrator_core.core.plain_init import plain_init
from orchestrator_core.core.spec import NO_BUDGETS, Budgets, Failover, JobSpec, Needs
from orchestrator_core.wire.digest import spec_digest
from orchestrator_core.wire.enums import priority_from_wire
from orchestrator_core.wire.limits import (
    DEFAULT_LIMITS,
    WireLimits,
    check_labels,
    check_requirements,
    compute_cap,
)
from orchestrator_core.wire.sampling import check_sampling
from orchestrator_core.wire.violations import Violations, refusal_of

_JOB_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

_BUDGETS: tuple[Literal["tokens", "time_ms", "cost_micros"], ...] = (
    "tokens",
    "time_ms",
    "cost_micros",
)

# What all jobs of a session set aside together, 10,000 of them at most, has to fit into 64 bits.
BUDGET_MAX = 1 << 50
# 9999-12-31T23:59:59Z. Source: google/protobuf/timestamp.proto.
_TIMESTAMP_SECONDS_MAX = 253_402_300_799
# Source: google/protobuf/duration.proto.
_DURATION_SECONDS_MAX = 315_576_000_000
# Kinds of needs of which equal ones are one object; a hostile one has 32 KiB.
NEEDS_KEPT = 256
# The command that starts a job holds what it was given, and has to fit into a message of 4 MiB too,
# with names and a trace beside it.
SPEC_BYTES_MAX = (4 << 20) - (64 << 10)
_Names: TypeAlias = tuple[str, ...]
_NeedsFields: TypeAlias = tuple[
    *tuple[str, str, str, str, str, bool, int | None, str],
    *tuple[tuple[int, int] | None, _Names, _Names, int | None],
]
_NANOS_PER_SECOND = 1_000_000_000
_NANOS_PER_MS = 1_000_000


def _no_inputs(_: str) -> int | None:
    return None


@plain_init
@dataclass(frozen=True, slots=True)
class SpecContext:
    """What a request cannot say itself: who asks, fresh ids, and the instant of the core's clock.

    `new_job_id` and `new_seed` are used where the client chose none. `traceparent` and
    `correlation_id` are those of the call. `inputs` gives the bytes of text in an artifact that is
    the client's own and an input; None for any other id. `ahead_ms` is how far the core's clock is
    ahead of that by which clients name instants.
    """

    identity: str
    new_job_id: str
    new_seed: int
    now_ms: int
    traceparent: str = ""
    correlation_id: str = ""
    limits: WireLimits = DEFAULT_LIMITS
    inputs: Callable[[str], int | None] = _no_inputs
    ahead_ms: int = 0


@plain_init
@dataclass(frozen=True, slots=True)
class Stale:
    """A request that comes too late to become a job, but may repeat one that was in time.

    Its input was deleted meanwhile or is longer than allowed by now, or its deadline has passed.
    `refusal` is for one that is new.
    """

    spec: JobSpec
    refusal: Refusal


def parse_spec(spec: job_pb2.JobSpec, context: SpecContext) -> JobSpec | Stale | Refusal:
    """Checks a request and returns the job, or INVALID_PARAMS with every bad field.

    Never raises and never changes `spec`. O(size of the message).
    """
    bad = Violations()
    _check_names(spec, context.limits, bad)
    prompt_bytes = _check_input(spec, context, bad)
    check_sampling(spec.sampling, bad)
    _check_numbers(spec, bad)
    if spec.HasField("budgets"):
        _check_budgets("spec.budgets", spec.budgets, bad)
    if spec.HasField("session_budgets"):
        _check_budgets("spec.session_budgets", spec.session_budgets, bad)
        if not spec.session_id:
            bad.add("spec.session_budgets", "needs a session: set session_id, or use budgets")
    if spec.HasField("requirements"):
        check_requirements("spec.requirements", spec.requirements, context.limits, bad)
    if spec.labels:
        check_labels("spec.labels", spec.labels, context.limits, bad)
    _check_times(spec, context.now_ms - context.ahead_ms, bad)
    _check_failover(spec, bad)
    if bad.total > bad.stale:
        return refusal_of(bad)
    job = _job(spec, context, prompt_bytes)
    if len(job.payload) > SPEC_BYTES_MAX:
        what = f"takes {len(job.payload)} bytes with the rest of the job, at most {SPEC_BYTES_MAX}"
        bad.add("spec.input", f"{what} are allowed: put it as an artifact, or shorten sampling")
        return refusal_of(bad)
    return Stale(job, refusal_of(bad)) if bad.stale else job


def _check_names(spec: job_pb2.JobSpec, limits: WireLimits, bad: Violations) -> None:
    bad.pattern("spec.job_id", spec.job_id, _JOB_ID, "1 to 128 characters of [A-Za-z0-9._:-]")
    bad.length("spec.request_id", spec.request_id, limits.id_chars_max)
    bad.length("spec.session_id", spec.session_id, limits.id_chars_max)
    if not spec.model_id:
        bad.add("spec.model_id", "is required: name the model to run")
    bad.length("spec.model_id", spec.model_id, limits.name_chars_max)
    bad.length("spec.engine", spec.engine, limits.name_chars_max)
    bad.length("spec.engine_version", spec.engine_version, limits.name_chars_max)
    bad.length("spec.model_digest", spec.model_digest, limits.name_chars_max)
    bad.length("spec.sampler_profile_version", spec.sampler_profile_version, limits.name_chars_max)


def _check_input(spec: job_pb2.JobSpec, context: SpecContext, bad: Violations) -> int:
    """Checks the input and returns the bytes of its text."""
    limits = context.limits
    match spec.input.WhichOneof("input"):
        case "text":
            size = len(spec.input.text.encode())
            if not size:
                bad.add("spec.input.text", "must not be empty")
        case "chat":
            size = _check_chat(spec.input.chat, limits, bad)
        case "artifact_id":
            stored = context.inputs(spec.input.artifact_id)
            if stored is None:
                bad.add_stale(
                    "spec.input.artifact_id",
                    "names no artifact of yours that is an input: put one of kind INPUT",
                )
            # Its size was checked when it was put.
            return stored or 0
        case _:
            bad.add("spec.input", "is required: set text, chat or artifact_id")
            return 0
    if size > limits.input_bytes_max:
        bad.add_stale(
            "spec.input", f"has {size} bytes of text, at most {limits.input_bytes_max} are allowed"
        )
    return size


def _check_chat(chat: job_pb2.ChatInput, limits: WireLimits, bad: Violations) -> int:
    path = "spec.input.chat.messages"
    if not chat.messages:
        bad.add(path, "must hold at least one message")
    if not bad.count(path, len(chat.messages), limits.messages_max):
        return 0
    size = 0
    for index, message in enumerate(chat.messages):
        if not message.role:
            bad.add(f"{path}[{index}].role", "is required: system, user, assistant or tool")
        bad.length(f"{path}[{index}].role", message.role, limits.role_chars_max)
        size += len(message.content.encode())
    return size


def _check_numbers(spec: job_pb2.JobSpec, bad: Violations) -> None:
    if spec.HasField("expected_tokens"):
        bad.positive("spec.expected_tokens", spec.expected_tokens)
    if spec.HasField("required_ctx"):
        bad.positive("spec.required_ctx", spec.required_ctx)


def _check_budgets(path: str, budgets: job_pb2.Budgets, bad: Violations) -> None:
    for name in _BUDGETS:
        if budgets.HasField(name):
            bad.positive(f"{path}.{name}", getattr(budgets, name))
        if getattr(budgets, name) > BUDGET_MAX:
            bad.add(f"{path}.{name}", f"must be at most {BUDGET_MAX}; leave it out for no limit")


def _check_times(spec: job_pb2.JobSpec, now_ms: int, bad: Violations) -> None:
    if spec.HasField("deadline"):
        deadline = spec.deadline
        if not (
            0 <= deadline.seconds <= _TIMESTAMP_SECONDS_MAX
            and 0 <= deadline.nanos < _NANOS_PER_SECOND
        ):
            bad.add("spec.deadline", "must be a valid instant after 1970")
        elif _timestamp_ms(deadline) <= now_ms:
            bad.add_stale("spec.deadline", "has passed: choose an instant in the future")
    if spec.HasField("queue_timeout"):
        timeout = spec.queue_timeout
        if not (
            0 <= timeout.seconds <= _DURATION_SECONDS_MAX and 0 <= timeout.nanos < _NANOS_PER_SECOND
        ):
            bad.add("spec.queue_timeout", "must be a valid duration and not negative")
        elif timeout.seconds == timeout.nanos == 0:
            bad.add("spec.queue_timeout", "must be more than 0; leave it out for the default")


def _check_failover(spec: job_pb2.JobSpec, bad: Violations) -> None:
    """A continuation is prompt and text for a new generation, which knows of no state. LO-304."""
    if spec.failover != job_pb2.FAILOVER_POLICY_CONTINUE:
        return
    instead = "choose VERIFIED_REPLAY or FAIL, or leave it out"
    constraint = spec.sampling.WhichOneof("constraint")
    if constraint is not None:
        bad.add(
            "spec.failover", f"CONTINUE cannot keep to sampling.{constraint} half-way: {instead}"
        )
    if spec.determinism == job_pb2.DETERMINISM_REQUIRED:
        bad.add(
            "spec.failover",
            f"CONTINUE does not reproduce the output, as determinism REQUIRED promises: {instead}",
        )


def _job(spec: job_pb2.JobSpec, context: SpecContext, prompt_bytes: int) -> JobSpec:
    job_id = spec.job_id or context.new_job_id
    sampling = spec.sampling
    seed = sampling.seed if sampling.HasField("seed") else context.new_seed
    return JobSpec(
        job_id=job_id,
        needs=_needs(spec),
        priority=priority_from_wire(spec.priority),
        identity=context.identity,
        request_id=spec.request_id,
        session_id=spec.session_id,
        digest=spec_digest(spec),
        payload=_payload(spec, job_id, seed),
        labels=tuple(sorted(spec.labels.items())) if spec.labels else (),
        seed=seed,
        traceparent=context.traceparent,
        correlation_id=context.correlation_id,
        prompt_bytes=prompt_bytes,
        max_tokens=sampling.max_tokens if sampling.HasField("max_tokens") else None,
        expected_tokens=spec.expected_tokens if spec.HasField("expected_tokens") else None,
        est_kv_bytes=spec.est_kv_bytes if spec.HasField("est_kv_bytes") else None,
        deadline_ms=(
            _timestamp_ms(spec.deadline) + context.ahead_ms if spec.HasField("deadline") else None
        ),
        queue_timeout_ms=(
            _duration_ms(spec.queue_timeout) if spec.HasField("queue_timeout") else None
        ),
        kv_reuse=spec.kv_hint == job_pb2.KV_HINT_REUSE,
        failover=_failover(spec),
        cancel_on_disconnect=spec.on_disconnect == job_pb2.ON_DISCONNECT_CANCEL,
        budgets=_budgets(spec.budgets) if spec.HasField("budgets") else NO_BUDGETS,
        session_budgets=(
            _budgets(spec.session_budgets) if spec.HasField("session_budgets") else NO_BUDGETS
        ),
        input_artifact=spec.input.artifact_id,
    )


def _needs(spec: job_pb2.JobSpec) -> Needs:
    asked = spec.requirements
    return _same_needs(
        (
            spec.model_id,
            spec.engine,
            spec.engine_version,
            spec.model_digest,
            spec.sampler_profile_version,
            spec.determinism == job_pb2.DETERMINISM_REQUIRED,
            asked.min_vram_bytes if asked.HasField("min_vram_bytes") else None,
            asked.quantization,
            compute_cap(asked.min_compute_cap),
            # Equal needs share a lane, whatever the order in which a client lists them.
            tuple(sorted(set(asked.required_extensions))),
            tuple(sorted(set(asked.device_mask))),
            spec.required_ctx if spec.HasField("required_ctx") else None,
        )
    )


@lru_cache(NEEDS_KEPT)
def _same_needs(fields: _NeedsFields) -> Needs:
    """One object for equal needs: hashed once, found by identity, held in memory once."""
    return Needs(*fields)


def _budgets(given: job_pb2.Budgets) -> Budgets:
    return Budgets(**{name: getattr(given, name) for name in _BUDGETS if given.HasField(name)})


def _failover(spec: job_pb2.JobSpec) -> Failover:
    """Unset or unknown: replay where the output can be reproduced, else fail. LO-304."""
    if spec.failover == job_pb2.FAILOVER_POLICY_FAIL:
        return Failover.FAIL
    if spec.failover == job_pb2.FAILOVER_POLICY_VERIFIED_REPLAY:
        return Failover.VERIFIED_REPLAY
    if spec.failover == job_pb2.FAILOVER_POLICY_CONTINUE:
        return Failover.CONTINUE
    greedy = spec.sampling.HasField("temperature") and spec.sampling.temperature == 0
    if greedy or spec.determinism == job_pb2.DETERMINISM_REQUIRED:
        return Failover.VERIFIED_REPLAY
    return Failover.FAIL


def _payload(spec: job_pb2.JobSpec, job_id: str, seed: int) -> bytes:
    filled = job_pb2.JobSpec()
    filled.CopyFrom(spec)
    filled.job_id = job_id
    filled.sampling.seed = seed
    return filled.SerializeToString(deterministic=True)


def _timestamp_ms(instant: timestamp_pb2.Timestamp) -> int:
    return instant.seconds * 1000 + instant.nanos // _NANOS_PER_MS


def _duration_ms(span: duration_pb2.Duration) -> int:
    """Rounds up, so that a span above 0 stays above 0."""
    return span.seconds * 1000 + -(-span.nanos // _NANOS_PER_MS)
