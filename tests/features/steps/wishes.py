"""Jobs as a table of a scenario describes them."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from llamaorch_client import (
    Budgets,
    Determinism,
    FailoverPolicy,
    JobRequest,
    KvHint,
    OnDisconnect,
    Priority,
    Requirements,
    Sampling,
)
from tests.features.gherkin import Rows
from tests.features.service import MODEL

# The mock engine's word between two words, which is how a scenario holds it: see Pace.
SLOW_MS = 60_000
WORDS = 16


def _sampling(**changes: Any) -> Callable[[JobRequest, str], JobRequest]:
    def change(request: JobRequest, value: str) -> JobRequest:
        values = {name: make(value) for name, make in changes.items()}
        return replace(request, sampling=replace(request.sampling, **values))

    return change


def _script(name: str) -> Callable[[JobRequest, str], JobRequest]:
    def change(request: JobRequest, value: str) -> JobRequest:
        script = dict(request.sampling.engine_options.get("mock", {}))  # type: ignore[call-overload]
        script[name] = int(value) if value.lstrip("-").isdigit() else value
        options = {"mock": script}
        return replace(request, sampling=replace(request.sampling, engine_options=options))

    return change


def _budget(field: str, of: str) -> Callable[[JobRequest, str], JobRequest]:
    def change(request: JobRequest, value: str) -> JobRequest:
        budgets = getattr(request, of) or Budgets()
        return replace(request, **{of: replace(budgets, **{field: int(value)})})

    return change


def _set(name: str, make: Callable[[str], Any] = str) -> Callable[[JobRequest, str], JobRequest]:
    return lambda request, value: replace(request, **{name: make(value)})


def _in(seconds: str) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=float(seconds))


# How a journey says what a job asks for.
WISHES: dict[str, Callable[[JobRequest, str], JobRequest]] = {
    "prompt": _set("prompt"),
    "model": _set("model_id"),
    "engine": _set("engine"),
    "class": _set("priority", lambda text: Priority(text.upper())),
    "job id": _set("job_id"),
    "request id": _set("request_id"),
    "session": _set("session_id"),
    "reuse the cache": _set("kv_hint", lambda _yes: KvHint.REUSE),
    "context": _set("required_ctx", int),
    "devices": _set("requirements", lambda text: Requirements(device_mask=(text,))),
    "memory": _set("requirements", lambda text: Requirements(min_vram_bytes=int(text))),
    "deadline in seconds": _set("deadline", _in),
    "longest wait in ms": _set("queue_timeout_ms", int),
    "on failure": _set("failover", lambda text: FailoverPolicy(text.upper().replace(" ", "_"))),
    "when nobody listens": _set("on_disconnect", lambda text: OnDisconnect(text.upper())),
    "determinism": _set("determinism", lambda text: Determinism(text.upper())),
    "most tokens": _sampling(max_tokens=int),
    "temperature": _sampling(temperature=float),
    "top p": _sampling(top_p=float),
    "seed": _sampling(seed=int),
    "words": _script("token_count"),
    "fails after words": _script("fail_after_tokens"),
    "fails with": _script("failure"),
    "engine dies after words": _script("die_after_tokens"),
    "goes silent after words": _script("stall_after_tokens"),
    "pause between words": _script("token_interval_ms"),
    "pause before the first word": _script("first_token_delay_ms"),
    "budget of tokens": _budget("tokens", "budgets"),
    "budget of time in ms": _budget("time_ms", "budgets"),
    "budget of cost": _budget("cost_micros", "budgets"),
    "session budget of tokens": _budget("tokens", "session_budgets"),
    "session budget of time in ms": _budget("time_ms", "session_budgets"),
    "session budget of cost": _budget("cost_micros", "session_budgets"),
}


def job(*tables: Rows, priority: Priority = Priority.INTERACTIVE) -> JobRequest:
    """A job with the wishes of a journey; without any it asks for a story of 16 words."""
    request = JobRequest(
        model_id=MODEL, prompt="Tell me a story.", priority=priority, sampling=Sampling(seed=7)
    )
    for name, value in (row for table in tables for row in table):
        request = WISHES[name.strip()](request, value.strip())
    return request
