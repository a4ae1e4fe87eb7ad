"""Parts of orchestratord as the configuration asks for them."""

from pathlib import Path

from orchestrator_core.artifacts.files import ArtifactFiles, TemporaryFiles
from orchestrator_core.artifacts.keeper import Artifacts
from orchestrator_core.config.access import OutboundTable
from orchestrator_core.config.catalog import CatalogTable
from orchestrator_core.config.schema import Config
from orchestrator_core.errors import CannotStartError
from orchestrator_core.recorder.explaining import Explainer
from orchestrator_core.recorder.recorder import RecordedCore, RecorderSettings
from orchestrator_core.runtime import Runtime
from orchestrator_core.servicers.outbound_judge import (
    NoSuchPolicyError,
    OutboundJudge,
    configured_judge,
)
from orchestrator_core.servicers.signatures import (
    NoSignaturesError,
    Signatures,
    configured_signatures,
)
from orchestrator_core.store.memory import MemoryStore
from orchestrator_core.store.port import Store
from orchestrator_core.store.sqlite import SqliteStore


def judge_of(table: OutboundTable) -> OutboundJudge:
    """Who judges connections of clients' tools. Raises `CannotStartError`."""
    try:
        return configured_judge(table)
    except NoSuchPolicyError as error:
        raise CannotStartError(str(error)) from error


def signatures_of(table: CatalogTable) -> Signatures:
    """What checks signatures of models. Raises `CannotStartError`."""
    try:
        return configured_signatures(table)
    except NoSignaturesError as error:
        raise CannotStartError(str(error)) from error


def store_of(config: Config) -> Store:
    """The journal."""
    if config.store.kind == "memory":
        return MemoryStore()
    return SqliteStore(Path(config.store.path), free_bytes_kept=config.store.free_bytes_kept)


def artifacts_of(config: Config, store: Store, runtime: Runtime) -> Artifacts:
    """Stored content; beside the journal unless it has a place of its own."""
    limits = config.artifacts
    if limits.path or config.store.kind == "sqlite":
        directory = Path(limits.path or Path(config.store.path).parent / "artifacts")
        files = ArtifactFiles(directory, limits.free_bytes_min)
    else:
        files = TemporaryFiles(limits.free_bytes_min)
    return Artifacts(limits, files, store, runtime.clock.now_ms, runtime.inputs_in_use)


def explainer_of(runtime: Runtime) -> Explainer | None:
    """What explains decisions, where they are recorded."""
    core = runtime.core
    return Explainer(core.recorder) if isinstance(core, RecordedCore) else None


def recorder_of(config: Config, started_ms: int) -> RecorderSettings | None:
    """Where to record; None for nowhere. A journal in memory says that nothing shall be kept."""
    recorder = config.recorder
    if not recorder.enabled or (config.store.kind == "memory" and not recorder.path):
        return None
    directory = Path(recorder.path or Path(config.store.path).parent / "flight")
    return RecorderSettings(directory, started_ms, recorder.segment_bytes, recorder.segments_max)
