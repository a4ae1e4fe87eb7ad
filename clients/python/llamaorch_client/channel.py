# SPDX-License-Identifier: Apache-2.0
"""Opens connections, and keeps tokens from passing in the clear. AUTH-1002."""

import ipaddress

import grpc
from grpc import aio

from llamaorch_client.address import checked_address
from llamaorch_client.options import ClientOptions, channel_options


def open_channel(target: str, options: ClientOptions) -> aio.Channel:
    """Returns a channel, with TLS where `options.credentials` says so.

    Raises:
        ValueError: the target is no address, or the token would pass in the clear to another
            machine.
    """
    checked_address(target)
    settings = channel_options(options, local=is_local(target))
    if options.credentials is not None:
        return aio.secure_channel(target, options.credentials, settings)
    if options.token is not None and not (options.allow_plaintext or is_local(target)):
        raise ValueError(
            f"the token would pass in the clear to {target}: use TLS (--tls or --ca-file; "
            "ClientOptions.credentials), or allow_plaintext where the network is trusted"
        )
    return aio.insecure_channel(target, settings)


def is_local(target: str) -> bool:
    """True for a target that does not leave this machine: loopback, or a Unix socket.

    Source: gRPC Name Resolution, the schemes unix, unix-abstract, dns, ipv4 and ipv6.
    """
    scheme, _, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    if scheme in ("dns", "ipv4", "ipv6"):
        # An authority before the path names a DNS server: what comes back is anybody's guess.
        target = rest.removeprefix("///")
    return all(_is_loopback(address) for address in target.split(","))


def _is_loopback(address: str) -> bool:
    host = address
    if address.startswith("["):
        host = address[1:].partition("]")[0]
    elif address.count(":") == 1:
        host = address.partition(":")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def tls_credentials(
    roots: bytes | None = None, certificate: bytes | None = None, key: bytes | None = None
) -> grpc.ChannelCredentials:
    """Credentials for TLS: `roots` None trusts the system's; certificate and key show who calls.

    All are PEM.
    """
    return grpc.ssl_channel_credentials(roots, key, certificate)
