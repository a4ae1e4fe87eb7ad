"""Pages that fit into a message."""

from llamaorch.orchestrator.v1 import artifact_service_pb2 as pb
from orchestrator_core.servicers.paging import PAGE_BYTES_MAX, fitting


def test_a_page_ends_where_its_message_would_be_too_long() -> None:
    """The next one goes on from there; one that is too long alone is a page nonetheless."""
    large = [pb.Artifact(owner="x" * (PAGE_BYTES_MAX // 3)) for _ in range(5)]
    whole = pb.Artifact(owner="x" * PAGE_BYTES_MAX)

    assert len(fitting(large)) == 2
    assert fitting([whole, whole]) == [whole]
    assert fitting([pb.Artifact()] * 3) == [pb.Artifact()] * 3
    assert fitting([]) == []
