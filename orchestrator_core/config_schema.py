"""What can be configured: keys, bounds, defaults, and which values go together.

HME-003, ORCH-3030, ORCH-3035, HME-002, AUTH-1002.
"""

import ipaddress
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator_core.auth.tokens import NAME_PATTERN
from orchestrator_core.core.outbound import Unreadable, read_pattern

_ADDRESS = r"^(\[[0-9A-Fa-f:.]+\]|[^\[\]:\s]+):[0-9]{1,5}$"
_PORT_MAX = 65_535
_DAY_MS = 86_400_000
_LIMIT_MAX = 10**12

# The base64 of an Ed25519 key as RFC 8410 encodes it, 44 bytes that all begin alike.
PublicKey = Annotated[str, Field(pattern=r"^MCowBQYDK2VwAyEA[A-Za-z0-9+/]{43}=$")]
Milliseconds = Annotated[int, Field(ge=1, le=_DAY_MS)]
Policy = Literal["reject", "reject-new", "drop-lru", "shed-low-priority", "fail-fast"]


class Table(BaseModel):
    """A table of keys: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class StoreTable(Table):
    """The journal. LO-305."""

    kind: Literal["sqlite", "memory"] = Field(
        default="sqlite", description="Where accepted jobs are kept; memory: lost with the process."
    )
    path: str = Field(
        default="orchestratord.db",
        min_length=1,
        max_length=4096,
        description="SQLite file; relative to the configuration file, or to the working directory.",
    )
    bytes_max: int = Field(
        default=1 << 30,
        ge=1 << 20,
        le=1 << 40,
        description="Content at which the oldest ended jobs go early, but for jobs.finished_max.",
    )
    prune_every_ms: Milliseconds = Field(
        default=60_000, description="Time between two deletions of what is kept no longer."
    )
    free_bytes_kept: int = Field(
        default=64 << 20,
        ge=0,
        le=1 << 40,
        description="Unused bytes that the SQLite file may have; more goes back to the disk.",
    )


class QueueTable(Table):
    """Admission and queue. ORCH-3004, ORCH-3005, LO-103."""

    capacity: int = Field(
        default=100, ge=1, le=1_000_000, description="Jobs that may wait, both classes."
    )
    policy: Policy = Field(
        default="reject",
        description="What happens when it is full; reject-new is an alias of reject.",
    )
    batch_every: int = Field(
        default=8,
        ge=1,
        le=10_000,
        description="Interactive placements before a waiting batch job's turn.",
    )
    interactive_weight: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="With batch_weight: placements of each class in turn while both wait; 0: "
        "interactive first, but for batch_every.",
    )
    batch_weight: int = Field(default=0, ge=0, le=10_000, description="See interactive_weight.")
    token_fairness: bool = Field(
        default=False,
        description="The identity that was served the fewest tokens goes first; order of arrival "
        "then holds per identity.",
    )
    timeout_ms: Milliseconds = Field(
        default=3_600_000, description="Longest wait, if the job sets none."
    )
    lanes_max: int = Field(
        default=256, ge=1, le=65_536, description="Kinds of jobs that wait at a time."
    )
    retry_after_min_ms: Milliseconds = Field(
        default=100, description="Least advised wait of a rejection."
    )
    retry_after_max_ms: Milliseconds = Field(
        default=60_000, description="Longest advised wait that is an estimate."
    )


class PriceTable(Table):
    """What tokens of one model cost. ORCH-3099."""

    input_micros_per_1k_tokens: int = Field(
        ge=0, le=_LIMIT_MAX, description="Price of prompts, in millionths of your currency."
    )
    output_micros_per_1k_tokens: int = Field(
        ge=0, le=_LIMIT_MAX, description="Price of output, in millionths of your currency."
    )


class AdmissionTable(Table):
    """What is refused before it is queued. ORCH-3014, LO-105."""

    deadline_aware: bool = Field(
        default=False, description="Refuse jobs that will hardly meet their deadline."
    )
    min_on_time_probability: float = Field(
        default=0.1, ge=0.001, le=1.0, description="Least chance to be on time, if so."
    )
    token_bytes_max: int = Field(
        default=256,
        ge=1,
        le=65_536,
        description="Most bytes of a prompt that one token stands for; see admission.md.",
    )
    price_micros_per_1k_tokens: int = Field(
        default=0,
        ge=0,
        le=10**12,
        description="Price of models without their own, in millionths of your currency; 0: their "
        "jobs with a cost budget are refused.",
    )
    prices: dict[str, PriceTable] = Field(
        default_factory=dict,
        max_length=10_000,
        description="Prices of single models, one table each.",
    )


class IdentityTable(Table):
    """Limits of one client identity; what is left out is as for everybody. ORCH-3006."""

    requests_per_min: int | None = Field(
        default=None,
        ge=0,
        le=_LIMIT_MAX,
        description="Jobs accepted per minute; 0: no limit; unset: as everybody.",
    )
    tokens_per_min: int | None = Field(
        default=None,
        ge=0,
        le=_LIMIT_MAX,
        description="Tokens per minute; 0: no limit; unset: as everybody.",
    )
    queued_jobs: int | None = Field(
        default=None,
        ge=0,
        le=_LIMIT_MAX,
        description="Jobs that may wait; 0: no limit; unset: as everybody.",
    )


class ThrottleTable(Table):
    """Limits of every client identity that has none of its own. ORCH-3006."""

    requests_per_min: int = Field(
        default=0, ge=0, le=_LIMIT_MAX, description="Jobs accepted per minute; 0: no limit."
    )
    tokens_per_min: int = Field(
        default=0,
        ge=0,
        le=_LIMIT_MAX,
        description="Tokens per minute, prompt and output; 0: no limit.",
    )
    queued_jobs: int = Field(
        default=0, ge=0, le=_LIMIT_MAX, description="Jobs that may wait; 0: no limit."
    )
    identities_max: int = Field(
        default=10_000, ge=1, le=1_000_000, description="Identities whose use is remembered."
    )
    identities: dict[str, IdentityTable] = Field(
        default_factory=dict,
        max_length=10_000,
        description="Limits of single identities, one table each.",
    )


class PlacementTable(Table):
    """Choice of a pool. ORCH-3010, ORCH-3012, LO-202."""

    performance_scoring: bool = Field(
        default=True, description="Predicted end decides; false: only load and memory do."
    )
    scorer: Literal["predicted_end", "latency_target"] = Field(
        default="predicted_end",
        description="What makes a pool better; latency_target: slowest that meets the deadline.",
    )
    decline_offers: bool = Field(
        default=True,
        description="A job may let a slow slot pass when waiting for a faster one ends it sooner.",
    )
    decline_max_ms: Milliseconds = Field(
        default=30_000, description="Longest time for which a job lets slots pass."
    )
    stale_after_ms: Milliseconds = Field(
        default=5_000, description="Age at which a snapshot no longer counts."
    )
    refusal_backoff_ms: Milliseconds = Field(
        default=250, description="First rest of a pool that refused."
    )
    refusal_backoff_max_ms: Milliseconds = Field(default=10_000, description="Longest rest.")


class JobsTable(Table):
    """Limits of one job and of all of them. OC-CORE-1022, LO-302."""

    wall_timeout_ms: Milliseconds = Field(default=3_600_000, description="Longest time on a pool.")
    idle_timeout_ms: Milliseconds = Field(
        default=120_000,
        ge=5_000,
        description="Longest time without output; progress is told once a second.",
    )
    disconnect_grace_ms: Milliseconds = Field(
        default=10_000, description="Wait before a job is cancelled to which nobody listens."
    )
    retention_ms: Milliseconds = Field(
        default=600_000, description="How long an ended job is kept."
    )
    finished_max: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="Ended jobs that are kept; if room is short, a quarter that never ran.",
    )
    attempts_max: int = Field(default=3, ge=1, le=100, description="Attempts of one job.")
    input_bytes_max: int = Field(
        default=3 << 20,
        ge=1_024,
        le=3_670_016,
        description="Largest request; a message holds 4 MiB.",
    )
    output_bytes_per_job: int = Field(
        default=1 << 20, ge=4_096, le=1 << 30, description="Encoded output buffered for one job."
    )
    output_bytes_total: int = Field(
        default=256 << 20,
        ge=4_096,
        le=1 << 40,
        description="Memory for buffered output in all, with about 150 bytes per batch of tokens.",
    )
    idempotency_ttl_ms: int = Field(
        default=_DAY_MS, ge=1, le=30 * _DAY_MS, description="How long a request_id is remembered."
    )
    idempotency_max: int = Field(
        default=100_000, ge=1, le=10_000_000, description="Remembered requests."
    )


class SessionsTable(Table):
    """Sessions: how long, how many turns, what they may spend. ORCH-3021, ORCH-3099."""

    ttl_ms: Milliseconds = Field(
        default=600_000, description="How long a silent session is remembered."
    )
    turns_max: int = Field(
        default=8, ge=1, le=10_000, description="Jobs of one session; the next one is refused."
    )
    max: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="Sessions that are remembered; the one idle for longest goes first.",
    )
    budget_tokens: int = Field(
        default=0,
        ge=0,
        le=_LIMIT_MAX,
        description="Most tokens of a session, whatever it asks for; 0: no limit.",
    )
    budget_time_ms: int = Field(
        default=0,
        ge=0,
        le=_LIMIT_MAX,
        description="Most time of a session on pools; 0: no limit.",
    )
    budget_cost_micros: int = Field(
        default=0,
        ge=0,
        le=_LIMIT_MAX,
        description="Most that a session may cost, in millionths of your currency; 0: no limit.",
    )


class PoolsTable(Table):
    """What hosts are told, and how long they are waited for. LO-203."""

    report_interval_ms: Milliseconds = Field(
        default=1_000, description="Longest time between two snapshots of a host."
    )
    heartbeat_timeout_ms: Milliseconds = Field(
        default=5_000, description="Silence after which a connection counts as lost."
    )
    send_window_bytes: int = Field(
        default=256 << 10, ge=1_024, le=1 << 26, description="Unacknowledged output of a host."
    )
    reattach_grace_ms: Milliseconds = Field(
        default=10_000, description="Wait for a lost host before its attempts count as lost."
    )
    retention_ms: Milliseconds = Field(
        default=_DAY_MS,
        description="How long the pools of a lost host are kept. Until then jobs that only they"
        " could run are accepted, and wait.",
    )
    cancel_timeout_ms: Milliseconds = Field(
        default=10_000,
        description="Wait for a host to confirm a cancel before it is sent again. After as long"
        " again the pool gets no more jobs until it is confirmed. Longer than the host's own"
        " `cancel_confirm_ms`.",
    )
    max: int = Field(default=10_000, ge=1, le=100_000, description="Pools that may register.")
    drain_timeout_ms: Milliseconds = Field(
        default=600_000,
        description="How long running attempts of a drained pool may go on, unless the drain says.",
    )
    watchers_max: int = Field(
        default=64, ge=1, le=10_000, description="Readers that may watch the pools at once."
    )


class RecorderTable(Table):
    """The flight recorder. LO-207."""

    enabled: bool = Field(
        default=True,
        description="Record every input of the scheduler, without prompts, for replay.",
    )
    path: str = Field(
        default="",
        max_length=4096,
        description="Directory; empty: `flight` beside the journal's file, nowhere for `memory`.",
    )
    segment_bytes: int = Field(
        default=4 << 20, ge=65_536, le=1 << 30, description="Size at which a new file begins."
    )
    segments_max: int = Field(
        default=32, ge=2, le=100_000, description="Files that are kept; the oldest go first."
    )


class OutboundTable(Table):
    """What clients' tools may connect to. ORCH-3080, ORCH-3206."""

    enabled: bool = Field(
        default=False, description="The one switch: without it every connection is denied."
    )
    policy: str = Field(
        default="patterns",
        min_length=1,
        max_length=128,
        description="Who decides, if so: `patterns`, by the two lists, or an installed plug-in.",
    )
    allow: tuple[str, ...] = Field(
        default=(),
        max_length=1_024,
        strict=False,
        description="Hosts to connect to: HOST, `*.HOST` for all below it, `*` for all; over"
        " https, and http to this machine, unless SCHEME:// stands before it.",
    )
    deny: tuple[str, ...] = Field(
        default=(),
        max_length=1_024,
        strict=False,
        description="Hosts never to connect to, over any scheme unless one stands before it; goes"
        " before `allow`.",
    )


