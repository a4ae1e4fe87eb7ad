"""What hostile callers send to the HTTP ports, as data: tests run it, docs/security.md shows it."""

from dataclasses import dataclass

GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n"
OK, BAD, MISSING, METHOD, MISDIRECTED = "200", "400", "404", "405", "421"
CUT = "closed"
CALLED = {
    OK: "the answer, once",
    BAD: "400",
    MISSING: "404",
    METHOD: "405",
    MISDIRECTED: "421",
    CUT: "the connection is closed",
}
GROWTH_MIB_MAX = 32


@dataclass(frozen=True)
class HttpAttack:
    """What is sent on one connection, and with which status or end it is met."""

    name: str
    sent: str
    data: bytes
    gets: tuple[str, ...]


def _body(method: bytes) -> bytes:
    head = method + b" /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 33554432\r\n\r\n"
    return head + b"x" * (32 << 20)


HTTP_ATTACKS = (
    HttpAttack(
        "long_path",
        "A path of 100 kB",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        (BAD, CUT),
    ),
    HttpAttack(
        "long_query",
        "A query of 100 kB",
        b"GET /metrics?" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        (BAD, CUT),
    ),
    HttpAttack("long_field", "A header of 100 kB", GET + b"X: " + b"a" * 100_000, (BAD, CUT)),
    HttpAttack(
        "many_fields",
        "20,000 headers of 1 kB",
        GET + b"".join(b"X-%d: " % number + b"a" * 1_000 + b"\r\n" for number in range(20_000)),
        (BAD, CUT),
    ),
    HttpAttack("post", "A POST of 32 MiB", _body(b"POST"), (METHOD, CUT)),
    HttpAttack("body", "A GET with 32 MiB after it", _body(b"GET"), (OK, CUT)),
    HttpAttack(
        "smuggled",
        "Content-Length and Transfer-Encoding at once",
        GET + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        (BAD,),
    ),
    HttpAttack(
        "traversal",
        "/../../etc/passwd",
        GET.replace(b"metrics", b"../../etc/passwd") + b"\r\n",
        (MISSING,),
    ),
    HttpAttack(
        "encoded_traversal",
        "/static/%2e%2e/%2e%2e/etc/passwd",
        GET.replace(b"metrics", b"static/%2e%2e/%2e%2e/etc/passwd") + b"\r\n",
        (MISSING,),
    ),
    HttpAttack(
        "foreign_host",
        "The name of another machine in Host",
        GET.replace(b"localhost", b"evil.example") + b"\r\n",
        (MISDIRECTED,),
    ),
    HttpAttack("two_hosts", "Host, twice", GET + b"Host: evil.example\r\n\r\n", (BAD,)),
    HttpAttack("http2", "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (BAD,)),
    HttpAttack(
        "tls",
        "A TLS handshake",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 500,
        (BAD,),
    ),
    HttpAttack("noise", "4 kB of noise", b"\xff" * 4_096, (BAD,)),
)
