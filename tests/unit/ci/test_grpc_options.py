"""Keepalive settings of every channel and server fit together.

Source: gRPC's doc/keepalive.md. A key that does not exist is ignored without a word, and a server
answers pings that come too often with GOAWAY.
"""

import pytest

from llamaorch_client.options import ClientOptions
from llamaorch_client.options import channel_options as client_options
from orchestrator_core.grpc_options import SERVER_OPTIONS as ORCHESTRATOR
from pool_managerd.config.schema import LinkTable
from pool_managerd.server import channel_options as host_options
from pool_managerd.servicer import SERVER_OPTIONS as INSPECTION

# The server's default, where it sets nothing else.
MIN_PING_INTERVAL_MS = 300_000

CHANNELS = {
    "client": dict(client_options(ClientOptions(), local=True)),
    "host": dict(host_options(LinkTable())),
}
SERVERS = {"orchestratord": dict(ORCHESTRATOR), "pool-managerd": dict(INSPECTION)}
KNOWN = {
    "grpc.http2.max_pings_without_data",
    "grpc.http2.min_ping_interval_without_data_ms",
    "grpc.keepalive_permit_without_calls",
    "grpc.keepalive_time_ms",
    "grpc.keepalive_timeout_ms",
}


@pytest.mark.parametrize("options", [*CHANNELS.values(), *SERVERS.values()])
def test_every_key_about_pings_exists(options: dict[str, int]) -> None:
    """So not `min_recv_ping_interval_without_data_ms`, which is often copied and does nothing."""
    assert {key for key in options if "ping" in key or "keepalive" in key} <= KNOWN


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
@pytest.mark.parametrize("channel", CHANNELS.values(), ids=CHANNELS)
def test_no_channel_pings_more_often_than_a_server_allows(
    channel: dict[str, int], server: dict[str, int]
) -> None:
    """Also while no data flows, as during a long prefill."""
    allowed_ms = server.get("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS)

    assert channel["grpc.keepalive_time_ms"] > allowed_ms


@pytest.mark.parametrize("options", [*CHANNELS.values(), *SERVERS.values()])
def test_a_peer_that_vanished_is_found_on_a_silent_stream(options: dict[str, int]) -> None:
    """Without a limit on pings without data, which is two by default."""
    assert options["grpc.http2.max_pings_without_data"] == 0
    assert options["grpc.keepalive_time_ms"] + options["grpc.keepalive_timeout_ms"] <= 60_000
