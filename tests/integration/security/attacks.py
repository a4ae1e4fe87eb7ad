"""What hostile callers send over HTTP/2, as data: tests run it, docs/security.md shows it."""

import gzip
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.integration.security.raw_http2 import CLOSED, Raw, framed

# What comes back, by what it is called in the document. Codes 7 and 11 are those of HTTP/2.
INVALID, EXHAUSTED, INTERNAL, UNAUTHENTICATED = "3", "8", "13", "16"
REFUSED, CALM, NOTHING = "RST 7", "GOAWAY 11", "nothing"
CALLED = {
    INVALID: "INVALID_ARGUMENT",
    EXHAUSTED: "RESOURCE_EXHAUSTED",
    INTERNAL: "INTERNAL, by gRPC itself",
    UNAUTHENTICATED: "UNAUTHENTICATED",
    REFUSED: "refused (REFUSED_STREAM)",
    CALM: "the connection is closed (ENHANCE_YOUR_CALM)",
    CLOSED: "the connection is closed",
    NOTHING: "nothing; it stays open",
}
# So much may a server grow at its peak while it is attacked; nearly all that it does is gRPC's.
GROWTH_MIB_MAX = 48

HEADERS, CONTINUATION, SETTINGS, WINDOW, DATA = 0x1, 0x9, 0x4, 0x8, 0x0
STREAMS = 500

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Target:
    """A server: a unary method, a stream with requests if it has one, and a stream of answers."""

    unary: str
    stream: str
    watch: str
    token: Headers


Run = Callable[[list[Raw], Target], Awaitable[set[str]]]


@dataclass(frozen=True)
class Attack:
    """What is sent, and what may come back to it or to the call after it on its connection.

    `connections` are opened for it; `run` gets them all. `talks` is for servers with a stream of
    requests only.
    """

    run: Run
    gets: tuple[str, ...]
    connections: int
    talks: bool

    @property
    def sent(self) -> str:
        """What is sent, for people."""
        return (self.run.__doc__ or "").removesuffix(".")


async def _one(raw: Raw, path: str, headers: Headers, data: bytes) -> set[str]:
    stream = raw.open(path, *headers)
    await raw.flush()
    # What is larger than the window goes as far as it fits.
    for start in range(0, min(len(data), 60_000), 16_000):
        raw.h2.send_data(stream, data[start : start + 16_000])
    await raw.flush()
    return await raw.answers([stream])


def frame(kind: int, payload: bytes = b"", *, stream: int = 0, flags: int = 0) -> bytes:
    """An HTTP/2 frame, whatever is in it."""
    size = struct.pack(">I", len(payload))[1:]
    return size + struct.pack(">BBI", kind, flags, stream) + payload


async def _after(raw: Raw, target: Target) -> set[str]:
    """What the next call on the connection gets; how it ended where it is gone."""
    stream = raw.open(target.unary)
    await raw.flush()
    return await raw.answers([stream])


async def rapid_reset(raws: list[Raw], target: Target) -> set[str]:
    """2,000 calls, each reset at once."""
    raw = raws[0]
    for number in range(2_000):
        raw.h2.reset_stream(raw.open(target.unary))
        if number % 100 == 0:
            await raw.flush()
    return await _after(raw, target)


async def silent_streams(raws: list[Raw], target: Target) -> set[str]:
    """500 calls without a token that never send theirs."""
    raw = raws[0]
    most = min(STREAMS, raw.h2.remote_settings.max_concurrent_streams)
    streams = [raw.open(target.unary) for _ in range(most)]
    await raw.flush()
    return await raw.answers(streams)


async def long_message(raws: list[Raw], target: Target) -> set[str]:
    """A message that announces 2 GiB."""
    return await _one(raws[0], target.unary, target.token, framed(b"x" * 100, length=1 << 31))


async def gzip_bomb(raws: list[Raw], target: Target) -> set[str]:
    """32 MiB of zeros in 32 kB of gzip."""
    bomb = framed(gzip.compress(bytes(32 << 20)), flag=1)
    return await _one(raws[0], target.unary, (*target.token, ("grpc-encoding", "gzip")), bomb)


