"""Why there is no session with the orchestrator: what to change, in no words of gRPC's."""

import grpc
import pytest
from grpc import aio

from pool_managerd.credentials import why_ended


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ("Failed to connect to remote host: Connection refused", "nobody listens there: start"),
        ("Domain name not found", "there is no such host: look for a typing error in `orch"),
        ("Failed parsing HTTP/2", "what listens there does not speak gRPC: set `orchestrator`"),
        ("Hostname Verification Check failed.", "certificate is for another name: set link.tls."),
        ("Failed to create security handshaker.", "link.tls: one of its files holds no cert"),
    ],
)
def test_a_connection_that_fails_says_what_to_change(raw: str, told: str) -> None:
    """The setting is named; addresses of all kinds and codes are not."""
    text = f"failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:7070: {raw}"
    error = aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, aio.Metadata(), aio.Metadata(), details=text
    )

    said = why_ended(error)

    assert told in said
    assert "ipv4" not in said
