"""How connections are protected: the port of the inspection, and the way to the orchestrator.

gRPC asks for the inspection's certificates with every handshake, so a renewed one counts for the
next connection and open streams go on with the old one. A file that cannot be used is told once,
and the former certificate stays. The link reads its files and its token with each connection.
AUTH-1002, AUTH-1007.
"""

import asyncio
import ssl
from pathlib import Path

import grpc
from grpc import aio

from pool_managerd.config.problems import ConfigError
from pool_managerd.config.schema import Config
from pool_managerd.config.security import ServerTlsTable, loopback
from pool_managerd.engines.file_reads import FileReads
from pool_managerd.errors import SessionLostError
from pool_managerd.telemetry import log

Metadata = tuple[tuple[str, str], ...]
"""What calls to the orchestrator carry."""

TOKEN_BYTES_MAX = 4_096
_Stamp = tuple[tuple[int, int, int], ...]


class LinkCredentials:
    """The link's files, read anew for each use. Belongs to one event loop.

    A disk that hangs is waited for as long as for the orchestrator, and holds nobody else up.
    """

    def __init__(self) -> None:
        self._reads = FileReads()

    async def channel(self, config: Config, options: list[tuple[str, int]]) -> aio.Channel:
        """A channel to the orchestrator. Raises `SessionLostError` for files without use."""
        tls = config.link.tls
        if loopback(config.orchestrator):
            # The token would leave the machine by what `http_proxy` names.
            options = [*options, ("grpc.enable_http_proxy", 0)]
        if not tls.used:
            return aio.insecure_channel(config.orchestrator, options=options)
        named = [("grpc.ssl_target_name_override", tls.server_name)] if tls.server_name else []
        roots = await self._read(config, "link.tls.ca", tls.ca) if tls.ca else None
        key, certificate = None, None
        if tls.certificate:
            key = await self._read(config, "link.tls.key", tls.key)
            certificate = await self._read(config, "link.tls.certificate", tls.certificate)
        credentials = grpc.ssl_channel_credentials(roots, key, certificate)
        return aio.secure_channel(config.orchestrator, credentials, options=[*options, *named])

    async def metadata(self, config: Config) -> Metadata:
        """What every call to the orchestrator carries. Raises `SessionLostError`."""
        token = config.link.token.get_secret_value()
        if config.link.token_file:
            data = await self._read(config, "link.token_file", config.link.token_file)
            token = data[:TOKEN_BYTES_MAX].decode("ascii", "replace").strip()
            if not token or not token.isascii() or not token.isprintable():
                raise SessionLostError(f"link.token_file: {config.link.token_file} holds no token")
        return (("authorization", f"Bearer {token}"),) if token else ()

    async def _read(self, config: Config, setting: str, name: str) -> bytes:
        path, timeout_ms = Path(name), config.link.connect_timeout_ms
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await self._reads.run(path, path.read_bytes)
        except TimeoutError as error:
            late = f"was not read in link.connect_timeout_ms = {timeout_ms}: look at its disk"
            raise SessionLostError(f"{setting}: {path} {late}") from error
        except OSError as error:
            raise SessionLostError(f"{setting}: {path}: {error.strerror}") from error


def lost_sentence(error: aio.AioRpcError) -> str:
    """Why a call to the orchestrator failed, and what to change where this host must change it."""
    text = error.details() or ""
    for sign, sentence in _SENTENCES.items():
        if sign in text:
            return sentence
    if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return f"{text}; set link.token_file or link.token_env to a token with the role pool"
    return f"{error.code().name}: {text}"


def why_ended(error: BaseException) -> str:
    """Why a stream to the orchestrator ended, in one sentence."""
    if isinstance(error, aio.AioRpcError):
        return lost_sentence(error)
    if isinstance(error, TimeoutError):
        return "the orchestrator was silent for too long"
    return str(error)


_OTHER_NAME = (
    "the orchestrator's certificate is for another name: set link.tls.server_name, or "
    "`orchestrator` to a name in it"
)
# Source: the texts of BoringSSL and of gRPC 1.85 for connections and handshakes that fail.
_SENTENCES = {
    "certificate has expired": "the orchestrator's certificate has expired: renew it there",
    "certificate is not yet valid": "the orchestrator's certificate is not valid yet: look at the "
    "clocks",
    "CERTIFICATE_VERIFY_FAILED": "the orchestrator's certificate is not from an authority that is "
    "trusted here: set link.tls.ca to the authority's file",
    "not in peer certificate": _OTHER_NAME,
    "Hostname Verification Check failed": _OTHER_NAME,
    "Failed to create security handshaker": "link.tls: one of its files holds no certificate, or "
    "no key, in PEM form",
    "Connection refused": "nobody listens there: start orchestratord, or set `orchestrator` to its "
    "`listen`",
    "Domain name not found": "there is no such host: look for a typing error in `orchestrator`",
    "Failed parsing HTTP/2": "what listens there does not speak gRPC: set `orchestrator` to "
    "orchestratord's `listen`, not to its metrics_listen",
    "WRONG_VERSION_NUMBER": "the orchestrator does not speak TLS: set its tls.certificate, or "
    "leave link.tls out",
    # With the address before it: not of a connection that was open.
    ": Socket closed": "the orchestrator closed the connection at once: it may ask for TLS "
    "(link.tls.ca) or for a certificate of this host (link.tls.certificate)",
}


class ServerCertificates:
    """Makes gRPC's credentials from files. gRPC calls `fetch` on a thread of its own."""

    def __init__(self, files: ServerTlsTable) -> None:
        self._files = files
        self._stamp: _Stamp = ()
        self._told = ""

    def credentials(self) -> grpc.ServerCredentials:
        """The credentials of a port. Raises `ConfigError`."""
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
        except ConfigError as error:
            # Of files that are missing there is no stamp: each handshake finds that anew.
            if str(error) != self._told:
                self._told = str(error)
                log.warning(
                    "certificate_not_taken",
                    error=self._told,
                    human="A changed certificate cannot be used; the former one stays.",
                )
            return None
        log.info(
            "certificate_taken",
            file=self._files.certificate,
            human="New connections get the changed certificate.",
        )
        return configuration


def _configuration(files: ServerTlsTable) -> grpc.ServerCertificateConfiguration:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An empty password keeps OpenSSL from asking for one on the terminal.
        context.load_cert_chain(files.certificate, files.key, lambda: "")
    except (ssl.SSLError, OSError) as error:
        raise ConfigError([_sentence(files, error)]) from error
    authorities = None
    if files.client_ca:
        try:
            context.load_verify_locations(files.client_ca)
        except (ssl.SSLError, OSError) as error:
            text = f"tls.client_ca: {files.client_ca} holds no certificate in PEM form"
            raise ConfigError([text]) from error
        authorities = _read(files.client_ca)
    pairs = [(_read(files.key), _read(files.certificate))]
    return grpc.ssl_server_certificate_configuration(pairs, authorities)


def _sentence(files: ServerTlsTable, error: OSError) -> str:
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


def _stamp(files: ServerTlsTable) -> _Stamp:
    """What changes when a file does, or what its name stands for. Raises `ConfigError`."""
    found = []
    for path in filter(None, (files.certificate, files.key, files.client_ca)):
        try:
            status = Path(path).stat()
        except OSError as error:
            raise ConfigError([f"tls: {path}: {error.strerror}"]) from error
        found.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(found)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError([f"tls: {path}: {error.strerror}"]) from error
