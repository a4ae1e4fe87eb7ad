"""Tokens, their table of roles, and the command that makes them."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import given
from hypothesis import strategies as st

from llamaorch.orchestrator.v1 import (
    artifact_service_pb2,
    catalog_service_pb2,
    config_service_pb2,
    orchestrator_service_pb2,
    policy_service_pb2,
    pool_admin_service_pb2,
    session_service_pb2,
)
from llamaorch.pool.v1 import pool_registry_service_pb2
from orchestrator_core.auth import roles, tokens
from orchestrator_core.auth.roles import ALLOWED, OPEN, needed
from orchestrator_core.auth.tokens import (
    Role,
    TokenEntry,
    Tokens,
    bearer,
    fingerprint,
    new_token,
    sha256_of,
)
from orchestrator_core.clock import wall_s
from orchestrator_core.config.derived import tokens as configured
from orchestrator_core.config.loading import load_config

FILES = (
    artifact_service_pb2,
    config_service_pb2,
    catalog_service_pb2,
    orchestrator_service_pb2,
    policy_service_pb2,
    pool_admin_service_pb2,
    session_service_pb2,
    pool_registry_service_pb2,
    health_pb2,
    reflection_pb2,
)


def services() -> Iterator[ServiceDescriptor]:
    """Every service that orchestratord serves, from the descriptors of the wire."""
    for file in FILES:
        yield from file.DESCRIPTOR.services_by_name.values()


def test_every_method_of_every_service_has_its_row_and_there_is_no_other() -> None:
    """A new call has to be given its roles: until then it is for admins alone. AUTH-1003."""
    served = {
        f"/{service.full_name}/{method.name}"
        for service in services()
        for method in service.methods
    }

    assert set(ALLOWED) == served


@pytest.mark.parametrize(
    ("service", "method", "callers"),
    [
        ("orchestrator.v1.OrchestratorService", "Enqueue", {"client", "admin"}),
        ("orchestrator.v1.OrchestratorService", "Exchange", {"client", "admin"}),
        ("orchestrator.v1.SessionService", "DeleteSession", {"client", "admin"}),
        ("orchestrator.v1.PoolAdminService", "ListPools", {"client", "admin"}),
        ("orchestrator.v1.PoolAdminService", "DrainPool", {"admin"}),
        ("orchestrator.v1.PoolAdminService", "ReloadPool", {"admin"}),
        ("orchestrator.v1.CatalogService", "VerifyModel", {"client", "admin"}),
        ("orchestrator.v1.CatalogService", "RegisterModel", {"admin"}),
        ("pool.v1.PoolRegistryService", "Dispatch", {"pool", "admin"}),
        ("pool.v1.PoolRegistryService", "ReportSnapshots", {"pool", "admin"}),
        ("orchestrator.v1.OrchestratorService", "NotYetInvented", {"admin"}),
    ],
)
def test_a_role_may_call_what_it_is_for(service: str, method: str, callers: set[str]) -> None:
    """AUTH-1003: clients give jobs, pools serve them, admins may do everything."""
    assert {role.value for role in needed(f"/llamaorch.{service}/{method}")} == callers


def test_only_health_is_open() -> None:
    """Whatever else is added to the table asks for a token. AUTH-1001."""
    assert {m for m, allowed in ALLOWED.items() if not allowed} == {
        f"/grpc.health.v1.Health/{name}" for name in ("Check", "List", "Watch")
    }
    assert not OPEN
    assert all(Role.ADMIN in allowed for allowed in ALLOWED.values() if allowed)


def test_a_method_nobody_listed_is_not_open() -> None:
    """The default of the table is the narrowest role, not the widest."""
    assert roles.needed("/x.Y/Z") == {Role.ADMIN}


def test_a_token_is_found_by_its_hash_alone() -> None:
    """AUTH-1004: what is kept does not contain the token."""
    token = new_token()
    known = Tokens([TokenEntry("alice", Role.CLIENT, sha256_of(token))])

    found = known.find(token)

    assert found is not None
    assert (found.name, found.role, found.fingerprint) == (
        "alice",
        Role.CLIENT,
        fingerprint(token),
    )
    assert known.find(token[:-1]) is None
    assert known.find(sha256_of(token)) is None
    assert token not in repr(vars(known))


def test_every_hash_is_compared_wherever_the_token_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """AUTH-1005: the time of an answer does not tell how far the comparison came."""
    mine = [new_token() for _ in range(5)]
    known = Tokens(TokenEntry(f"n{i}", Role.CLIENT, sha256_of(t)) for i, t in enumerate(mine))
    compared: list[bytes] = []
    genuine = tokens.hmac.compare_digest

    def count(kept: bytes, presented: bytes) -> bool:
        compared.append(kept)
        return genuine(kept, presented)

    monkeypatch.setattr(tokens.hmac, "compare_digest", count)

    for token in (mine[0], mine[4], new_token()):
        compared.clear()
        known.find(token)
        assert len(compared) == 5


def test_tokens_are_long_and_differ() -> None:
    """AUTH-1004: 32 random bytes each; a fingerprint is six digits."""
    made = {new_token() for _ in range(100)}

    assert len(made) == 100
    assert all(len(token) >= 43 and token.isascii() for token in made)
    assert all(len(fingerprint(token)) == 6 for token in made)


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [("authorization", "Basic YTpi")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", "abc")],
        [("authorization", "Bearer " + "a" * 257)],
        [("authorization", "Bearer a"), ("authorization", "Bearer a")],
        [("authorization-bin", b"Bearer a")],
        [("authorization", b"Bearer a")],
    ],
)
def test_only_one_bearer_token_counts(metadata: list[tuple[str, str | bytes]]) -> None:
    """AUTH-1001: none, another scheme, two, or too much are no token."""
    assert bearer(metadata) is None


@given(
    st.text("abcXYZ0123456789-_", min_size=1, max_size=256),
    st.sampled_from(["Bearer", "bearer", "BEARER"]),
)
def test_a_token_is_read_as_it_was_sent(token: str, scheme: str) -> None:
    """AUTH-1001: the scheme's case does not matter, the token's does."""
    assert bearer([("te", "trailers"), ("authorization", f"{scheme} {token}")]) == token


def test_the_command_prints_the_token_once_and_its_hash_for_the_file() -> None:
    """AUTH-1006: the token alone goes to stdout; the lines for the file hold only its hash."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator_core", "token", "--role", "pool", "--name", "gpu1"],
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )

    token = done.stdout.strip()
    assert done.stdout.count("\n") == 1
    assert token not in done.stderr
    assert f'[auth.tokens."gpu1"]\nrole = "pool"\nsha256 = "{sha256_of(token)}"' in done.stderr


def test_the_command_binds_and_dates_a_token(tmp_path: Path) -> None:
    """AUTH-1003, AUTH-1007: the lines that it prints are read as they were meant."""
    flags = ("--role", "pool", "--name", "gpu1", "--host-id", "gpu-1", "--days", "30")
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator_core", "token", *flags],
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    (tmp_path / "o.toml").write_text(done.stderr, encoding="utf-8")

    (identity,) = configured(load_config(tmp_path / "o.toml", {})).identities

    assert (identity.name, identity.host_id) == ("gpu1", "gpu-1")
    assert not identity.expired(wall_s() + 30 * 86_400)
    assert identity.expired(wall_s() + 31 * 86_400)
