"""What metrics show of the parts of orchestratord, read all at once."""

import importlib.metadata
import os
from pathlib import Path

from orchestrator_core.artifacts.keeper import Artifacts
from orchestrator_core.config.schema import Config
from orchestrator_core.config.work import JobsTable
from orchestrator_core.recorder.recorder import RecordedCore
from orchestrator_core.runtime import Runtime
from orchestrator_core.telemetry.service_metrics import ArtifactFacts, ServiceFacts

# Source: sqlite.org/tempfiles.html, section 2.2.
_FILES = (("main", ""), ("wal", "-wal"))


class ServedFacts:
    """Reads the parts of one server. `core_form` says whether the core is compiled."""

    def __init__(
        self, config: Config, runtime: Runtime, core_form: str, kept: Artifacts | None = None
    ) -> None:
        self._kept = kept
        self._runtime = runtime
        self._core_form = core_form
        self._version = importlib.metadata.version("llamaorch")
        self._relay_limit_bytes = config.jobs.output_bytes_total
        self._journal = Path(config.store.path) if config.store.kind == "sqlite" else None

    def reconfigure(self, jobs: JobsTable) -> None:
        """Shows other limits."""
        self._relay_limit_bytes = jobs.output_bytes_total

    def read(self) -> ServiceFacts:
        """What is so now. On the event loop: a few calls of the file system, no waiting."""
        runtime, core = self._runtime, self._runtime.core
        recorder = core.recorder if isinstance(core, RecordedCore) else None
        return ServiceFacts(
            version=self._version,
            core_form=self._core_form,
            journal_bytes=self._journal_bytes(),
            disk_free_bytes=self._disk_free_bytes(),
            recorder_lost_steps=recorder.lost_steps if recorder else None,
            recorder_waiting_steps=recorder.waiting_steps if recorder else None,
            relay_held_bytes=runtime.relay.bytes_held,
            relay_limit_bytes=self._relay_limit_bytes,
            hosts_connected=len(runtime.hosts.links),
            artifacts=None if self._kept is None else _artifact_facts(self._kept),
        )

    def _journal_bytes(self) -> dict[str, int]:
        sizes = {}
        for name, suffix in _FILES if self._journal is not None else ():
            try:
                sizes[name] = Path(f"{self._journal}{suffix}").stat().st_size
            except OSError:
                continue
        return sizes

    def _disk_free_bytes(self) -> int | None:
        if self._journal is None:
            return None
        try:
            disk = os.statvfs(self._journal.parent)
        except OSError:
            return None
        return disk.f_bavail * disk.f_frsize


def _artifact_facts(kept: Artifacts) -> ArtifactFacts:
    counts = kept.counts
    return ArtifactFacts(
        count=len(kept.index),
        count_max=kept.limits.count_max,
        room_taken_bytes=kept.room.taken_bytes,
        quota_bytes=kept.limits.quota_bytes,
        refused=counts.refused,
        moved_bytes=counts.moved_bytes,
        damaged=counts.damaged,
    )
