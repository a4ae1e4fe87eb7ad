"""What the words of a transcript's line say: settings, jobs, attempts."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from orchestrator_core.core.config import (
    CoreConfig,
    Guardrails,
    Limits,
    Price,
    QueuePolicy,
    ThrottleConfig,
)
from orchestrator_core.core.events import (
    HeldAttempt,
)
from orchestrator_core.core.spec import Budgets, Failover, JobSpec, Needs, Priority


def config_fields(words: list[str]) -> dict[str, Any]:
    """`NAME=VALUE` of the core's settings."""
    known = {field.name for field in fields(CoreConfig)}
    given: dict[str, Any] = {}
    for name, value in pairs(words).items():
        assert name in known, name
        given[name] = _CONFIG.get(name, int)(value)
    return given


def _parts(value: str) -> dict[str, int]:
    """`a:1,b:2`."""
    pairs = (part.split(":") for part in value.split(","))
    return {name: int(number) for name, number in pairs}


_CONFIG: dict[str, Callable[[str], Any]] = {
    "queue_policy": QueuePolicy,
    "throttle": lambda value: ThrottleConfig(Limits(**_parts(value))),
    "guardrails": lambda value: _guardrails(**_parts(value)),
    "deadline_aware": lambda value: value == "true",
}


def _guardrails(token_bytes_max: int, price: int = 0) -> Guardrails:
    return Guardrails(token_bytes_max, Price(price, price))


def pairs(words: list[str]) -> dict[str, str]:
    """`NAME=VALUE`, each."""
    return dict(word.split("=", 1) for word in words)


def attempt_key(word: str) -> tuple[str, int]:
    """`a#1`: the job, and which attempt of it."""
    job_id, _, number = word.partition("#")
    return job_id, int(number)


def held_attempt(word: str) -> HeldAttempt:
    """`a#1@p` runs, `a#1@p#2:ended` is over."""
    what, _, ended = word.partition(":")
    attempt, _, place = what.partition("@")
    pool_id, _, boot = place.partition("#")
    replica_id = f"{pool_id}#{boot or 1}"
    return HeldAttempt(*attempt_key(attempt), pool_id, replica_id, ended == "ended")


_NUMBERS = ("deadline_ms", "queue_timeout_ms", "max_tokens", "prompt_bytes")


def _budgets(value: str) -> Budgets:
    return Budgets(**_parts(value)) if value else Budgets()


def job_spec(job_id: str, words: list[str]) -> JobSpec:
    """A job of `NAME=VALUE` and of flags such as `batch`."""
    flags = {word for word in words if "=" not in word}
    given = pairs([word for word in words if "=" in word])
    unknown = flags - {"batch", "replay", "continue", "cancel-on-disconnect"}
    assert not unknown, unknown
    numbers = {name: int(given[name]) for name in _NUMBERS if name in given}
    return JobSpec(
        job_id=job_id,
        needs=Needs(model_id=given.get("model", "m")),
        priority=Priority.BATCH if "batch" in flags else Priority.INTERACTIVE,
        request_id=given.get("request", ""),
        digest=given.get("body", f"body of {job_id}"),
        est_kv_bytes=int(given["kv"]) if "kv" in given else None,
        failover=_failover(flags),
        cancel_on_disconnect="cancel-on-disconnect" in flags,
        identity=given.get("identity", ""),
        budgets=_budgets(given.get("budgets", "")),
        session_id=given.get("session", ""),
        session_budgets=_budgets(given.get("session_budgets", "")),
        **numbers,  # type: ignore[arg-type]
    )


def _failover(flags: set[str]) -> Failover:
    if "continue" in flags:
        return Failover.CONTINUE
    return Failover.VERIFIED_REPLAY if "replay" in flags else Failover.FAIL
