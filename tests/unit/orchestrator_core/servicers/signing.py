"""Signs digests as an operator does, by a key of one's own."""

import base64

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

DIGEST = "sha256:" + "ab" * 32


def public(key: Ed25519PrivateKey) -> str:
    """What stands between BEGIN and END in the PEM file of a public key."""
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(der).decode()


def signed(key: Ed25519PrivateKey, text: str = DIGEST) -> str:
    """A signature as the catalog states it."""
    return base64.b64encode(key.sign(text.encode())).decode()
