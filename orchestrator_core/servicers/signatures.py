"""Signatures of models' digests: Ed25519, checked with keys that the operator trusts. ORCH-3037.

What is signed is the text of the digest. The library is an extra of the package; without it, keys
cannot be trusted, so a server that is told to trust some does not start.
"""

import base64
import enum
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator_core.config.catalog import CatalogTable
from orchestrator_core.errors import OrchestratorError


class SignatureVerdict(enum.Enum):
    """What became of checking a signature."""

    VERIFIED = "verified"
    MISSING = "missing"
    UNCHECKED = "unchecked"
    INVALID = "invalid"


class NoSignaturesError(OrchestratorError):
    """Keys are trusted, but nothing here can check a signature; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A verdict, and the name of the key that made a VERIFIED signature."""

    verdict: SignatureVerdict
    signed_by: str = ""


Check = Callable[[bytes, bytes], bool]
"""True when a signature, the first one, is one of the data."""


class Signatures:
    """Trusted keys by name.

    Raises:
        NoSignaturesError: when there are some, and the library is not installed.
    """

    def __init__(self, trusted_keys: Mapping[str, str]) -> None:
        self._checks = {name: _check_of(text) for name, text in trusted_keys.items()}

    def check(self, digest: str, signature: str) -> Checked:
        """Checks a signature in base64 of a digest. O(trusted keys)."""
        if not signature:
            return Checked(SignatureVerdict.MISSING)
        if not self._checks:
            return Checked(SignatureVerdict.UNCHECKED)
        made, data = base64.b64decode(signature), digest.encode()
        for name, check in self._checks.items():
            if check(made, data):
                return Checked(SignatureVerdict.VERIFIED, name)
        return Checked(SignatureVerdict.INVALID)


def configured_signatures(table: CatalogTable) -> Signatures:
    """What a configuration trusts. Raises `NoSignaturesError`."""
    return Signatures({name: key.public_key for name, key in table.trusted_keys.items()})


def _check_of(key: str) -> Check:
    try:
        exceptions = importlib.import_module("cryptography.exceptions")
        serialization = importlib.import_module("cryptography.hazmat.primitives.serialization")
    except ImportError as error:
        raise NoSignaturesError(
            "catalog.trusted_keys needs the library cryptography: "
            "install the extra, llamaorch[signatures], or trust no keys"
        ) from error
    public = serialization.load_der_public_key(base64.b64decode(key))

    def check(signature: bytes, data: bytes) -> bool:
        try:
            public.verify(signature, data)
        except exceptions.InvalidSignature:
            return False
        return True

    return check
