"""Who can reach the server: loopback by default, and what opens it. ORCH-3035, HME-002."""

from pathlib import Path

import pytest

from orchestrator_core.config.loading import load_config
from tests.unit.orchestrator_core.config.problems import problems_of

PUBLIC = ["0.0.0.0:7070", "[::]:7070", "192.168.1.2:0", "gpu-box:7070"]
TOKEN = f'[auth.tokens.gpu1]\nrole = "pool"\nsha256 = "{"0a" * 32}"\n'
CERTIFICATE = '[tls]\ncertificate = "a.pem"\nkey = "b.pem"\n'


@pytest.mark.parametrize("address", PUBLIC)
def test_other_machines_cannot_reach_an_unprotected_port(address: str, tmp_path: Path) -> None:
    """ORCH-3035, AUTH-1002: without tokens and TLS only the loopback is listened on."""
    without_tokens, without_tls = problems_of(f'listen = "{address}"', tmp_path).splitlines()

    assert without_tokens.startswith("listen: ")
    assert "orchestratord token" in without_tokens
    assert "tls.certificate" in without_tls
    assert "tls.allow_plaintext" in without_tls


def test_tokens_alone_do_not_open_a_port_to_others(tmp_path: Path) -> None:
    """AUTH-1002: a token that passes in the clear is everybody's."""
    problems = problems_of(f'listen = "0.0.0.0:7070"\n{TOKEN}', tmp_path)

    assert problems.startswith("listen: ")
    assert "pass in the clear" in problems


def test_tls_alone_does_not_open_a_port_to_others(tmp_path: Path) -> None:
    """AUTH-1002: encryption does not say who calls."""
    problems = problems_of(f'listen = "0.0.0.0:7070"\n{CERTIFICATE}', tmp_path)

    assert "nobody would be asked for a token" in problems


@pytest.mark.parametrize("tls", [CERTIFICATE, "[tls]\nallow_plaintext = true\n"])
def test_tokens_with_tls_or_a_stated_risk_open_a_port(tls: str, tmp_path: Path) -> None:
    """AUTH-1002: paths of certificates begin at the folder of the file."""
    path = tmp_path / "orchestratord.toml"
    path.write_text(f'listen = "0.0.0.0:7070"\n{TOKEN}{tls}', encoding="utf-8")

    config = load_config(path, {})

    assert config.listen == "0.0.0.0:7070"
    assert config.tls.certificate in ("", str(tmp_path / "a.pem"))


@pytest.mark.parametrize("address", PUBLIC)
def test_the_port_for_monitors_stays_on_this_machine(address: str, tmp_path: Path) -> None:
    """ORCH-3035: it asks nobody for a token, so tokens do not open it."""
    text = f'metrics_listen = "{address}"\n{TOKEN}{CERTIFICATE}'

    assert problems_of(text, tmp_path).startswith("metrics_listen: ")


def test_a_token_in_the_place_of_its_hash_is_not_repeated(tmp_path: Path) -> None:
    """AUTH-1008: an error names the key and the command, and shows nothing of the token."""
    text = '[auth.tokens.gpu1]\nrole = "pool"\nsha256 = "llorch_not-a-hash"\n'

    problem = problems_of(text, tmp_path)

    assert problem.startswith("auth.tokens.gpu1.sha256: ")
    assert "not-a-hash" not in problem


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[tls]\ncertificate = "a.pem"', "tls.key"),
        ('[tls]\nclient_ca = "a.pem"', "tls.client_ca"),
        (TOKEN + TOKEN.replace("gpu1", "gpu2"), "auth.tokens.gpu2"),
        (TOKEN.replace("gpu1", '"gpu 1"'), "auth.tokens.gpu 1"),
        (TOKEN.replace('"pool"', '"root"'), "auth.tokens.gpu1.role"),
    ],
)
def test_what_does_not_go_together_in_security_is_named(
    text: str, named: str, tmp_path: Path
) -> None:
    """One sentence names the key to change. AUTH-1001."""
    assert named in problems_of(text, tmp_path)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:7070", "localhost:7070", "127.9.9.9:1"])
def test_loopback_addresses_are_taken(address: str) -> None:
    """Port 0 asks for any free port."""
    assert load_config(None, {}, [f"listen={address}"]).listen == address


def test_patterns_that_fit_nothing_are_refused(tmp_path: Path) -> None:
    """ORCH-3080: a port in `deny` would never match, and so deny nothing."""
    text = "[outbound]\nallow = ['*.ok.example', 'https://ok.example']\ndeny = ['bad.example:443']"

    assert problems_of(text, tmp_path) == (
        "outbound.deny: 'bad.example:443' must be HOST, *.HOST or *, with SCHEME:// before it or "
        "not, without a port"
    )
