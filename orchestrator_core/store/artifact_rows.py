"""Rows of the artifact index in the SQLite journal."""

import sqlite3
from collections.abc import Sequence
from typing import assert_never

from orchestrator_core.store import codec, schema
from orchestrator_core.store.artifact import ArtifactChange, ArtifactForgotten, ArtifactRecord


def write(connection: sqlite3.Connection, changes: Sequence[ArtifactChange], epoch: int) -> None:
    """Writes changes in their order, within the transaction that is open."""
    for change in changes:
        match change:
            case ArtifactRecord():
                text = codec.ARTIFACT.encode(change, codec.place(change.artifact_id, change.seq))
                connection.execute(
                    schema.PUT_ARTIFACT,
                    (change.artifact_id, change.seq, epoch, codec.FORMAT_VERSION, text),
                )
            case ArtifactForgotten():
                connection.execute(schema.DELETE_ARTIFACT, (change.artifact_id,))
            case _:
                assert_never(change)
