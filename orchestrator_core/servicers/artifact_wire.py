"""Messages of ArtifactService to values and back; every bad field is named. ORCH-3016."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from llamaorch.orchestrator.v1 import artifact_service_pb2 as pb
from orchestrator_core.artifacts.description import ID_DIGITS, Description
from orchestrator_core.artifacts.files import DIGEST
from orchestrator_core.artifacts.index import Query
from orchestrator_core.artifacts.prompts import CHAT, TEXT
from orchestrator_core.config.storage import ArtifactsTable
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.errors import RefusalError
from orchestrator_core.store.artifact import ArtifactKind, ArtifactRecord
from orchestrator_core.wire.limits import WireLimits
from orchestrator_core.wire.views import timestamp
from orchestrator_core.wire.violations import Violations

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

BINARY = "application/octet-stream"
PAGE_DEFAULT = 100
PAGE_MAX = 1_000
SEQ_DIGITS_MAX = 18
_ID = re.compile(rf"[0-9a-f]{{{ID_DIGITS}}}")
_TAG = re.compile(r"[A-Za-z0-9._:/-]{1,64}")
# Source: RFC 6838, section 4.2.
_MEDIA_TYPE = re.compile(r"(?=.{1,128}$)[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*/[A-Za-z0-9!#$&^_.+-]+")
_LIMITS = WireLimits()
_MS_PER_S, _NANOS_PER_MS = 1_000, 1_000_000
_Instants = Literal["created_from", "created_before"]

_KINDS = {
    pb.ARTIFACT_KIND_PLAN: ArtifactKind.PLAN,
    pb.ARTIFACT_KIND_DIFF: ArtifactKind.DIFF,
    pb.ARTIFACT_KIND_TRACE: ArtifactKind.TRACE,
    pb.ARTIFACT_KIND_INPUT: ArtifactKind.INPUT,
    pb.ARTIFACT_KIND_OTHER: ArtifactKind.OTHER,
}
_KINDS_TO_WIRE = {kind: number for number, kind in _KINDS.items()}


def description(header: pb.ArtifactHeader, owner: str, limits: ArtifactsTable) -> Description:
    """What a header says. Raises `RefusalError` naming every bad field."""
    bad = Violations()
    kind = _KINDS.get(header.kind, ArtifactKind.OTHER)
    media_type = header.media_type.lower() or BINARY
    what = "TYPE/SUBTYPE without parameters, at most 128 characters"
    bad.pattern("header.media_type", media_type, _MEDIA_TYPE, what)
    if kind is ArtifactKind.INPUT and media_type not in (TEXT, CHAT):
        bad.add("header.media_type", f"of an input must be {TEXT} or {CHAT}")
    if bad.count("header.tags", len(header.tags), limits.tags_max):
        _each("header.tags", header.tags, _TAG, "1 to 64 characters of [A-Za-z0-9._:/-]", bad)
    if bad.count("header.parent_ids", len(header.parent_ids), limits.parents_max):
        what = f"the id of an artifact: {ID_DIGITS} digits of 0-9a-f"
        _each("header.parent_ids", header.parent_ids, _ID, what, bad)
    _check_labels(header, bad)
    bad.length("header.job_id", header.job_id, _LIMITS.id_chars_max)
    bad.length("header.session_id", header.session_id, _LIMITS.id_chars_max)
    what = "64 lower-case hexadecimal digits"
    bad.pattern("header.expected_sha256", header.expected_sha256, DIGEST, what)
    _refuse(bad)
    told = header.expected_size_bytes if header.HasField("expected_size_bytes") else None
    return Description(
        owner=owner,
        kind=kind,
        media_type=media_type,
        tags=tuple(sorted(set(header.tags))),
        parent_ids=tuple(sorted(set(header.parent_ids))),
        labels=tuple(sorted(header.labels.items())),
        job_id=header.job_id,
        session_id=header.session_id,
        expected_sha256=header.expected_sha256,
        expected_size_bytes=told,
    )


def query(request: pb.ListArtifactsRequest, owner: str | None) -> tuple[Query, int | None, int]:
    """Which artifacts are listed, below which number, and how many. Raises `RefusalError`."""
    bad = Violations()
    bad.count("tags", len(request.tags), 256)
    token = request.page_token
    if token and not (token.isascii() and token.isdigit() and len(token) <= SEQ_DIGITS_MAX):
        bad.add("page_token", "take it from the last answer, or leave it empty")
    asked = Query(
        owner=owner,
        kind=_KINDS.get(request.kind),
        tags=frozenset(request.tags),
        parent_id=request.parent_id,
        job_id=request.job_id,
        session_id=request.session_id,
        from_ms=_instant(request, "created_from", bad),
        before_ms=_instant(request, "created_before", bad),
    )
    _refuse(bad)
    size = min(request.page_size or PAGE_DEFAULT, PAGE_MAX)
    return asked, int(token) if token else None, size


def to_proto(record: ArtifactRecord) -> pb.Artifact:
    """An artifact as clients see it."""
    return pb.Artifact(
        artifact_id=record.artifact_id,
        sha256=record.sha256,
        size_bytes=record.size_bytes,
        kind=_KINDS_TO_WIRE[record.kind],
        media_type=record.media_type,
        tags=record.tags,
        parent_ids=record.parent_ids,
        labels=dict(record.labels),
        job_id=record.job_id,
        session_id=record.session_id,
        owner=record.owner,
        created_at=timestamp(record.created_ms),
        expires_at=timestamp(record.expires_ms),
    )


def _each(
    field: str, values: Sequence[str], pattern: re.Pattern[str], what: str, bad: Violations
) -> None:
    for index, value in enumerate(values):
        if pattern.fullmatch(value) is None:
            bad.add(f"{field}[{index}]", f"must be {what}")


def _check_labels(header: pb.ArtifactHeader, bad: Violations) -> None:
    if not bad.count("header.labels", len(header.labels), _LIMITS.labels_max):
        return
    for key, value in sorted(header.labels.items()):
        path = f"header.labels[{key[:32]}]"
        if not 1 <= len(key.encode()) <= _LIMITS.label_key_bytes_max:
            bad.add(path, f"its key must have 1 to {_LIMITS.label_key_bytes_max} bytes of UTF-8")
        if len(value.encode()) > _LIMITS.label_value_bytes_max:
            bad.add(path, f"its value may have {_LIMITS.label_value_bytes_max} bytes of UTF-8")


def _instant(request: pb.ListArtifactsRequest, field: _Instants, bad: Violations) -> int | None:
    if not request.HasField(field):
        return None
    told: Timestamp = getattr(request, field)
    if told.seconds < 0 or not 0 <= told.nanos < _MS_PER_S * _NANOS_PER_MS:
        bad.add(field, "must be a valid instant after 1970")
    # Up to the next millisecond, so that an instant between two stands for the later one.
    return int(told.seconds) * _MS_PER_S + -(-int(told.nanos) // _NANOS_PER_MS)


def _refuse(bad: Violations) -> None:
    if bad.total:
        first = bad.found[0]
        more = f" (and {bad.total - 1} more)" if bad.total > 1 else ""
        text = f"{first.field} {first.description}{more}"
        raise RefusalError(Refusal(Reason.INVALID_PARAMS, text, violations=bad.found))
