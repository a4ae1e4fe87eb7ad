"""Configuration: its tables, and what has to be true of them together. ORCH-3035, HME-002.

Engines, models, supervision and security have modules of their own; `loading` reads the file.
"""

import re
import socket
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pool_managerd.config.engines import EngineTable, OpenAiTable, TritonTable
from pool_managerd.config.launch import AttachingTable
from pool_managerd.config.llama import LAUNCH_FILES, EmbeddedTable, LlamaServerTable
from pool_managerd.config.models import ModelsTable, OutboundTable
from pool_managerd.config.security import (
    AuthTable,
    LinkAccess,
    ServerTlsTable,
    link_problems,
    listen_problems,
)
from pool_managerd.config.supervision import BackoffTable, EngineLogsTable, SupervisionTable
from pool_managerd.config.table import Live, Milliseconds, Table

_ID = r"^[A-Za-z0-9._:-]{1,128}$"
PORT_MAX = 65_535
_ADDRESS = r"^(\[[0-9A-Fa-f:.]+\]|[^\[\]:\s]+):[0-9]{1,5}$"


def _listening(address: str) -> str:
    """Refuses a port that there is not: systems take it modulo 65536, without a word."""
    if address and int(address.rpartition(":")[2]) > PORT_MAX:
        raise ValueError(f"{address} has a port above {PORT_MAX}")
    return address


def _dialled(address: str) -> str:
    if not int(address.rpartition(":")[2]):
        raise ValueError(f"{address} has the port 0, which nobody can be reached at")
    return _listening(address)


Listened = Annotated[str, AfterValidator(_listening)]
Dialled = Annotated[str, AfterValidator(_dialled)]

# A replica id is the pool id and nine more characters; 128 are the limit of every id on the wire.
PoolId = Annotated[str, Field(pattern=_ID, max_length=100)]


ALL_LAYERS = 10_000

_NEEDS = {
    "tensor_split": "the pool's tensor_split",
    "vram_claim_ratio": "the pool's vram_claim_ratio",
    "gpu_layers": 'kind = "llama_server", or flavor = "llama_cpp"',
    "kv_type": 'kind = "llama_server", or flavor = "llama_cpp"',
    "ctx_per_slot": "engine.ctx_per_slot of a llama_server, or ctx_max of the flavor llama_cpp",
    "ctx_total": "engine.ctx_per_slot of a llama_server, or ctx_max of the flavor llama_cpp",
    "mmproj_path": "engine.mmproj_path",
    "draft_model_path": "engine.draft_model_path",
    "ctx_max": "engine.ctx_max; of a llama_server there is {ctx_total}",
}


