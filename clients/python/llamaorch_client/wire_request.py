# SPDX-License-Identifier: Apache-2.0
"""From this package's requests to the wire's messages."""

from collections.abc import Iterable

from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch_client.model import JobState
from llamaorch_client.request import Budgets, JobRequest, Requirements, Sampling


def job_spec(request: JobRequest, request_id: str) -> job_pb2.JobSpec:
    """Returns the JobSpec of `request` with the given idempotency key.

    Raises:
        ValueError: a value does not fit its field, e.g. a negative seed, or is of another type.
    """
    try:
        return _job_spec(request, request_id)
    except (ValueError, TypeError, AttributeError, json_format.ParseError) as error:
        raise ValueError(f"the job cannot be sent: {error}") from error


def job_states(states: Iterable[JobState]) -> "list[job_pb2.JobState.ValueType]":
    """Returns the wire's values of several states."""
    return [job_pb2.JobState.Value(f"JOB_STATE_{state.value}") for state in states]


def _job_spec(request: JobRequest, request_id: str) -> job_pb2.JobSpec:
    spec = job_pb2.JobSpec(
        job_id=request.job_id,
        request_id=request_id,
        session_id=request.session_id,
        priority=job_pb2.Priority.Value(f"PRIORITY_{request.priority.value}"),
        engine=request.engine,
        model_id=request.model_id,
        input=_input(request),
        sampling=_sampling(request.sampling),
        expected_tokens=request.expected_tokens,
        required_ctx=request.required_ctx,
        est_kv_bytes=request.est_kv_bytes,
        requirements=requirements(request.requirements),
        engine_version=request.engine_version,
        model_digest=request.model_digest,
        sampler_profile_version=request.sampler_profile_version,
        determinism=job_pb2.Determinism.Value(f"DETERMINISM_{request.determinism.value}"),
        budgets=_budgets(request.budgets),
        kv_hint=job_pb2.KvHint.Value(f"KV_HINT_{request.kv_hint.value}"),
        on_disconnect=job_pb2.OnDisconnect.Value(f"ON_DISCONNECT_{request.on_disconnect.value}"),
        labels=dict(request.labels),
        session_budgets=_budgets(request.session_budgets),
    )
    if request.failover is not None:
        spec.failover = job_pb2.FailoverPolicy.Value(f"FAILOVER_POLICY_{request.failover.value}")
    if request.deadline is not None:
        deadline = Timestamp()
        deadline.FromDatetime(request.deadline)
        spec.deadline.CopyFrom(deadline)
    if request.queue_timeout_ms is not None:
        timeout = Duration()
        timeout.FromMilliseconds(request.queue_timeout_ms)
        spec.queue_timeout.CopyFrom(timeout)
    return spec


def _input(request: JobRequest) -> job_pb2.JobInput:
    if request.prompt is not None:
        return job_pb2.JobInput(text=request.prompt)
    if request.artifact_id:
        return job_pb2.JobInput(artifact_id=request.artifact_id)
    messages = [
        job_pb2.ChatMessage(role=message.role, content=message.content)
        for message in request.messages
    ]
    return job_pb2.JobInput(chat=job_pb2.ChatInput(messages=messages))


def _sampling(sampling: Sampling) -> job_pb2.Sampling:
    message = job_pb2.Sampling(
        seed=sampling.seed,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        stop=sampling.stop,
        max_tokens=sampling.max_tokens,
        logprobs=sampling.logprobs,
    )
    # The two are one choice on the wire, where the later one would silently win.
    if sampling.json_schema is not None:
        message.json_schema = sampling.json_schema
    elif sampling.grammar is not None:
        message.grammar = sampling.grammar
    if sampling.engine_options:
        json_format.ParseDict(dict(sampling.engine_options), message.engine_options)
    return message


def requirements(needed: Requirements | None) -> job_pb2.Requirements | None:
    """What a pool must offer; None asks for nothing."""
    if needed is None:
        return None
    return job_pb2.Requirements(
        min_vram_bytes=needed.min_vram_bytes,
        quantization=needed.quantization,
        min_compute_cap=needed.min_compute_cap,
        required_extensions=needed.required_extensions,
        device_mask=needed.device_mask,
    )


def _budgets(budgets: Budgets | None) -> job_pb2.Budgets | None:
    if budgets is None:
        return None
    return job_pb2.Budgets(
        tokens=budgets.tokens, time_ms=budgets.time_ms, cost_micros=budgets.cost_micros
    )
