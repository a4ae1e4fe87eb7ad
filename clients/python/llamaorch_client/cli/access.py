# SPDX-License-Identifier: Apache-2.0
"""Options of every command that say who calls, and over which connection."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from llamaorch_client.channel import tls_credentials
from llamaorch_client.cli.failure import TOKEN_VARIABLE, UsageError
from llamaorch_client.options import ClientOptions

TOKEN_CHARS_MAX = 4096
_NAMES = {
    "ca_file": ("--ca-file", "LLORCH_CA_FILE"),
    "token_file": ("--token-file", "LLORCH_TOKEN_FILE"),
}
# Of certificates: more is none, and a device file has no end.
FILE_BYTES_MAX = 4 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds them. The token itself is never an argument: every user of a machine reads those."""
    add = parser.add_argument
    add("--token-file", metavar="FILE", help="file that holds the token, instead of LLORCH_TOKEN")
    add("--tls", action="store_true", help="use TLS and trust the system's certificates")
    add("--ca-file", metavar="PEM", help="use TLS and trust these certificates")
    add("--client-cert", metavar="PEM", help="certificate that says who calls")
    add("--client-key", metavar="PEM", help="its key")
    add("--allow-plaintext", action="store_true", help="send the token without TLS, to anywhere")


def defaults(environ: Mapping[str, str]) -> dict[str, object]:
    """What holds where nothing is said."""
    return {
        "token": environ.get(TOKEN_VARIABLE) or None,
        "token_file": environ.get("LLORCH_TOKEN_FILE") or None,
        "tls": False,
        "ca_file": environ.get("LLORCH_CA_FILE") or None,
        "client_cert": None,
        "client_key": None,
        "allow_plaintext": False,
    }


def options(arguments: argparse.Namespace) -> ClientOptions:
    """The options of a client. Raises `UsageError` naming the option that is wrong."""
    roots = _read(_named(arguments, "ca_file"), arguments.ca_file)
    certificate = _read("--client-cert", arguments.client_cert)
    key = _read("--client-key", arguments.client_key)
    if (certificate is None) != (key is None):
        raise UsageError("--client-cert and --client-key: name both, or neither")
    tls = arguments.tls or roots is not None or certificate is not None
    return ClientOptions(
        token=_token(arguments),
        credentials=tls_credentials(roots, certificate, key) if tls else None,
        allow_plaintext=arguments.allow_plaintext,
    )


def token_source(arguments: argparse.Namespace) -> str:
    """Where the token comes from: its file, or the variable; empty where there is none."""
    if arguments.token_file is not None:
        return str(arguments.token_file)
    return TOKEN_VARIABLE if arguments.token else ""


def _token(arguments: argparse.Namespace) -> str | None:
    name = _named(arguments, "token_file")
    data = _read(name, arguments.token_file)
    if data is None:
        # Nothing of it may be shown, not as an example of what is wrong either.
        return _checked(str(arguments.token), TOKEN_VARIABLE) if arguments.token else None
    return _checked(data.decode("utf-8", "replace"), f"{name} {arguments.token_file}")


def _named(arguments: argparse.Namespace, name: str) -> str:
    """The option, or the variable where that is what said it."""
    option, variable = _NAMES[name]
    return option if name in arguments.typed else variable


def _checked(text: str, source: str) -> str:
    token = text.strip()
    if not token.isascii() or not token.isprintable() or not token:
        raise UsageError(f"{source}: holds no token, which is visible ASCII characters in one line")
    if len(token) > TOKEN_CHARS_MAX:
        raise UsageError(f"{source}: holds no token: it has more than {TOKEN_CHARS_MAX} characters")
    return token


def _read(option: str, path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        with Path(path).open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from error
    if len(data) > FILE_BYTES_MAX:
        raise UsageError(f"{option} {path}: has more than {FILE_BYTES_MAX} bytes")
    return data
