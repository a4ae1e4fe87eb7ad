"""What the core gets of a configuration."""

from pathlib import Path

from orchestrator_core.config.derived import core_config
from orchestrator_core.config.loading import load_config
from orchestrator_core.config.text import to_toml
from orchestrator_core.core.config import CoreConfig, Limits, QueuePolicy


def test_every_key_reaches_the_core(tmp_path: Path) -> None:
    """No bound of the core is out of an operator's reach."""
    path = tmp_path / "o.toml"
    path.write_text(
        """
        [queue]
        capacity = 2
        policy = "drop-lru"
        batch_every = 3
        interactive_weight = 4
        batch_weight = 3
        token_fairness = true
        timeout_ms = 4
        lanes_max = 5
        retry_after_min_ms = 6
        retry_after_max_ms = 7
        [admission]
        deadline_aware = true
        min_on_time_probability = 0.5
        token_bytes_max = 23
        price_micros_per_1k_tokens = 24
        [throttle]
        requests_per_min = 25
        [placement]
        performance_scoring = false
        scorer = "latency_target"
        decline_offers = false
        decline_max_ms = 23
        stale_after_ms = 8000
        refusal_backoff_ms = 9
        refusal_backoff_max_ms = 10
        [catalog]
        required = true
        unknown_digest = "refuse"
        models_max = 29
        [jobs]
        wall_timeout_ms = 11
        idle_timeout_ms = 12
        disconnect_grace_ms = 13
        retention_ms = 14
        finished_max = 15
        attempts_max = 16
        idempotency_ttl_ms = 17
        idempotency_max = 18
        [sessions]
        ttl_ms = 19
        max = 20
        turns_max = 26
        budget_tokens = 27
        [pools]
        reattach_grace_ms = 21
        retention_ms = 28
        cancel_timeout_ms = 24
        max = 22
        """,
        encoding="utf-8",
    )

    core, default = core_config(load_config(path, {})), CoreConfig()

    assert core.queue_policy is QueuePolicy.DROP_LRU
    same = [name for name in CoreConfig.__slots__ if getattr(core, name) == getattr(default, name)]
    assert same == []


def test_limits_of_one_identity_go_over_those_of_everybody(tmp_path: Path) -> None:
    """ORCH-3006: what is left out is as for everybody, and 0 lifts a limit."""
    path = tmp_path / "o.toml"
    path.write_text(
        """
        [throttle]
        requests_per_min = 1
        tokens_per_min = 2
        queued_jobs = 3
        identities_max = 4
        [throttle.identities.alice]
        tokens_per_min = 0
        [throttle.identities."bob@example"]
        queued_jobs = 30
        """,
        encoding="utf-8",
    )

    config = load_config(path, {})
    throttle = core_config(config).throttle

    assert throttle.limits("anybody") == Limits(1, 2, 3)
    assert throttle.limits("alice") == Limits(1, 0, 3)
    assert throttle.limits("bob@example") == Limits(1, 2, 30)
    assert throttle.identities_max == 4
    path.write_text(to_toml(config), encoding="utf-8")
    assert load_config(path, {}).throttle == config.throttle


def test_reject_new_is_another_name_of_reject(tmp_path: Path) -> None:
    """Both names are in use elsewhere."""
    config = load_config(None, {}, ["queue.policy=reject-new"])

    assert core_config(config).queue_policy is QueuePolicy.REJECT