async def no_gzip(raws: list[Raw], target: Target) -> set[str]:
    """What says it is gzip and is not."""
    data = framed(b"not gzip", flag=1)
    return await _one(raws[0], target.unary, (*target.token, ("grpc-encoding", "gzip")), data)


async def not_protobuf(raws: list[Raw], target: Target) -> set[str]:
    """What is no protobuf."""
    return await _one(raws[0], target.unary, target.token, framed(b"\xff" * 64))


async def not_protobuf_on_a_stream(raws: list[Raw], target: Target) -> set[str]:
    """The same on an Exchange."""
    return await _one(raws[0], target.stream, target.token, framed(b"\xff" * 64))


async def much_metadata(raws: list[Raw], target: Target) -> set[str]:
    """200 kB of metadata."""
    many = [(f"x-{number}", "y" * 1_000) for number in range(200)]
    return await _one(raws[0], target.unary, (*target.token, *many), b"")


async def header_bomb(raws: list[Raw], target: Target) -> set[str]:
    """24 MB of metadata in 11 kB of HPACK."""
    many = [("x-bomb", "y" * 3_000)] * 8_000
    return await _one(raws[0], target.unary, (*target.token, *many), b"")


async def long_token(raws: list[Raw], target: Target) -> set[str]:
    """A token of 6,000 characters."""
    return await _one(raws[0], target.unary, (("authorization", "Bearer " + "a" * 6_000),), b"")


async def two_tokens(raws: list[Raw], target: Target) -> set[str]:
    """A good token, twice."""
    return await _one(raws[0], target.unary, (*target.token, *target.token), b"")


async def pings(raws: list[Raw], _: Target) -> set[str]:
    """10,000 PINGs."""
    raw = raws[0]
    for number in range(10_000):
        raw.h2.ping(number.to_bytes(8, "big"))
    await raw.flush()
    return await raw.end()


async def settings(raws: list[Raw], target: Target) -> set[str]:
    """50,000 SETTINGS."""
    raw = raws[0]
    await raw.write(frame(SETTINGS) * 50_000)
    return await _after(raw, target)


async def endless_headers(raws: list[Raw], target: Target) -> set[str]:
    """20 MB of CONTINUATION frames."""
    raw = raws[0]
    await raw.write(raw.open_unended(target.unary))
    # Literals without indexing: a name of one byte, a value of a thousand. RFC 7541, 5.1 and 6.2.2.
    field = b"\x00\x01x\x7f\xe9\x06" + b"y" * 1_000
    for _number in range(2_000):
        if not await raw.tried(frame(CONTINUATION, field * 10, stream=1)):
            break
    return await raw.answers([1])


async def empty_continuations(raws: list[Raw], target: Target) -> set[str]:
    """50,000 empty CONTINUATION frames."""
    raw = raws[0]
    await raw.write(raw.open_unended(target.unary))
    await raw.tried(frame(CONTINUATION, stream=1) * 50_000)
    return await raw.end()


async def slow_headers(raws: list[Raw], target: Target) -> set[str]:
    """100 connections with headers without end."""
    for raw in raws:
        await raw.write(raw.open_unended(target.unary))
    for _number in range(5):
        for raw in raws:
            # An indexed field, as from a client that needs long for each.
            await raw.write(frame(CONTINUATION, b"\x86", stream=1))
    return {raw.gone or NOTHING for raw in raws}


async def window_updates(raws: list[Raw], target: Target) -> set[str]:
    """50,000 WINDOW_UPDATEs of one byte."""
    raw = raws[0]
    await raw.write(frame(WINDOW, struct.pack(">I", 1)) * 50_000)
    return await _after(raw, target)


async def window_overflow(raws: list[Raw], target: Target) -> set[str]:
    """WINDOW_UPDATEs beyond 2^31."""
    raw = raws[0]
    await raw.write(frame(WINDOW, struct.pack(">I", 0x7FFFFFFF)) * 2)
    return await _after(raw, target)


async def long_frame(raws: list[Raw], _: Target) -> set[str]:
    """A frame of 8 MiB."""
    raw = raws[0]
    await raw.tried(frame(DATA, b"x" * (8 << 20), stream=1))
    return await raw.end()


async def no_stream(raws: list[Raw], target: Target) -> set[str]:
    """1 MB on a stream that is not open."""
    raw = raws[0]
    await raw.tried(frame(DATA, b"x" * 1_000, stream=7) * 1_000)
    return await _after(raw, target)


