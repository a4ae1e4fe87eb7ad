"""A machine of made-up memory, on which a preflight looks at pools."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pool_managerd.config.schema import Config, PoolTable
from pool_managerd.core.device import Device, DeviceKind
from pool_managerd.core.ledger import Ledger
from pool_managerd.devices.host_memory import HostMemory
from pool_managerd.engines.port import EngineInfo
from pool_managerd.models.files import ModelFiles
from pool_managerd.preflight.host import LOOK_INTERVAL_MS, HostPreflight, PreflightDeps

GIB = 1 << 30
WAIT_MS = 1_000
# What the tiny model takes on a GPU besides its context, with 2 slots of 1,024 tokens.
SMALL = 4 << 20


def gpu(name: str, free: int, total: int = 12 * GIB) -> Device:
    """A GPU with so many bytes free."""
    return Device(
        f"GPU-{name}",
        DeviceKind.GPU,
        "RTX 3060",
        memory_total_bytes=total,
        memory_free_bytes=free,
    )


ROOMY = HostMemory(64 * GIB, 32 * GIB)


@dataclass
class Box:
    """A machine whose memory a test changes, and whose time passes while somebody waits."""

    devices: tuple[Device, ...] = (gpu("a", 12 * GIB),)
    host: HostMemory = ROOMY
    on_look: Callable[["Box", int], None] = lambda _box, _number: None
    ledger: Ledger = field(default_factory=Ledger)
    elapsed_ms: int = 0
    looks: int = 0
    # When the devices were read; None: a moment ago, whenever somebody asks.
    read_at_ms: int | None = None

    def now_ms(self) -> int:
        """Time that passed in waits alone."""
        return self.elapsed_ms

    def wall_ns(self) -> int:
        """Nobody asks."""
        return 0

    async def pause(self, wait_ms: int) -> None:
        """Time passes, and the test changes what the next look sees."""
        assert wait_ms == LOOK_INTERVAL_MS
        self.elapsed_ms += wait_ms
        self.looks += 1
        assert self.looks < 100, "a wait is bounded"
        self.on_look(self, self.looks)

    def preflight(self) -> HostPreflight:
        """The check of this machine."""
        return HostPreflight(
            PreflightDeps(
                clock=self,
                files=ModelFiles(Config.model_validate({"pools": [POOL]}), self),
                ledger=self.ledger,
                devices=lambda _table: self.devices,
                read_at_ms=lambda: (
                    self.elapsed_ms + 1 if self.read_at_ms is None else self.read_at_ms
                ),
                wait_ms=WAIT_MS,
                host_memory=lambda: self.host,
                pause=self.pause,
            )
        )


POOL = {"pool_id": "p", "engine": {"kind": "mock"}}


def table(model: Path, pool_id: str = "p", gpu_layers: int = -1, **pool: object) -> PoolTable:
    """A pool with two slots on the GPU."""
    engine = {"kind": "embedded", "model_path": str(model), "model_id": "m", "slots": 2}
    engine |= {"ctx_per_slot": 1_024, "gpu_layers": gpu_layers}
    return PoolTable.model_validate({"pool_id": pool_id, "engine": engine, **pool})


def info(host_bytes: int | None = None, *device_bytes: int) -> EngineInfo:
    """What an engine says after its start."""
    return EngineInfo(
        "e", "1", "m", "", "s", 2, 64, host_bytes=host_bytes, device_bytes=device_bytes
    )


def served(model: Path, pool: dict[str, object] | None = None, **engine: object) -> PoolTable:
    """A pool whose llama-server, or another one, is launched with this model."""
    kind = {"kind": "llama_server", "model_id": "m", "slots": 2, "model_path": str(model)}
    launch = {"command": ["serve", "{model_path}"]}
    return PoolTable.model_validate(
        {"pool_id": "p", "engine": {**kind, "launch": launch, **engine}, **(pool or {})}
    )


def vllm(folder: Path, **pool: object) -> PoolTable:
    """A pool of a launched vLLM."""
    engine = {"kind": "openai", "flavor": "vllm", "ctx_max": 4096}
    return served(folder, pool, **engine)
