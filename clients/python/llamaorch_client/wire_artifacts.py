# SPDX-License-Identifier: Apache-2.0
"""Artifacts between the wire and the client's own types."""

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from llamaorch.orchestrator.v1 import artifact_service_pb2 as pb
from llamaorch_client import wire
from llamaorch_client.artifact import Artifact, ArtifactAbout, ArtifactFilter, ArtifactKind


def header(about: ArtifactAbout, sha256: str, size_bytes: int | None) -> pb.ArtifactHeader:
    """The first message of a put; what is not known of the content is left out."""
    return pb.ArtifactHeader(
        kind=pb.ArtifactKind.Value(f"ARTIFACT_KIND_{about.kind.value}"),
        media_type=about.media_type,
        tags=about.tags,
        parent_ids=about.parent_ids,
        labels=dict(about.labels),
        job_id=about.job_id,
        session_id=about.session_id,
        expected_sha256=sha256,
        expected_size_bytes=size_bytes,
    )


def artifact(message: pb.Artifact) -> Artifact:
    """What is known of stored content."""
    return Artifact(
        artifact_id=message.artifact_id,
        sha256=message.sha256,
        size_bytes=message.size_bytes,
        kind=wire.enum(ArtifactKind, pb.DESCRIPTOR, message.kind),
        media_type=message.media_type,
        tags=tuple(message.tags),
        parent_ids=tuple(message.parent_ids),
        labels=dict(message.labels),
        job_id=message.job_id,
        session_id=message.session_id,
        owner=message.owner,
        created_at=wire.instant(message.created_at, message.HasField("created_at")),
        expires_at=wire.instant(message.expires_at, message.HasField("expires_at")),
    )


def list_request(where: ArtifactFilter, token: str, page_size: int) -> pb.ListArtifactsRequest:
    """A request for one page."""
    return pb.ListArtifactsRequest(
        page_size=page_size,
        page_token=token,
        kind=pb.ArtifactKind.Value(f"ARTIFACT_KIND_{where.kind.value}"),
        tags=where.tags,
        parent_id=where.parent_id,
        job_id=where.job_id,
        session_id=where.session_id,
        created_from=_timestamp(where.created_from),
        created_before=_timestamp(where.created_before),
    )


def _timestamp(instant: datetime | None) -> Timestamp | None:
    if instant is None:
        return None
    message = Timestamp()
    message.FromDatetime(instant)
    return message
