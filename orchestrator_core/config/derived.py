"""What other parts take of a configuration: the bounds of the core, and the tokens."""

from dataclasses import replace

from orchestrator_core.auth.tokens import Role, TokenEntry, Tokens
from orchestrator_core.config.admission import AdmissionTable, ThrottleTable
from orchestrator_core.config.schema import Config
from orchestrator_core.core.config import (
    CoreConfig,
    Guardrails,
    Limits,
    Price,
    QueuePolicy,
    Scorer,
    SessionBudgets,
    ThrottleConfig,
)

_POLICIES = {**{policy.value: policy for policy in QueuePolicy}, "reject-new": QueuePolicy.REJECT}


def tokens(config: Config) -> Tokens:
    """The tokens that a configuration names."""
    entries = (
        TokenEntry(
            name,
            Role(each.role),
            each.sha256,
            each.host_id,
            None if each.expires is None else each.expires.timestamp(),
        )
        for name, each in config.auth.tokens.items()
    )
    return Tokens(entries, jobs_shared=config.auth.jobs_visible_to == "all")


def core_config(config: Config) -> CoreConfig:
    """The bounds of the core that a configuration asks for."""
    queue, jobs, placement = config.queue, config.jobs, config.placement
    return CoreConfig(
        queue_capacity=queue.capacity,
        queue_policy=_POLICIES[queue.policy],
        lanes_max=queue.lanes_max,
        pools_max=config.pools.max,
        finished_jobs_max=jobs.finished_max,
        retention_ms=jobs.retention_ms,
        attempts_max=jobs.attempts_max,
        stale_after_ms=placement.stale_after_ms,
        reattach_grace_ms=config.pools.reattach_grace_ms,
        host_retention_ms=config.pools.retention_ms,
        cancel_timeout_ms=config.pools.cancel_timeout_ms,
        queue_timeout_ms=queue.timeout_ms,
        wall_timeout_ms=jobs.wall_timeout_ms,
        idle_timeout_ms=jobs.idle_timeout_ms,
        disconnect_grace_ms=jobs.disconnect_grace_ms,
        refusal_backoff_ms=placement.refusal_backoff_ms,
        refusal_backoff_max_ms=placement.refusal_backoff_max_ms,
        retry_after_min_ms=queue.retry_after_min_ms,
        retry_after_max_ms=queue.retry_after_max_ms,
        idempotency_ttl_ms=jobs.idempotency_ttl_ms,
        idempotency_max=jobs.idempotency_max,
        session_ttl_ms=config.sessions.ttl_ms,
        sessions_max=config.sessions.max,
        session_turns_max=config.sessions.turns_max,
        session_budgets=SessionBudgets(
            config.sessions.budget_tokens,
            config.sessions.budget_time_ms,
            config.sessions.budget_cost_micros,
        ),
        batch_every=queue.batch_every,
        class_weights=(
            (queue.interactive_weight, queue.batch_weight) if queue.batch_weight else None
        ),
        token_fairness=queue.token_fairness,
        performance_scoring=placement.performance_scoring,
        scorer=Scorer(placement.scorer),
        decline_offers=placement.decline_offers,
        decline_max_ms=placement.decline_max_ms,
        deadline_aware=config.admission.deadline_aware,
        min_on_time_probability=config.admission.min_on_time_probability,
        catalog_required=config.catalog.required,
        catalog_strict_digest=config.catalog.unknown_digest == "refuse",
        catalog_models_max=config.catalog.models_max,
        throttle=_throttle(config.throttle),
        guardrails=_guardrails(config.admission),
    )


def _guardrails(table: AdmissionTable) -> Guardrails:
    general = table.price_micros_per_1k_tokens
    prices = {
        model_id: Price(own.input_micros_per_1k_tokens, own.output_micros_per_1k_tokens)
        for model_id, own in table.prices.items()
    }
    return Guardrails(table.token_bytes_max, Price(general, general), prices)


def _throttle(table: ThrottleTable) -> ThrottleConfig:
    default = Limits(table.requests_per_min, table.tokens_per_min, table.queued_jobs)
    identities = {
        name: replace(default, **own.model_dump(exclude_none=True))
        for name, own in table.identities.items()
    }
    return ThrottleConfig(default, identities, table.identities_max)
