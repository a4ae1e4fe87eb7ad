"""The parts of a running server that take other settings. HME-003."""

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator_core.config.derived import core_config, tokens
from orchestrator_core.config.problems import ConfigError
from orchestrator_core.config.schema import Config
from orchestrator_core.core.events import ConfigChanged
from orchestrator_core.relay.relay import RelayLimits
from orchestrator_core.runtime import Runtime
from orchestrator_core.served_facts import ServedFacts
from orchestrator_core.servicers.auth import TokenGate
from orchestrator_core.servicers.catalog import CatalogServicer
from orchestrator_core.servicers.orchestrator import OrchestratorServicer
from orchestrator_core.servicers.outbound_judge import (
    NoSuchPolicyError,
    configured_judge,
)
from orchestrator_core.servicers.policy import PolicyServicer
from orchestrator_core.servicers.pool_admin import PoolAdminServicer
from orchestrator_core.servicers.signatures import NoSignaturesError, configured_signatures
from orchestrator_core.telemetry.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class LiveParts:
    """Everything that a reload reaches; `gate` is None where nobody is asked for a token."""

    runtime: Runtime
    telemetry: Telemetry
    policy: PolicyServicer
    gate: TokenGate | None
    jobs: OrchestratorServicer
    pools: PoolAdminServicer
    facts: ServedFacts
    catalog: CatalogServicer

    def prepare(self, running: Config, config: Config) -> Callable[[], None]:
        """Does all that can fail; returns what puts a configuration in force, which cannot.

        Raises:
            ConfigError: when the outbound policy is not there, or nothing can check signatures.
        """
        try:
            judge = configured_judge(config.outbound)
            signatures = configured_signatures(config.catalog)
        except (NoSuchPolicyError, NoSignaturesError) as error:
            raise ConfigError([str(error)]) from error
        bounds, known = core_config(config), tokens(config)

        def commit() -> None:
            if bounds != self.runtime.core.config:
                self.runtime.submit(ConfigChanged(bounds))
            self.runtime.relay.limits = RelayLimits(
                config.jobs.output_bytes_per_job, config.jobs.output_bytes_total
            )
            self.policy.judge = judge
            if self.gate is not None:
                self.gate.use(known)
            self.jobs.reconfigure(config.jobs)
            self.pools.reconfigure(config.pools)
            self.facts.reconfigure(config.jobs)
            self.catalog.reconfigure(config.catalog, signatures)
            if config.log_level != running.log_level:
                self.telemetry.log_from(config.log_level)

        return commit
