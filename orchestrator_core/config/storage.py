"""Settings of what is on disk: the journal, the flight recorder and artifacts."""

from typing import Literal

from pydantic import Field

from orchestrator_core.config.table import DAY_MS, Live, Milliseconds, Table


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
    bytes_max: Live[int] = Field(
        default=1 << 30,
        ge=1 << 20,
        le=1 << 40,
        description="Content at which the oldest ended jobs go early, but for jobs.finished_max.",
    )
    prune_every_ms: Live[Milliseconds] = Field(
        default=60_000, description="Time between two deletions of what is kept no longer."
    )
    free_bytes_kept: int = Field(
        default=64 << 20,
        ge=0,
        le=1 << 40,
        description="Unused bytes that the SQLite file may have; more goes back to the disk.",
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


class ArtifactsTable(Table):
    """Plans, diffs, traces and long inputs of clients. ORCH-3097."""

    path: str = Field(
        default="",
        max_length=4096,
        description="Directory of their content; empty: `artifacts` beside the journal's file, for"
        " `memory` one that goes with the process.",
    )
    artifact_bytes_max: int = Field(
        default=256 << 20, ge=1, le=1 << 40, description="Largest artifact."
    )
    input_bytes_max: int = Field(
        default=16 << 20,
        ge=1,
        le=256 << 20,
        description="Largest artifact that is an input of jobs; it is held in memory, several times"
        " over, while it is sent to a pool.",
    )
    quota_bytes: int = Field(
        default=10 << 30,
        ge=1,
        le=1 << 50,
        description="Content of all artifacts; what would exceed it is refused. Equal content"
        " counts once.",
    )
    quota_bytes_per_identity: int = Field(
        default=0, ge=0, le=1 << 50, description="Content of one client's artifacts; 0: no limit."
    )
    count_max: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="Artifacts; each takes up to 15 kB of memory, usually less than one.",
    )
    free_bytes_min: int = Field(
        default=256 << 20,
        ge=0,
        le=1 << 50,
        description="Bytes that artifacts leave free on their disk, which may be the journal's.",
    )
    retention_ms: int = Field(
        default=30 * DAY_MS,
        ge=1,
        le=3_650 * DAY_MS,
        description="How long an artifact is kept after it was last put; store.prune_every_ms says"
        " how often it is looked.",
    )
    tags_max: int = Field(default=32, ge=0, le=256, description="Tags of one artifact.")
    parents_max: int = Field(default=32, ge=0, le=256, description="Parents of one artifact.")
    uploads_max: int = Field(
        default=16, ge=1, le=1_000, description="Artifacts that may be put at once."
    )
    uploads_per_identity_max: int = Field(
        default=4, ge=1, le=1_000, description="Artifacts that one client may put at once."
    )
    downloads_max: int = Field(
        default=32, ge=1, le=1_000, description="Artifacts that may be read at once."
    )
    idle_timeout_ms: Milliseconds = Field(
        default=30_000, description="Longest pause of a client that puts or reads an artifact."
    )
    transfer_timeout_ms: Milliseconds = Field(
        default=3_600_000, description="Longest time to put or to read an artifact."
    )
