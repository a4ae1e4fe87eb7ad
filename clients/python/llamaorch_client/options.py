# SPDX-License-Identifier: Apache-2.0
"""How a client behaves: limits, credentials, time. All frozen, all bounded."""

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc
from opentelemetry.trace import TracerProvider

from llamaorch_client.errors import MESSAGE_BYTES_MAX

# What metadata can carry. Source: gRPC over HTTP/2, ASCII-Value.
_TOKEN = re.compile(r"[\x20-\x7e]*[\x21-\x7e][\x20-\x7e]*")


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


async def _sleep_ms(delay_ms: float) -> None:
    await asyncio.sleep(delay_ms / 1000)


@dataclass(frozen=True, slots=True)
class Timing:
    """Where time and chance come from; tests give their own.

    `now_ms` is monotonic; `fraction` returns a number in [0, 1).
    """

    now_ms: Callable[[], int] = _now_ms
    sleep_ms: Callable[[float], Awaitable[None]] = _sleep_ms
    fraction: Callable[[], float] = random.SystemRandom().random


@dataclass(frozen=True, slots=True)
class RetryOptions:
    """Bounds of retrying a call.

    A server's RetryInfo is the lower bound of the wait; up to `jitter_max_ms` comes on top. Without
    one the wait doubles from `backoff_initial_ms` to `backoff_max_ms`. A retry that would begin
    after `time_max_ms` is not made. `retry_rejected=False` gives a rejection at once.
    """

    attempts_max: int = 6
    time_max_ms: int = 60_000
    backoff_initial_ms: int = 100
    backoff_max_ms: int = 5_000
    jitter_max_ms: int = 250
    retry_rejected: bool = True

    def __post_init__(self) -> None:
        _require("attempts_max", self.attempts_max, 1, 1_000)
        _require("time_max_ms", self.time_max_ms, 0, 86_400_000)
        _require("backoff_initial_ms", self.backoff_initial_ms, 1, 60_000)
        _require("backoff_max_ms", self.backoff_max_ms, self.backoff_initial_ms, 600_000)
        _require("jitter_max_ms", self.jitter_max_ms, 0, 60_000)


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Bounds of resuming a broken stream (LO-301).

    `retry` bounds the resumes in a row that brought nothing new; any new event begins a new row,
    and time with an open call does not count.
    `resumes_max` bounds all resumes of one stream. `close_wait_ms` is how long the server may take
    to close the call after the job's last event.
    """

    retry: RetryOptions = field(
        default_factory=lambda: RetryOptions(attempts_max=20, time_max_ms=120_000)
    )
    resumes_max: int = 1_000
    close_wait_ms: int = 1_000

    def __post_init__(self) -> None:
        _require("resumes_max", self.resumes_max, 0, 1_000_000)
        _require("close_wait_ms", self.close_wait_ms, 1, 60_000)


@dataclass(frozen=True, slots=True)
class ExchangeOptions:
    """Bounds of an exchange (LO-306).

    `credit_bytes` is how much output of each job may wait unread here. `requests_max` are the
    requests under way at a time; the server refuses more than 1,024. With `acknowledge` the server
    is told what was read, and may forget it: then nobody can read the job from its beginning.
    """

    credit_bytes: int = 256 * 1024
    requests_max: int = 512
    acknowledge: bool = True

    def __post_init__(self) -> None:
        _require("credit_bytes", self.credit_bytes, 1, 1 << 40)
        _require("requests_max", self.requests_max, 1, 1_024)


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """Everything about a client except the address.

    `credentials` None means plain text, which suits loopback only: a `token` is sent further only
    with `allow_plaintext`. `rpc_timeout_ms` bounds one
    attempt of a unary call; a stream lasts as long as its job. A server that vanished without a
    word is found after `keepalive_ms` of silence and `keepalive_timeout_ms` without an answer; the
    server takes no more than a ping every five seconds.

    Raises:
        ValueError: a number is out of its bounds, or the token is none that can be sent.
    """

    token: str | None = field(default=None, repr=False)
    credentials: grpc.ChannelCredentials | None = field(default=None, repr=False)
    allow_plaintext: bool = False
    retry: RetryOptions = field(default_factory=RetryOptions)
    stream: StreamOptions = field(default_factory=StreamOptions)
    exchange: ExchangeOptions = field(default_factory=ExchangeOptions)
    rpc_timeout_ms: int = 30_000
    keepalive_ms: int = 30_000
    keepalive_timeout_ms: int = 10_000
    tracer_provider: TracerProvider | None = None
    timing: Timing = field(default_factory=Timing)

    def __post_init__(self) -> None:
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise ValueError("token must be visible ASCII characters in one line")
        _require("rpc_timeout_ms", self.rpc_timeout_ms, 1, 3_600_000)
        _require("keepalive_ms", self.keepalive_ms, 5_000, 3_600_000)
        _require("keepalive_timeout_ms", self.keepalive_timeout_ms, 100, 600_000)


def _require(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least} to {most}, not {value}")


def channel_options(options: ClientOptions, *, local: bool) -> list[tuple[str, int]]:
    """Returns the channel's settings.

    A `local` target is reached from this machine alone, and what is sent there must not leave it:
    not through the proxy that `http_proxy` names.

    Source: the keys of gRPC core's channel arguments. Keepalive finds a dead peer also while a long
    prefill is silent. Reconnecting starts after 100 ms, because gRPC's own second
    (growing to two minutes) would eat a resume's budget. gRPC's own retries are off: attempts are
    counted in one place.
    """
    return [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.keepalive_time_ms", options.keepalive_ms),
        ("grpc.keepalive_timeout_ms", options.keepalive_timeout_ms),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0 if local else 1),
    ]