class CatalogTable(Table):
    """The catalog of models, which itself is in the journal. ORCH-3031, ORCH-3037."""

    required: bool = Field(
        default=False, description="Refuse jobs of models that are not in the catalog."
    )
    unknown_digest: Literal["allow", "refuse"] = Field(
        default="allow",
        description="Whether a pool that reports no digest serves a model that has one in the "
        "catalog. One that reports another never does.",
    )
    models_max: int = Field(
        default=1_000, ge=1, le=100_000, description="Models that the catalog may have."
    )
    retire_grace_ms: int = Field(
        default=3_600_000,
        ge=0,
        le=30 * 86_400_000,
        description="How long pools serve a retired model's accepted jobs, unless it is said.",
    )
    trusted_keys: dict[Annotated[str, Field(pattern=NAME_PATTERN)], PublicKey] = Field(
        default={},
        max_length=64,
        description="Ed25519 keys that sign digests of models: the line between BEGIN and END "
        "PUBLIC KEY of its PEM file. Needs the extra `signatures`.",
    )


class TokenTable(Table):
    """One bearer token, which is itself stated nowhere. AUTH-1001."""

    role: Literal["client", "pool", "admin"] = Field(description="What the token is for.")
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="Hash of the token; `orchestratord token` makes both.",
    )


