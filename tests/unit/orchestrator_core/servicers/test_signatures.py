"""Signatures of digests, made as an operator makes them. ORCH-3037."""

import importlib
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator_core.config.schema import Config
from orchestrator_core.servicers import signatures
from orchestrator_core.servicers.signatures import (
    Checked,
    NoSignaturesError,
    Signatures,
    SignatureVerdict,
    configured_signatures,
)
from tests.unit.orchestrator_core.servicers.signing import DIGEST, public, signed


def test_a_signature_is_worth_what_its_key_is() -> None:
    """Any trusted key will do, and is named; nothing else is taken for verified."""
    old, new, stranger = (Ed25519PrivateKey.generate() for _ in range(3))
    trusting = Signatures({"old": public(old), "new": public(new)})

    assert trusting.check(DIGEST, signed(new)) == Checked(SignatureVerdict.VERIFIED, "new")
    assert trusting.check(DIGEST, signed(stranger)) == Checked(SignatureVerdict.INVALID)
    assert trusting.check(DIGEST[:-1], signed(new)) == Checked(SignatureVerdict.INVALID)
    assert trusting.check(DIGEST, "") == Checked(SignatureVerdict.MISSING)
    assert Signatures({}).check(DIGEST, signed(new)) == Checked(SignatureVerdict.UNCHECKED)


def test_the_configuration_takes_such_keys() -> None:
    """As they are printed by openssl."""
    key = public(Ed25519PrivateKey.generate())

    trusted = {"release": {"public_key": key}}
    table = Config.model_validate({"catalog": {"trusted_keys": trusted}}).catalog
    checked = configured_signatures(table).check(DIGEST, "")

    assert table.trusted_keys["release"].public_key == key
    assert checked == Checked(SignatureVerdict.MISSING)


def test_without_the_library_no_key_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that could not check them says what to install; one without keys needs nothing."""
    find: Callable[..., object] = importlib.import_module

    def missing(name: str, *more: object) -> object:
        if name.startswith("cryptography"):
            raise ImportError(name)
        return find(name, *more)

    monkeypatch.setattr(signatures.importlib, "import_module", missing)

    assert Signatures({}).check(DIGEST, "").verdict is SignatureVerdict.MISSING
    with pytest.raises(NoSignaturesError, match=r"llamaorch\[signatures\]"):
        Signatures({"release": public(Ed25519PrivateKey.generate())})
