"""What of an answer is a promise, and whether a later answer still keeps it.

Rules of normalisation:

1. Sentences for people may change: `message` and `description` are left out.
2. What depends on time, chance or the machine is there, whatever its value: names that end with
   `_ms` or begin with `vram_`, instants, spans, fractions, and the names in `ANY_VALUE`.
3. Events that come by the clock (`queued`, `metrics`) are left out of streams, and neighbouring
   batches of tokens are one, from where the reader was: how output is cut is no promise.
4. A later server may say more: a new field, or one more word in a list of words, breaks nobody.
   What is recorded must still be there.
"""

import re
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from llamaorch.orchestrator.v1 import events_pb2
from tests.contract import wire_types
from tests.contract.wiretap import Call

# Needed so that details can be read by their names.
assert error_details_pb2.DESCRIPTOR

Json = Any
FOR_PEOPLE = frozenset({"message", "description", "human"})
ANY_VALUE = frozenset(
    {
        *("replica_id", "trace_id", "decision_id", "snapshot_version", "server_version"),
        *(
            "config_file",
            "settings",
            "unchanged",
            "next_page_token",
            "devices",
            "memory",
            "perf_tokens_per_s",
        ),
    }
)
BY_THE_CLOCK = frozenset({"queued", "metrics"})
_VARIES = re.compile(r"_ms$|^vram_")
_INSTANT_OR_SPAN = re.compile(r"^(\d{4}-\d\d-\d\dT[\d:.]+Z|-?\d+(\.\d+)?s)$")
STATUS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"


def readable(message: Message) -> Json:
    """A message as JSON, with what is 0 and empty."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def answer(call: Call) -> Json:
    """The normalised answer to a call."""
    messages = [wire_types.response(call.method, data) for data in call.received]
    found: dict[str, Json] = {
        "code": call.code.name if call.code is not None else "(the client left)",
        "correlation_id": call.initial.get("x-correlation-id"),
        "messages": [normalised(each) for each in _whole(call, messages)],
    }
    if isinstance(details := call.trailing.get(STATUS_KEY), bytes):
        status = readable(status_pb2.Status.FromString(details))
        found["details"] = normalised(status["details"])
    if pushback := call.trailing.get(PUSHBACK_KEY):
        found["pushback"] = "-1" if pushback == "-1" else "<any>"
    return found


def normalised(value: Json, name: str = "") -> Json:
    """A value after the rules of this module."""
    if name in ANY_VALUE or (_VARIES.search(name) and not isinstance(value, dict)):
        return "<any>"
    match value:
        case dict():
            return {key: normalised(v, key) for key, v in value.items() if key not in FOR_PEOPLE}
        case list():
            return [normalised(each) for each in value]
        case float():
            return "<any>"
        case str() if _INSTANT_OR_SPAN.match(value):
            return "<any>"
    return value


def missing(recorded: Json, now: Json, where: str = "") -> list[str]:
    """What was recorded and is not so now, one line each."""
    if recorded == "<any>":
        return []
    if isinstance(recorded, dict) and isinstance(now, dict):
        lines = [f"{where}.{key} is gone" for key in recorded if key not in now]
        for key in recorded.keys() & now.keys():
            lines += missing(recorded[key], now[key], f"{where}.{key}")
        return sorted(lines)
    if isinstance(recorded, list) and isinstance(now, list) and _words(recorded):
        return [f"{where} has no {word!r}" for word in recorded if word not in now]
    if isinstance(recorded, list) and isinstance(now, list) and len(recorded) == len(now):
        pairs = enumerate(zip(recorded, now, strict=True))
        return [line for n, (old, new) in pairs for line in missing(old, new, f"{where}[{n}]")]
    return [] if recorded == now else [f"{where} was {recorded!r} and is {now!r}"]


def _words(value: list[Json]) -> bool:
    return bool(value) and all(isinstance(each, str) for each in value)


def facts(method: str, received: list[bytes]) -> int:
    """How much of a stream has come that does not depend on how it was cut into messages."""
    if not method.endswith("/Exchange"):
        return len(received)
    messages = [wire_types.response(method, data) for data in received]
    ends = [event for each in messages for event in each.events if _ends(event.event)]
    return sum(len(each.results) for each in messages) + len(ends)


def _ends(event: events_pb2.JobEvent) -> bool:
    return event.WhichOneof("event") in {"end", "error"}


def _whole(call: Call, messages: list[Any]) -> list[Json]:
    """Streams of jobs as one message with all that was said; others as they are."""
    if call.method.endswith("/StreamTokens"):
        request: Any = wire_types.request(call.method, call.sent[0].data)
        events = [event for each in messages for event in each.events]
        return [{"events": _merged(events, request.resume_from.text_offset)}]
    if not call.method.endswith("/Exchange"):
        return [readable(each) for each in messages]
    results = [readable(result) for each in messages for result in each.results]
    jobs: dict[int, list[events_pb2.JobEvent]] = {}
    for each in messages:
        for begun in each.begun:
            jobs.setdefault(begun.handle, []).append(begun.event)
        for handle, chunk in zip(each.tokens.handles, each.tokens.chunks, strict=True):
            batch = events_pb2.TokenBatch.FromString(chunk)
            jobs.setdefault(handle, []).append(events_pb2.JobEvent(tokens=batch))
        for event in each.events:
            jobs.setdefault(event.handle, []).append(event.event)
    by_id = sorted(results, key=lambda result: int(result["correlation_id"]))
    return [{"results": by_id, "jobs": {str(key): _merged(jobs[key]) for key in sorted(jobs)}}]


def _merged(events: list[events_pb2.JobEvent], known_bytes: int = 0) -> list[Json]:
    merged: list[Json] = []
    for event in events:
        kind = event.WhichOneof("event")
        if kind == "tokens":
            # A batch may begin before the place that the reader named, who skips what is known.
            said = "".join(event.tokens.pieces).encode()
            text = said[max(0, known_bytes - event.tokens.text_offset) :].decode()
            if merged and "text" in merged[-1]:
                merged[-1]["text"] += text
            else:
                merged.append({"attempt": event.tokens.attempt, "text": text})
        elif kind not in BY_THE_CLOCK:
            merged.append(readable(event))
    return merged
