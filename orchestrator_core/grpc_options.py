"""What the gRPC server takes and keeps: sizes, streams, calls, connections."""

import resource

MESSAGE_BYTES_MAX = 4 * 1024 * 1024
STREAMS_PER_CONNECTION_MAX = 1_024
# gRPC ends calls at random, with CANCELLED and without details, while more than so many wait to be
# taken up, and all beyond the second number. Its defaults, 1,000 and 3,000, are a burst that two
# clients may send, and on a starved machine a few seconds of calls; each takes some kilobytes.
PENDING_CALLS_MAX = 4 * STREAMS_PER_CONNECTION_MAX
PENDING_CALLS_END = 2 * PENDING_CALLS_MAX
HANDSHAKE_MS_MAX = 20_000
IDLE_MS_MAX = 600_000
# Each connection is an open file; the journal and the recorder need some, too.
CONNECTIONS_MAX = 4_096

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
    # Source: grpc 1.85, src/core/server/server.h.
    ("grpc.server.max_pending_requests", PENDING_CALLS_MAX),
    ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS_END),
    # Clients and hosts ping idle connections; the defaults would cut them off for it.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A stream may be silent for as long as a prompt is long: pings go on all the same.
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.so_reuseport", 0),
    # Who connects and does not go on, or has long had no call open, makes room. Clients connect
    # again by themselves; hosts have a stream open.
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS_MAX),
    ("grpc.max_connection_idle_ms", IDLE_MS_MAX),
    # The probe lets a stream run up megabytes that nobody has read yet. Under overload that is many
    # seconds of frames, behind which snapshots wait until they are stale. Without it 64 KiB are on
    # the way, and a host that is ahead gathers its output in fewer, larger chunks.
    ("grpc.http2.bdp_probe", 0),
)


def connections_max() -> int:
    """Connections that are taken at a time: at most half of what the process may open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS_MAX if files < 0 else min(CONNECTIONS_MAX, max(1, files // 2))
