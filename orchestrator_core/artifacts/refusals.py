"""What callers are told when something cannot be done with artifacts. ORCH-3016."""

from orchestrator_core.core.outcome import FieldViolation, Reason, Refusal

RESOURCE = "llamaorch.orchestrator.v1.Artifact"
RETRY_MS = 1_000


def unknown(artifact_id: str, field: str = "") -> Refusal:
    """The answer for an artifact that is not known, no longer, or not to this client."""
    where = f"{field}: " if field else ""
    text = f"{where}no artifact {artifact_id[:64]!r} is known; it may have expired"
    return Refusal(
        Reason.NOT_FOUND, text, resource=artifact_id, metadata={"resource_type": RESOURCE}
    )


def invalid(field: str, must: str) -> Refusal:
    """The answer for one bad field."""
    wrong = FieldViolation(field, must)
    return Refusal(Reason.INVALID_PARAMS, f"{field} {must}", violations=(wrong,))


def no_room(label: str, text: str) -> Refusal:
    """A quota is reached: only a deletion or an expiry makes room, so nobody says when."""
    return Refusal(Reason.ADMISSION_REJECT, text, None, label, resource="artifacts")


def busy(label: str, text: str) -> Refusal:
    """Too many do the same at once: soon there is room."""
    return Refusal(Reason.ADMISSION_REJECT, text, RETRY_MS, label, resource="artifacts")


def in_use(artifact_id: str) -> Refusal:
    """A job that has not ended needs the artifact."""
    text = f"artifact {artifact_id} is the input of a job that has not ended: cancel it, or wait"
    return Refusal(
        Reason.ARTIFACT_IN_USE, text, resource=artifact_id, metadata={"resource_type": RESOURCE}
    )


def damaged(artifact_id: str, why: str) -> Refusal:
    """Content is not what was put: nothing of it is to be trusted."""
    text = f"artifact {artifact_id} cannot be read: {why}; put it again, which mends it"
    return Refusal(
        Reason.DATA_LOSS, text, resource=artifact_id, metadata={"resource_type": RESOURCE}
    )


def store_unavailable(text: str) -> Refusal:
    """The journal or the disk of artifacts cannot be written or read."""
    return Refusal(Reason.STORE_UNAVAILABLE, text, RETRY_MS)


def too_late(text: str) -> Refusal:
    """A client took too long."""
    return Refusal(Reason.DEADLINE, text)
