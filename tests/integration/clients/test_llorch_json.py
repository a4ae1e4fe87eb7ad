"""`--json` of every command: one object a line, the same keys for each error, nothing beside it."""

import json
from typing import Any

import pytest

from llamaorch.orchestrator.v1 import pool_admin_service_pb2
from llamaorch_client.cli.main import COMMANDS
from tests.integration.clients.llorch import Outcome, within
from tests.integration.clients.scripted_server import ScriptedServer

ERROR_KEYS = {
    *("kind", "message", "reason", "code", "metadata", "retry_after_ms", "violations"),
    *("shortfalls", "correlation_id", "connection", "retriable", "exit_code"),
}
# All that each needs to reach the server.
REFUSED = {
    "run": ("--model", "m", "Hi"),
    "stream": ("job-1",),
    "cancel": ("job-1",),
    "explain": ("job-1",),
    "policy": ("check", "https://example.org"),
    "drain": ("p",),
    "undrain": ("p",),
    "reload": ("p",),
}
MISUSED = [
    ("sessions", "show"),
    ("artifacts", "get", "a"),
    ("artifacts", "get", "a", "-o", "-"),
    ("models", "register"),
    ("run", "--prompt-file", "/nowhere"),
    ("run", "--model", "m", "--seed", "1", "--session-tokens", "5", "Hi"),
    ("stream", "j", "--token-file", "/nowhere"),
    ("status", "--correlation-id", "ä"),
]


def error_of(outcome: Outcome) -> dict[str, Any]:
    """The one record on stdout."""
    (record,) = outcome.records()
    found: dict[str, Any] = record["error"]
    assert found.keys() == ERROR_KEYS
    return found


@pytest.mark.parametrize("command", sorted(COMMANDS))
async def test_an_error_of_the_server_is_a_record(server: ScriptedServer, command: str) -> None:
    """Here that it knows none of the calls."""
    outcome = await within(server.address, "--json", command, *REFUSED.get(command, ()))

    error = error_of(outcome)
    assert error["exit_code"] == outcome.code == 1
    assert error["code"] == "UNIMPLEMENTED"


@pytest.mark.parametrize("words", MISUSED)
async def test_a_mistake_is_a_record(server: ScriptedServer, words: tuple[str, ...]) -> None:
    """What is told to a person is its message."""
    outcome = await within(server.address, "--json", *words)

    error = error_of(outcome)
    assert (outcome.code, error["exit_code"], error["kind"]) == (2, 2, "Usage")
    assert outcome.stderr == f"llorch: {error['message']}\n"


async def test_a_server_that_is_away_is_told_by_a_stable_name(unused_address: str) -> None:
    """The sentence may change."""
    outcome = await within(unused_address, "--json", "run", "--model", "m", "Hi")

    error = error_of(outcome)
    assert json.loads(outcome.stdout)["event"] == "error"
    assert (error["kind"], error["connection"], outcome.code) == (
        "Unavailable",
        "NOBODY_LISTENS",
        3,
    )


async def test_a_list_that_the_server_ends_is_told(server: ScriptedServer) -> None:
    """`pools --watch` goes on until somebody ends it; so does the wait for a drain."""
    pool = pool_admin_service_pb2.Pool(pool_id="p", drain={"running_attempts": 1})  # type: ignore[arg-type]
    watched = pool_admin_service_pb2.WatchPoolsResponse(pools=[pool])
    server.on("WatchPools", [[watched]])
    server.on("DrainPool", pool_admin_service_pb2.DrainPoolResponse(pool=pool))

    shown = await within(server.address, "pools", "--watch")
    waited = await within(server.address, "--json", "drain", "p", "--wait")

    assert (shown.code, waited.code) == (3, 3)
    assert shown.stderr.endswith("ended the list of pools, as when it shuts down\n")
    assert error_of(waited)["reason"] == "STREAM_CLOSED"


async def test_a_drain_that_somebody_ends_is_a_record(server: ScriptedServer) -> None:
    """Its exit code tells too."""
    pool = pool_admin_service_pb2.Pool(pool_id="p")
    server.on("WatchPools", [[pool_admin_service_pb2.WatchPoolsResponse(pools=[pool])]])
    server.on("DrainPool", pool_admin_service_pb2.DrainPoolResponse(pool=pool))

    waited = await within(server.address, "--json", "drain", "p", "--wait")

    assert waited.code == error_of(waited)["exit_code"] == 1
