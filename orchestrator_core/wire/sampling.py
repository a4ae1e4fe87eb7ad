"""Checks of the parameters of generation: every bad field with its proto path."""

import json
import math

from google.protobuf import struct_pb2

from llamaorch.orchestrator.v1 import job_pb2
from orchestrator_core.wire.violations import Violations

_PATH = "spec.sampling"

STOP_MAX = 16
STOP_BYTES_MAX = 256
LOGPROBS_MAX = 20
CONSTRAINT_BYTES_MAX = 262_144
OPTIONS_VALUES_MAX = 1_024
OPTIONS_DEPTH_MAX = 16


def check_sampling(sampling: job_pb2.Sampling, bad: Violations) -> None:
    """Adds what is wrong with the sampling of a job. O(size of the engine options)."""
    if sampling.HasField("temperature"):
        bad.within(f"{_PATH}.temperature", sampling.temperature, 0.0, math.inf, open_low=False)
    if sampling.HasField("top_p"):
        bad.within(f"{_PATH}.top_p", sampling.top_p, 0.0, 1.0, open_low=True)
    if sampling.HasField("min_p"):
        bad.within(f"{_PATH}.min_p", sampling.min_p, 0.0, 1.0, open_low=False)
    if sampling.HasField("max_tokens"):
        bad.positive(f"{_PATH}.max_tokens", sampling.max_tokens)
    if sampling.logprobs > LOGPROBS_MAX:
        bad.add(f"{_PATH}.logprobs", f"must be 0 to {LOGPROBS_MAX}, is {sampling.logprobs}")
    _check_stop(sampling, bad)
    _check_constraint(sampling, bad)
    if sampling.HasField("engine_options"):
        _check_options(sampling.engine_options, bad)


def _check_stop(sampling: job_pb2.Sampling, bad: Violations) -> None:
    if not bad.count(f"{_PATH}.stop", len(sampling.stop), STOP_MAX):
        return
    for index, text in enumerate(sampling.stop):
        size = len(text.encode())
        if not 1 <= size <= STOP_BYTES_MAX:
            bad.add(
                f"{_PATH}.stop[{index}]",
                f"must have 1 to {STOP_BYTES_MAX} bytes of UTF-8, has {size}",
            )


def _check_constraint(sampling: job_pb2.Sampling, bad: Violations) -> None:
    kind = sampling.WhichOneof("constraint")
    if kind is None:
        return
    text = sampling.json_schema if kind == "json_schema" else sampling.grammar
    size = len(text.encode())
    if not 1 <= size <= CONSTRAINT_BYTES_MAX:
        bad.add(
            f"{_PATH}.{kind}", f"must have 1 to {CONSTRAINT_BYTES_MAX} bytes of UTF-8, has {size}"
        )
    elif kind == "json_schema" and not _is_schema(text):
        bad.add(f"{_PATH}.json_schema", "must be a JSON Schema: a JSON object, true or false")


def _is_schema(text: str) -> bool:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(schema, dict | bool)


def _check_options(options: struct_pb2.Struct, bad: Violations) -> None:
    """Looks at every value of the engine options, without recursion: clients choose the depth."""
    pending = [
        (f"{_PATH}.engine_options.{key}", key, value, 1) for key, value in options.fields.items()
    ]
    seen = 0
    while pending:
        path, key, value, depth = pending.pop()
        seen += 1
        if seen + len(pending) > OPTIONS_VALUES_MAX or depth > OPTIONS_DEPTH_MAX:
            bad.add(
                f"{_PATH}.engine_options",
                f"may hold {OPTIONS_VALUES_MAX} values, nested {OPTIONS_DEPTH_MAX} deep at most",
            )
            return
        if key.lower() == "seed":
            bad.add(path, "numbers are doubles here: set spec.sampling.seed instead")
        pending.extend(_children(path, value, depth + 1))
        _check_option(path, value, bad)


def _check_option(path: str, value: struct_pb2.Value, bad: Violations) -> None:
    kind = value.WhichOneof("kind")
    if kind is None:
        bad.add(path, "has no value: set it, or null_value for null")
    elif kind == "number_value" and not math.isfinite(value.number_value):
        bad.add(path, "must be a finite number")


def _children(
    path: str, value: struct_pb2.Value, depth: int
) -> list[tuple[str, str, struct_pb2.Value, int]]:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        fields = value.struct_value.fields
        return [(f"{path}.{key}", key, entry, depth) for key, entry in fields.items()]
    if kind == "list_value":
        entries = value.list_value.values
        return [(f"{path}[{i}]", "", entry, depth) for i, entry in enumerate(entries)]
    return []