class PoolTable(Table):
    """One pool: one engine process, one model, one device mask. ORCH-3001."""

    pool_id: PoolId = Field(description="Stable id of the pool.")
    devices: tuple[str, ...] = Field(
        default=(),
        max_length=64,
        description="UUIDs of GPUs or MIG slices, indexes of GPUs, GPU:SLICE; empty: all.",
    )
    tensor_split: tuple[Annotated[int, Field(ge=0, le=1_000_000)], ...] = Field(
        default=(),
        max_length=64,
        description="Weight of each entry of `devices`, e.g. [2, 1]; empty: the engine chooses.",
    )
    engine: EngineTable = Field(description="The engine; `kind` selects it.")
    self_test: bool | None = Field(
        default=None,
        description="Self-test before READY; absent: as `supervision.self_test`, never for `mock`.",
    )
    perf_tokens_per_s: float | None = Field(
        default=None, ge=0.001, le=1e6, description="Decode rate of one stream: a first guess."
    )
    first_token_ms: int | None = Field(
        default=None, ge=0, le=3_600_000, description="Time to the first token of a short prompt."
    )
    prefill_tokens_per_s: float | None = Field(
        default=None, ge=0.001, le=1e7, description="Prompt tokens per second: a first guess."
    )
    vram_claim_bytes: int | None = Field(
        default=None,
        ge=0,
        le=1 << 50,
        description="Memory that the engine takes of all its devices together; replaces the "
        "estimate.",
    )
    vram_claim_ratio: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of each device that the engine claims (vLLM's gpu_memory_utilization); "
        "replaces the estimate.",
    )
    memory_check: Literal["enforce", "warn", "off"] = Field(
        default="enforce", description="What happens when the engine does not seem to fit."
    )

    @model_validator(mode="after")
    def _split_fits(self) -> "PoolTable":
        # ORCH-3052: a split is explicit or there is none.
        if self.tensor_split and len(self.tensor_split) != len(self.devices):
            raise ValueError(
                f"tensor_split has {len(self.tensor_split)} weights for {len(self.devices)} devices"
            )
        if self.tensor_split and not sum(self.tensor_split):
            raise ValueError("tensor_split must not be 0 on all devices")
        if self.vram_claim_bytes is not None and self.vram_claim_ratio is not None:
            raise ValueError("set vram_claim_bytes or vram_claim_ratio, not both")
        return self

    @model_validator(mode="after")
    def _launch_filled(self) -> "PoolTable":
        launch = self.engine.launch if isinstance(self.engine, AttachingTable) else None
        stated = self.launch_values().keys()
        for name in sorted(launch.placeholders() if launch else ()):
            if name in _NEEDS and name not in stated:
                raise ValueError(f"engine.launch uses {{{name}}}: set {_NEEDS[name]}")
        return self

    def launch_values(self) -> dict[str, str]:
        """What the pool's settings put in the place of placeholders, as far as they are stated."""
        found = {"tensor_split": ",".join(map(str, self.tensor_split))}
        if self.vram_claim_ratio is not None:
            found["vram_claim_ratio"] = str(self.vram_claim_ratio)
        engine = self.engine
        if isinstance(engine, LlamaServerTable | OpenAiTable) and engine.llama_cpp:
            slots, ctx_tokens = engine.slots or 1, engine.slot_tokens
            # A llama-server of every age takes more layers than there are for all of them.
            layers = ALL_LAYERS if engine.gpu_layers < 0 else engine.gpu_layers
            found |= {"gpu_layers": str(layers), "kv_type": engine.kv_type}
            found["ctx_per_slot"] = str(ctx_tokens or "")
            found["ctx_total"] = str(ctx_tokens * slots or "")
            found |= {name: getattr(engine, name) for name in LAUNCH_FILES}
        if not isinstance(engine, EmbeddedTable | LlamaServerTable):
            found["ctx_max"] = str(engine.ctx_max or "")
        return {name: value for name, value in found.items() if value}


class LimitsTable(Table):
    """Bounds of the token store and of what is under way."""

    held_bytes_per_job: Live[int] = Field(
        default=16 << 20, ge=4096, le=1 << 34, description="Output held for one job, bytes."
    )
    held_bytes_total: Live[int] = Field(
        default=512 << 20, ge=4096, le=1 << 40, description="Output held in all, bytes."
    )
    # Register lists every held attempt in one message, which stays under 4 MiB at this many.
    held_attempts_max: int = Field(default=8_192, ge=1, le=8_192, description="Attempts held.")
    send_window_bytes: int = Field(
        default=256 << 10,
        ge=1024,
        le=1 << 26,
        description="Unacknowledged output, if the orchestrator says none.",
    )
    frame_bytes: int = Field(default=1 << 20, ge=4096, le=3 << 20, description="Size of one frame.")
    watchers_max: Live[int] = Field(
        default=16, ge=1, le=1024, description="Open WatchSnapshots calls."
    )
    input_bytes_max: int = Field(
        default=64 << 20,
        ge=4096,
        le=1 << 30,
        description="Largest input that is fetched from the orchestrator, which is in memory until"
        " its attempt ends.",
    )


class LinkTable(LinkAccess):
    """The streams to the orchestrator."""

    backoff: BackoffTable = Field(
        default=BackoffTable(cap_ms=2_000), description="Wait before the next connection."
    )
    connect_timeout_ms: Milliseconds = Field(
        default=10_000,
        description="Longest wait for Registered, and for each file of the token and TLS.",
    )
    heartbeat_timeout_ms: Milliseconds = Field(
        default=10_000, description="Longest silence, if the orchestrator says none."
    )


def _name_of_machine() -> str:
    return socket.gethostname()


