"""Certificates of a server that change while it serves. AUTH-1002."""

from pathlib import Path

import structlog

from orchestrator_core.auth.tls import ServerCertificates, TlsFiles
from tests.integration.security.certificates import Authority


def test_a_certificate_that_is_missing_is_told_once_however_many_connect(tmp_path: Path) -> None:
    """Anybody who connects must not fill the log; once it is there again a later loss is told."""
    authority = Authority()
    paths = authority.issue("server").write(tmp_path, "server")
    certificates = ServerCertificates(TlsFiles(*paths))
    certificates.credentials()

    with structlog.testing.capture_logs() as lines:
        for _ in range(2):
            (tmp_path / "server.pem").unlink()
            for _ in range(5):
                assert certificates.fetch() is None
            authority.issue("server").write(tmp_path, "server")
            assert certificates.fetch() is not None

    told = [line["event"] for line in lines]
    assert told == ["certificate_not_taken", "certificate_taken"] * 2