class AuthTable(Table):
    """Bearer tokens. AUTH-1001..1008."""

    tokens: dict[Annotated[str, Field(pattern=NAME_PATTERN)], TokenTable] = Field(
        default={},
        max_length=1_000,
        description="Tokens by the name of their owner, which is also the identity that limits "
        "hold for; without any, nobody is asked for one.",
    )


class TlsTable(Table):
    """The server's own certificate, and whom it asks for one. Changed files count at once."""

    certificate: str = Field(
        default="",
        max_length=4096,
        description="PEM file of the server's certificate and its chain; empty: no TLS. Relative "
        "to the configuration file.",
    )
    key: str = Field(
        default="", max_length=4096, description="PEM file of the certificate's key, unencrypted."
    )
    client_ca: str = Field(
        default="",
        max_length=4096,
        description="PEM file of the authorities that callers' certificates must come from; empty:"
        " callers need none.",
    )
    allow_plaintext: bool = Field(
        default=False,
        description="Take tokens and prompts without TLS on addresses that others can reach.",
    )


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
    shutdown_grace_ms: int = Field(
        default=30_000, ge=0, le=_DAY_MS, description="Wait for running jobs on SIGTERM."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
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
    catalog: CatalogTable = Field(default=CatalogTable(), description="The catalog of models.")
    auth: AuthTable = Field(default=AuthTable(), description="Bearer tokens.")
    tls: TlsTable = Field(default=TlsTable(), description="Encryption.")
    otlp_traces_endpoint: str = Field(default="", exclude=True, description="(environment)")
    otlp_metrics_endpoint: str = Field(default="", exclude=True, description="(environment)")

    @model_validator(mode="after")
    def _checked(self) -> "Config":
        problems = list(_cross_problems(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self


ENVIRONMENT_KEYS = frozenset({"otlp_traces_endpoint", "otlp_metrics_endpoint"})


def _cross_problems(config: Config) -> Iterator[str]:
    yield from _address_problems("listen", config.listen)
    yield from _exposure_problems(config)
    yield from _tls_problems(config.tls)
    yield from _token_problems(config.auth)
    yield from _outbound_problems(config.outbound)
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


def _outbound_problems(outbound: OutboundTable) -> Iterator[str]:
    for name, texts in (("allow", outbound.allow), ("deny", outbound.deny)):
        for text in texts:
            pattern = read_pattern(text)
            if isinstance(pattern, Unreadable):
                yield f"outbound.{name}: {text!r} must {pattern.must}"


def _address_problems(key: str, address: str) -> Iterator[str]:
    port = address.rpartition(":")[2]
    if int(port) > _PORT_MAX:
        yield f"{key}: {port} is not a port"


def loopback_bind(address: str) -> bool:
    """True for an address HOST:PORT that only this machine reaches. ORCH-3035, HME-002."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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


def _tls_problems(tls: TlsTable) -> Iterator[str]:
    if bool(tls.certificate) != bool(tls.key):
        yield "tls.certificate and tls.key: set both, or neither"
    if tls.client_ca and not tls.certificate:
        yield "tls.client_ca: callers show certificates over TLS only: set tls.certificate, tls.key"


def _token_problems(auth: AuthTable) -> Iterator[str]:
    owners: dict[str, str] = {}
    for name, token in auth.tokens.items():
        other = owners.setdefault(token.sha256, name)
        if other != name:
            yield f"auth.tokens.{name}: has the same token as {other}: make one for each"