class Config(Table):
    """Everything that the pool manager is told."""

    orchestrator: Dialled = Field(
        default="127.0.0.1:7070", pattern=_ADDRESS, description="Address of the orchestrator."
    )
    listen: Listened = Field(
        default="127.0.0.1:7071", pattern=_ADDRESS, description="Inspection; port 0: any free port."
    )
    host_id: PoolId = Field(
        default_factory=_name_of_machine, description="Stable id of the host; default: its name."
    )
    devices: Literal["nvml", "cpu"] = Field(
        default="nvml", description="Source of devices: NVIDIA GPUs, or the processor."
    )
    device_interval_ms: int = Field(
        default=1_000,
        ge=50,
        le=60_000,
        description="Time between two readings of GPU memory and utilisation; "
        "what costs the driver more is read a fifth as often.",
    )
    coalesce_ms: int = Field(
        default=5, ge=0, le=5, description="Output within this time shares a frame."
    )
    report_interval_ms: Milliseconds = Field(
        default=1_000, description="Longest time between two snapshots."
    )
    shutdown_grace_ms: Live[int] = Field(
        default=30_000, ge=0, le=86_400_000, description="Wait for running attempts on SIGTERM."
    )
    metrics_listen: Listened = Field(
        default="",
        pattern=rf"^$|{_ADDRESS}",
        description="Address of the Prometheus endpoint, e.g. 127.0.0.1:7073; empty: off.",
    )
    log_level: Live[Literal["debug", "info", "warning", "error"]] = Field(
        default="info", description="Least severity of log lines."
    )
    log_format: Literal["auto", "json", "pretty"] = Field(
        default="auto", description="Form of log lines; auto: pretty on a terminal, else json."
    )
    limits: LimitsTable = Field(default=LimitsTable(), description="Bounds of memory.")
    supervision: SupervisionTable = Field(
        default=SupervisionTable(), description="Engine supervision."
    )
    link: LinkTable = Field(default=LinkTable(), description="Streams to the orchestrator.")
    models: ModelsTable = Field(default=ModelsTable(), description="Model files.")
    outbound: OutboundTable = Field(default=OutboundTable(), description="Fetching of models.")
    engine_logs: EngineLogsTable = Field(
        default=EngineLogsTable(), description="Output of engines."
    )
    pools: tuple[PoolTable, ...] = Field(
        default=(), max_length=256, description="The pools of this host, at least one."
    )
    auth: AuthTable = Field(default=AuthTable(), description="Who may look at this host.")
    tls: ServerTlsTable = Field(default=ServerTlsTable(), description="TLS of the inspection.")
    otlp_endpoint: str = Field(default="", exclude=True, description="(environment)")
    otlp_metrics_endpoint: str = Field(default="", exclude=True, description="(environment)")

    @model_validator(mode="after")
    def _checked(self) -> "Config":
        if re.fullmatch(_ID, self.host_id) is None:
            # Of the file it is checked as it is read; this is the default.
            raise ValueError(
                f"host_id: the name of this machine, {self.host_id!r}, is none: set one of up to "
                "100 letters without accents, digits, '.', '_', ':' and '-'"
            )
        exposed = listen_problems(self.listen, self.metrics_listen, self.auth, self.tls)
        for sentence in (*exposed, *link_problems(self.orchestrator, self.link)):
            raise ValueError(sentence)
        if not self.pools:
            raise ValueError("pools: at least one [[pools]] table is needed")
        ids = [pool.pool_id for pool in self.pools]
        twice = sorted({pool_id for pool_id in ids if ids.count(pool_id) > 1})
        if twice:
            raise ValueError(f"pools: pool_id used twice: {', '.join(twice)}")
        _refuse_long_waits(self.pools, self.supervision)
        return self


def _refuse_long_waits(pools: tuple[PoolTable, ...], limits: SupervisionTable) -> None:
    """Waits within an engine have to end before whoever waits for them gives up."""
    for pool in pools:
        engine = pool.engine
        waits = []
        if isinstance(engine, AttachingTable) and engine.launch is not None:
            grace = ("launch.stop_grace_ms", engine.launch.stop_grace_ms)
            waits.append((*grace, "stop_timeout_ms", limits.stop_timeout_ms))
        if isinstance(engine, TritonTable) and not engine.metrics_url:
            settles = ("cancel_settle_ms", engine.cancel_settle_ms)
            waits.append((*settles, "cancel_confirm_ms", limits.cancel_confirm_ms))
        for key, wait_ms, outer_key, outer_ms in waits:
            if wait_ms >= outer_ms:
                raise ValueError(
                    f"pools.{pool.pool_id}.engine.{key}: {wait_ms} must be below "
                    f"supervision.{outer_key} = {outer_ms}"
                )
