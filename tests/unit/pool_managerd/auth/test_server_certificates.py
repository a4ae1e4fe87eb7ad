"""Certificates of pool-managerd's server that change while it serves. AUTH-1002."""

from pathlib import Path

import structlog

from pool_managerd.auth.credentials import ServerCertificates
from pool_managerd.config.security import ServerTlsTable
from tests.integration.security.certificates import Authority


def test_a_certificate_that_is_missing_is_told_once_however_many_connect(tmp_path: Path) -> None:
    """Anybody who connects must not fill the log; once it is there again a later loss is told."""
    authority = Authority()
    certificate, key = authority.issue("server").write(tmp_path, "server")
    certificates = ServerCertificates(ServerTlsTable(certificate=certificate, key=key))
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
