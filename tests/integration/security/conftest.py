"""A real orchestratord that asks for tokens."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack

import grpc
import pytest

from orchestrator_core.auth.tokens import new_token, sha256_of
from orchestrator_core.config.schema import Config
from orchestrator_core.server import OrchestratorServer

ROLES = ("client", "pool", "admin")
NO_OTHERS: Mapping[str, Mapping[str, object]] = {}


class Guarded:
    """A server with one token for each role, and others by their names, in `tokens`."""

    def __init__(self, server: OrchestratorServer, tokens: dict[str, str]) -> None:
        self.server = server
        self.tokens = tokens
        self.address = str(server.address)

    def metadata(self, name: str) -> tuple[tuple[str, str], ...]:
        """What a call with a token sends; nothing for an empty name."""
        return (("authorization", f"Bearer {self.tokens[name]}"),) if name else ()


StartGuarded = Callable[..., Awaitable[Guarded]]


@pytest.fixture
async def start_guarded() -> AsyncIterator[StartGuarded]:
    """Starts servers on loopback with a token of each role, each named after its role."""
    async with AsyncExitStack() as stack:

        async def start(
            others: Mapping[str, Mapping[str, object]] = NO_OTHERS,
            jobs_visible_to: str = "owner",
            **tables: object,
        ) -> Guarded:
            given = {role: {"role": role} for role in ROLES} | dict(others)
            made = {name: new_token() for name in given}
            hashed = {
                name: {"sha256": sha256_of(made[name]), **table} for name, table in given.items()
            }
            auth = {"jobs_visible_to": jobs_visible_to, "tokens": hashed}
            base = {"listen": "127.0.0.1:0", "store": {"kind": "memory"}, "auth": auth}
            server = OrchestratorServer(Config.model_validate(base | tables))
            stack.push_async_callback(server.stop)
            await server.start()
            return Guarded(server, made)

        yield start


@pytest.fixture
async def guarded(start_guarded: StartGuarded) -> Guarded:
    """A server with the default bounds."""
    return await start_guarded()


@pytest.fixture
async def channel(guarded: Guarded) -> AsyncIterator[grpc.aio.Channel]:
    """A plaintext connection to it."""
    async with grpc.aio.insecure_channel(guarded.address) as channel:
        yield channel
