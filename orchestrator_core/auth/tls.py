"""The server's side of TLS: certificates from files that are read anew when they change.

gRPC asks for certificates with every handshake, so a renewed one counts for the next connection and
open streams go on with the old one. A file that cannot be used is told once, and the former
certificate stays. AUTH-1002.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from orchestrator_core.errors import OrchestratorError

_log = structlog.get_logger("orchestratord")
_Stamp = tuple[tuple[int, int, int], ...]


class TlsError(OrchestratorError):
    """Certificates cannot be used; the message names the file and says what to change."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a server; `client_ca` is empty where callers need no certificate."""

    certificate: str
    key: str
    client_ca: str = ""

    def paths(self) -> tuple[str, ...]:
        """Those that there are."""
        return tuple(path for path in (self.certificate, self.key, self.client_ca) if path)


class ServerCertificates:
    """Makes gRPC's credentials from files. gRPC calls `fetch` on a thread of its own."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamp: _Stamp = ()
        self._told = ""

    def credentials(self) -> grpc.ServerCredentials:
        """The credentials of a port. Raises `TlsError`."""
        self._stamp = _stamp(self._files)
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._files),
            self.fetch,  # type: ignore[arg-type] # None is documented, the stubs lack it
            require_client_authentication=bool(self._files.client_ca),
        )

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """What has changed since it was asked last; None for nothing, or nothing of use."""
        try:
            stamp = _stamp(self._files)
            self._told = ""
            if stamp == self._stamp:
                return None
            # Also what cannot be used is looked at, and told, only once.
            self._stamp = stamp
            configuration = _configuration(self._files)
        except TlsError as error:
            # Of files that are missing there is no stamp: each handshake finds that anew.
            if str(error) != self._told:
                self._told = str(error)
                _log.warning(
                    "certificate_not_taken",
                    error=self._told,
                    human="A changed certificate cannot be used; the former one stays.",
                )
            return None
        _log.info(
            "certificate_taken",
            file=self._files.certificate,
            human="New connections get the changed certificate.",
        )
        return configuration


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An empty password keeps OpenSSL from asking for one on the terminal.
        context.load_cert_chain(files.certificate, files.key, lambda: "")
    except (ssl.SSLError, OSError) as error:
        raise TlsError(_sentence(files, error)) from error
    authorities = None
    if files.client_ca:
        try:
            context.load_verify_locations(files.client_ca)
        except (ssl.SSLError, OSError) as error:
            text = f"tls.client_ca: {files.client_ca} holds no certificate in PEM form"
            raise TlsError(text) from error
        authorities = _read(files.client_ca)
    pairs = [(_read(files.key), _read(files.certificate))]
    return grpc.ssl_server_certificate_configuration(pairs, authorities)


def _sentence(files: TlsFiles, error: OSError) -> str:
    if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
        return f"tls.key: {files.key} is not the key of the certificate in {files.certificate}"
    for setting, path in (("tls.certificate", files.certificate), ("tls.key", files.key)):
        if "-----BEGIN " not in _read(path).decode("ascii", "replace"):
            return f"{setting}: {path} is not in PEM form"
    return (
        f"tls.certificate, tls.key: {files.certificate} and {files.key} cannot be used "
        f"({getattr(error, 'reason', None) or error}); they have to be a PEM chain, the server's "
        "own certificate first, and its key without a password"
    )


def _stamp(files: TlsFiles) -> _Stamp:
    """What changes when a file does, or what its name stands for. Raises `TlsError`."""
    found = []
    for path in files.paths():
        try:
            status = Path(path).stat()
        except OSError as error:
            raise TlsError(f"tls: {path}: {error.strerror}") from error
        found.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(found)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise TlsError(f"tls: {path}: {error.strerror}") from error
