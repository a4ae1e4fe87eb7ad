"""Where a token may be sent, and how a command is told of it."""

import argparse
from pathlib import Path

import pytest

from llamaorch_client import ClientOptions
from llamaorch_client.channel import is_local, open_channel, tls_credentials
from llamaorch_client.cli import access
from llamaorch_client.cli.arguments import parse
from llamaorch_client.cli.failure import UsageError

TOKEN = "LLORCH_TOKEN"  # noqa: S105 - the name of the variable
LOCAL = [
    "127.0.0.1:7070",
    "127.9.9.9:1",
    "localhost:7070",
    "[::1]:7070",
    "dns:///localhost:7070",
    "ipv4:127.0.0.1:1,127.0.0.2:1",
    "unix:/run/x.sock",
]
REMOTE = [
    "gpu-box:7070",
    "10.0.0.1:7070",
    "0.0.0.0:7070",
    "[2001:db8::1]:7070",
    "dns://10.0.0.1/localhost:7070",
    "ipv4:127.0.0.1:1,10.0.0.1:1",
    "localhost.example.org:7070",
    "127.0.0.1.example.org:7070",
    "xds:///localhost",
]


@pytest.mark.parametrize("target", LOCAL)
async def test_a_token_is_sent_in_the_clear_within_this_machine(target: str) -> None:
    """AUTH-1002: nobody else listens there."""
    assert is_local(target)
    await open_channel(target, ClientOptions(token="t")).close()  # noqa: S106 - not a secret


@pytest.mark.parametrize("target", REMOTE)
async def test_a_token_is_not_sent_in_the_clear_to_another_machine(target: str) -> None:
    """AUTH-1002: TLS or a stated risk allow it; without a token there is nothing to lose."""
    with pytest.raises(ValueError, match="pass in the clear") as caught:
        open_channel(target, ClientOptions(token="t-0815"))  # noqa: S106 - not a secret

    assert "t-0815" not in str(caught.value)
    assert not is_local(target)


async def test_tls_or_a_stated_risk_let_a_token_leave() -> None:
    """AUTH-1002."""
    for options in (
        ClientOptions(token="t", credentials=tls_credentials()),  # noqa: S106 - not a secret
        ClientOptions(token="t", allow_plaintext=True),  # noqa: S106 - not a secret
        ClientOptions(),
    ):
        await open_channel("gpu-box:7070", options).close()


def arguments(*words: str, **environ: str) -> argparse.Namespace:
    """A command line as `llorch` reads it."""
    return parse([*words, "status"], environ)


def test_the_token_comes_from_the_file_before_the_environment(tmp_path: Path) -> None:
    """AUTH-1006: the end of the line in the file is no part of it."""
    path = tmp_path / "token"
    path.write_text("from-file\n", encoding="utf-8")

    told = arguments("--token-file", str(path), **{TOKEN: "from-environment"})

    assert access.options(told).token == "from-file"  # noqa: S105 - not a secret
    assert access.options(arguments(**{TOKEN: "t"})).token == "t"  # noqa: S105 - not a secret
    assert access.options(arguments(LLORCH_TOKEN_FILE=str(path))).token == "from-file"  # noqa: S105
    assert access.options(arguments()).token is None


def test_a_file_without_a_token_is_named_and_not_shown(tmp_path: Path) -> None:
    """AUTH-1008: what is in it may be a secret of another kind."""
    path = tmp_path / "token"
    path.write_text("two\nlines", encoding="utf-8")

    with pytest.raises(UsageError, match=r"--token-file .*holds no token") as caught:
        access.options(arguments("--token-file", str(path)))

    assert "lines" not in str(caught.value)


def test_a_file_that_a_variable_names_is_told_so(tmp_path: Path) -> None:
    """Nobody looks for an option that was not typed."""
    gone = str(tmp_path / "none")

    with pytest.raises(UsageError, match=r"^LLORCH_CA_FILE .*No such file"):
        access.options(arguments(LLORCH_CA_FILE=gone))
    with pytest.raises(UsageError, match=r"^LLORCH_TOKEN_FILE .*No such file"):
        access.options(arguments(LLORCH_TOKEN_FILE=gone))
    with pytest.raises(UsageError, match=r"^--token-file .*No such file"):
        access.options(arguments("--token-file", gone, LLORCH_TOKEN_FILE=str(tmp_path)))
    assert arguments(LLORCH_SERVER=" box:7070\n").server == "box:7070"


def test_options_that_need_each_other_or_a_file_are_named(tmp_path: Path) -> None:
    """One sentence each."""
    (tmp_path / "c.pem").write_text("x", encoding="utf-8")

    with pytest.raises(UsageError, match=r"--client-key"):
        access.options(arguments("--client-cert", str(tmp_path / "c.pem")))
    with pytest.raises(UsageError, match=r"--ca-file .*No such file"):
        access.options(arguments("--ca-file", str(tmp_path / "none.pem")))
