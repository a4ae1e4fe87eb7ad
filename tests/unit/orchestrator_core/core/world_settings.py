"""Settings of the core that random worlds run with."""

import random
from dataclasses import replace
from typing import Any

from orchestrator_core.core.config import (
    NO_LIMITS,
    CoreConfig,
    Guardrails,
    Limits,
    Price,
    QueuePolicy,
    Scorer,
    SessionBudgets,
    ThrottleConfig,
)

# Every setting of the core, with another value whose effect a random world shows.
OTHER: dict[str, Any] = {
    "queue_capacity": 1,
    "queue_policy": QueuePolicy.DROP_LRU,
    "lanes_max": 1,
    "pools_max": 1,
    "finished_jobs_max": 1,
    "retention_ms": 50,
    "attempts_max": 1,
    "stale_after_ms": 20,
    "reattach_grace_ms": 10,
    "host_retention_ms": 60,
    "cancel_timeout_ms": 30,
    "queue_timeout_ms": 50,
    "wall_timeout_ms": 100,
    "idle_timeout_ms": 50,
    "disconnect_grace_ms": 10,
    "refusal_backoff_ms": 5_000,
    "refusal_backoff_max_ms": 1,
    "retry_after_min_ms": 40_000,
    "retry_after_max_ms": 101,
    "idempotency_ttl_ms": 1,
    "idempotency_max": 1,
    "session_ttl_ms": 10,
    "sessions_max": 1,
    "session_turns_max": 1,
    "session_budgets": SessionBudgets(tokens=20),
    "batch_every": 7,
    "class_weights": (1, 3),
    "token_fairness": True,
    "performance_scoring": False,
    "scorer": Scorer.LATENCY_TARGET,
    "decline_offers": False,
    "decline_max_ms": 5,
    "deadline_aware": True,
    "min_on_time_probability": 1.0,
    "throttle": ThrottleConfig(Limits(3, 50, 1)),
    "catalog_required": True,
    "catalog_strict_digest": True,
    "catalog_models_max": 1,
    "guardrails": Guardrails(price=Price(1_000, 1_000)),
}


def config_of(seed: int) -> CoreConfig:
    """Small bounds, so that every one of them is met; the policy goes round with the seed."""
    return CoreConfig(
        queue_capacity=(3, 6, 12)[seed % 3],
        queue_policy=list(QueuePolicy)[seed % 4],
        finished_jobs_max=40,
        retention_ms=20_000,
        reattach_grace_ms=700,
        stale_after_ms=1_500,
        idle_timeout_ms=3_000,
        wall_timeout_ms=9_000,
        queue_timeout_ms=15_000,
        disconnect_grace_ms=800,
        batch_every=(1, 2, 5)[seed % 3],
        performance_scoring=seed % 5 != 0,
        decline_offers=seed % 3 != 0,
        decline_max_ms=400,
        deadline_aware=seed % 2 == 0,
        session_ttl_ms=2_000,
        session_turns_max=(3, 8)[seed % 2],
        sessions_max=(2, 4)[seed % 2],
        session_budgets=SessionBudgets(
            tokens=(0, 900)[seed % 2], time_ms=(0, 30_000)[seed // 2 % 2]
        ),
        throttle=ThrottleConfig(Limits(900, 20_000, 4) if seed % 4 == 1 else NO_LIMITS),
    )


def other_config(rng: random.Random) -> CoreConfig:
    """What an operator may change to: any world's settings, and what those leave alone."""
    return replace(
        config_of(rng.randrange(420)),
        token_fairness=rng.random() < 0.3,
        finished_jobs_max=rng.choice((2, 40)),
        retention_ms=rng.choice((5_000, 20_000)),
        stale_after_ms=rng.choice((600, 1_500)),
        idle_timeout_ms=rng.choice((1_000, 3_000)),
        wall_timeout_ms=rng.choice((2_000, 9_000)),
        queue_timeout_ms=rng.choice((3_000, 15_000)),
        decline_max_ms=rng.choice((50, 400)),
        idempotency_max=rng.choice((2, 100)),
    )
