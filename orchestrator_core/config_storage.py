"""Settings of what is on disk: the journal and the flight recorder."""

from typing import Literal

from pydantic import Field

from orchestrator_core.config_table import Live, Milliseconds, Table


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
