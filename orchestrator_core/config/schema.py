"""What can be configured: every table, and which values go together.

The tables of one subject are in the module of that name. HME-003, ORCH-3030, ORCH-3035, HME-002,
AUTH-1002.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from orchestrator_core.config.access import (
    AuthTable,
    OutboundTable,
    TlsTable,
    loopback_bind,
    outbound_problems,
    tls_problems,
    token_problems,
)
from orchestrator_core.config.admission import AdmissionTable, QueueTable, ThrottleTable
from orchestrator_core.config.catalog import CatalogTable
from orchestrator_core.config.storage import ArtifactsTable, RecorderTable, StoreTable
from orchestrator_core.config.table import DAY_MS, Live, Table
from orchestrator_core.config.work import JobsTable, PlacementTable, PoolsTable, SessionsTable

_ADDRESS = r"^(\[[0-9A-Fa-f:.]+\]|[^\[\]:\s]+):[0-9]{1,5}$"
_PORT_MAX = 65_535


class Config(Table):
    """Everything that orchestratord is told. After `load`, paths are absolute unless empty."""

    listen: str = Field(
        default="127.0.0.1:7070",
        pattern=_ADDRESS,
        description="gRPC address; port 0: any free port.",
    )
    metrics_listen: str = Field(
        default="",
        pattern=rf"^$|{_ADDRESS}",
        description="Address of the Prometheus endpoint and the status page, e.g. 127.0.0.1:7072;"
        " empty: neither.",
    )
    status_page: bool = Field(
        default=True, description="Serve the status page at metrics_listen, too."
    )
    shutdown_grace_ms: Live[int] = Field(
        default=30_000, ge=0, le=DAY_MS, description="Wait for running jobs on SIGTERM."
    )
    log_level: Live[Literal["debug", "info", "warning", "error"]] = Field(
        default="info", description="Least severity of log lines."
    )
    log_format: Literal["auto", "json", "pretty"] = Field(
        default="auto", description="Form of log lines; auto: pretty on a terminal, else json."
    )
    store: StoreTable = Field(default=StoreTable(), description="The journal.")
    queue: QueueTable = Field(default=QueueTable(), description="Admission and queue.")
    admission: AdmissionTable = Field(
        default=AdmissionTable(), description="What is refused before it is queued."
    )
    throttle: ThrottleTable = Field(default=ThrottleTable(), description="Limits per client.")
    placement: PlacementTable = Field(default=PlacementTable(), description="Choice of a pool.")
    jobs: JobsTable = Field(default=JobsTable(), description="Limits of jobs.")
    sessions: SessionsTable = Field(default=SessionsTable(), description="Sessions.")
    pools: PoolsTable = Field(default=PoolsTable(), description="Connections of hosts.")
    recorder: RecorderTable = Field(default=RecorderTable(), description="The flight recorder.")
    outbound: OutboundTable = Field(
        default=OutboundTable(), description="What clients' tools may connect to."
    )
    artifacts: ArtifactsTable = Field(
        default=ArtifactsTable(), description="Plans, diffs, traces and long inputs."
    )
    catalog: CatalogTable = Field(default=CatalogTable(), description="The catalog of models.")
    auth: AuthTable = Field(default=AuthTable(), description="Bearer tokens.")
    tls: TlsTable = Field(default=TlsTable(), description="Encryption.")
    otlp_traces_endpoint: str = Field(default="", exclude=True, description="(environment)")
    otlp_metrics_endpoint: str = Field(default="", exclude=True, description="(environment)")

    @model_validator(mode="after")
    def _checked(self) -> "Config":
        problems = list(cross_problems(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self


ENVIRONMENT_KEYS = frozenset({"otlp_traces_endpoint", "otlp_metrics_endpoint"})


def cross_problems(config: Config) -> Iterator[str]:
    """Values that are right by themselves and wrong together."""
    yield from _address_problems("listen", config.listen)
    yield from _exposure_problems(config)
    yield from tls_problems(config.tls)
    yield from token_problems(config.auth)
    yield from outbound_problems(config.outbound)
    if config.store.kind == "memory" and config.artifacts.path:
        yield "artifacts.path: an index in memory is gone with the process: leave it empty"
    if config.metrics_listen:
        yield from _address_problems("metrics_listen", config.metrics_listen)
        if not loopback_bind(config.metrics_listen):
            yield (
                f"metrics_listen: {config.metrics_listen} can be reached from other machines, and "
                "this port asks nobody for a token: listen on 127.0.0.1 and use an SSH tunnel"
            )
    pools, placement, queue, jobs = config.pools, config.placement, config.queue, config.jobs
    for key, value_ms in (
        ("placement.stale_after_ms", placement.stale_after_ms),
        ("pools.heartbeat_timeout_ms", pools.heartbeat_timeout_ms),
    ):
        if value_ms < 2 * pools.report_interval_ms:
            yield (
                f"{key}: {value_ms} is less than twice pools.report_interval_ms "
                f"({pools.report_interval_ms}): one late report would count as an outage"
            )
    if bool(queue.interactive_weight) != bool(queue.batch_weight):
        yield "queue.interactive_weight and queue.batch_weight: set both, or neither"
    for table, name, low_key, high_key in (
        (queue, "queue", "retry_after_min_ms", "retry_after_max_ms"),
        (placement, "placement", "refusal_backoff_ms", "refusal_backoff_max_ms"),
        (pools, "pools", "reattach_grace_ms", "retention_ms"),
        (jobs, "jobs", "output_bytes_per_job", "output_bytes_total"),
    ):
        low, high = getattr(table, low_key), getattr(table, high_key)
        if low > high:
            yield f"{name}.{low_key}: {low} is more than {name}.{high_key} ({high})"


def _address_problems(key: str, address: str) -> Iterator[str]:
    port = address.rpartition(":")[2]
    if int(port) > _PORT_MAX:
        yield f"{key}: {port} is not a port"


def _exposure_problems(config: Config) -> Iterator[str]:
    """What an address that others can reach lacks. AUTH-1002."""
    if loopback_bind(config.listen):
        return
    reached = f"listen: {config.listen} can be reached from other machines"
    if not config.auth.tokens:
        yield (
            f"{reached}, and nobody would be asked for a token: make one with `orchestratord "
            "token --role admin --name NAME` and add it to auth.tokens, or listen on 127.0.0.1"
        )
    if not config.tls.certificate and not config.tls.allow_plaintext:
        yield (
            f"{reached}, and tokens and prompts would pass in the clear: set tls.certificate and "
            "tls.key, or tls.allow_plaintext = true where the network is trusted"
        )
