"""Mistakes in a server's address are told before a connection is tried."""

import pytest

from llamaorch_client.address import checked_address


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:7070",
        "gpu-box.example.org:1",
        "[::1]:65535",
        "[fe80::1%eth0]:7070",
        "dns:///gpu-box:7070",
        "xds:///orchestrators",
        "unix:/run/llama-orch.sock",
        "ipv4:10.0.0.1:7070,10.0.0.2:7070",
        "ipv6:[2001:db8::1]:7070,[fe80::1%eth0]:1",
    ],
)
def test_what_grpc_can_dial_is_left_as_it_is(address: str) -> None:
    """Names, both kinds of IP address, and the schemes of gRPC."""
    assert checked_address(address) == address


@pytest.mark.parametrize(
    ("address", "problem", "better"),
    [
        ("127.0.0.1", "no port", "127.0.0.1:7070"),
        ("localhost:", "no port", "localhost:7070"),
        (":7071", "no host", "127.0.0.1:7071"),
        ("", "no host", "127.0.0.1:7070"),
        ("http://127.0.0.1:50051", "a web address", "127.0.0.1:50051"),
        ("https://gpu-box/x", "a web address", "gpu-box:7070 with --tls"),
        ("grpc://[::1]:1", "a web address", "[::1]:1"),
        ("gpu-box:7070/", "a path", "gpu-box:7070"),
        ("::1", "brackets", "[::1]:7070"),
        ("fe80::1:7070", "brackets", "[fe80::1:7070]:7070"),
        ("gpu-box:grpc", "1 to 65535", "gpu-box:7070"),
        ("gpu-box:70700", "1 to 65535", "gpu-box:7070"),
        ("gpu-box:0", "1 to 65535", "gpu-box:7070"),
        ("gpu box:7071", "spelt", "127.0.0.1:7071"),
        ("me@gpu-box:7070", "spelt", "127.0.0.1:7070"),
        ("10.0.0.1:7070,10.0.0.2", "no port", "10.0.0.2:7070"),
        ("10.0.0.1:7070,10.0.0.2:1", "several", "ipv4:10.0.0.1:7070,10.0.0.2:1"),
        ("box-a:7070,box-b:7070", "several", "box-a:7070"),
        ("ipv4:10.0.0.1", "'10.0.0.1' is no IP address with a port", "ipv4:127.0.0.1:7070"),
        ("ipv4:10.0.0.1:1,gpu-box:7070", "'gpu-box:7070' is no", "ipv4:127.0.0.1:7070"),
        ("ipv6:10.0.0.1:1", "'10.0.0.1:1' is no", "ipv6:[::1]:7070"),
    ],
)
def test_a_mistake_is_named_with_what_to_write(address: str, problem: str, better: str) -> None:
    """Else the whole is looked up as a name, or port 443 tried, and nobody seems to answer."""
    with pytest.raises(ValueError, match="is no server address") as caught:
        checked_address(address)

    said = str(caught.value)
    assert repr(address) in said
    assert problem in said
    assert said.endswith(f"write {better}")