async def unknown_frames(raws: list[Raw], target: Target) -> set[str]:
    """5,000 frames of an unknown kind."""
    raw = raws[0]
    await raw.tried(frame(0xEE, b"x" * 1_000) * 5_000)
    return await _after(raw, target)


async def empty_data(raws: list[Raw], target: Target) -> set[str]:
    """50,000 empty DATA frames on an Exchange."""
    raw = raws[0]
    stream = raw.open(target.stream, *target.token)
    await raw.flush()
    await raw.tried(frame(DATA, stream=stream) * 50_000)
    raw.h2.reset_stream(stream)
    return await _after(raw, target)


async def empty_messages(raws: list[Raw], target: Target) -> set[str]:
    """12,000 empty requests on an Exchange, no answer read."""
    raw = raws[0]
    raw.h2.update_settings({4: 0})
    stream = raw.open(target.stream, *target.token)
    await raw.flush()
    sent = 0
    while sent < 60_000:
        raw.h2.send_data(stream, framed(b"") * 3_000)
        sent += 15_000
    await raw.flush()
    raw.h2.reset_stream(stream)
    return await _after(raw, target)


async def unread_answers(raws: list[Raw], target: Target) -> set[str]:
    """10 x 90 streams whose window stays 0."""
    for raw in raws:
        raw.h2.update_settings({4: 0})
        for _number in range(90):
            stream = raw.open(target.watch, *target.token)
            raw.h2.send_data(stream, framed(b""), end_stream=True)
        await raw.flush()
    return {raw.gone or NOTHING for raw in raws}


async def unread_socket(raws: list[Raw], target: Target) -> set[str]:
    """90 calls and 2,000 PINGs, nothing read."""
    raw = raws[0]
    for _number in range(90):
        stream = raw.open(target.unary, *target.token)
        raw.h2.send_data(stream, framed(b""), end_stream=True)
    for number in range(2_000):
        raw.h2.ping(number.to_bytes(8, "big"))
    await raw.flush()
    return {raw.gone or NOTHING}


async def idle_connections(raws: list[Raw], _: Target) -> set[str]:
    """300 connections that do nothing."""
    return {raw.gone or NOTHING for raw in raws}


async def noise(raws: list[Raw], _: Target) -> set[str]:
    """Bytes that are no frames."""
    raw = raws[0]
    await raw.write(b"\xff" * 4_096)
    return await raw.end()


def _attack(run: Run, *gets: str, connections: int = 1, talks: bool = False) -> Attack:
    return Attack(run, gets, connections, talks)


ATTACKS: tuple[Attack, ...] = (
    _attack(rapid_reset, UNAUTHENTICATED, REFUSED),
    _attack(silent_streams, UNAUTHENTICATED),
    _attack(long_token, UNAUTHENTICATED),
    _attack(two_tokens, UNAUTHENTICATED),
    _attack(long_message, EXHAUSTED),
    _attack(gzip_bomb, EXHAUSTED),
    _attack(no_gzip, INTERNAL),
    _attack(not_protobuf, INVALID),
    _attack(not_protobuf_on_a_stream, INVALID, talks=True),
    _attack(much_metadata, EXHAUSTED),
    _attack(header_bomb, EXHAUSTED),
    _attack(endless_headers, EXHAUSTED),
    _attack(empty_continuations, CLOSED),
    _attack(slow_headers, NOTHING, connections=100),
    _attack(pings, CALM),
    _attack(settings, UNAUTHENTICATED),
    _attack(window_updates, UNAUTHENTICATED),
    _attack(window_overflow, UNAUTHENTICATED),
    _attack(long_frame, CLOSED),
    _attack(no_stream, UNAUTHENTICATED, CLOSED),
    _attack(unknown_frames, UNAUTHENTICATED),
    _attack(empty_data, CLOSED, talks=True),
    _attack(
        empty_messages,
        UNAUTHENTICATED,
        talks=True,
    ),
    _attack(unread_answers, NOTHING, connections=10),
    _attack(unread_socket, NOTHING),
    _attack(idle_connections, NOTHING, connections=300),
    _attack(noise, CLOSED),
)
