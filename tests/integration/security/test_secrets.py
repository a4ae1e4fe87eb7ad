"""No token is written anywhere, whatever goes wrong with it. AUTH-1008."""

import time
from pathlib import Path

import grpc
import pytest

from orchestrator_core.auth.tokens import fingerprint, new_token, sha256_of
from orchestrator_core.config.loading import load_config
from orchestrator_core.config.problems import ConfigError as OrchestratorConfigError
from pool_managerd.config.loading import load_config as load_host_config
from pool_managerd.config.problems import ConfigError as HostConfigError
from tests.integration.security.processes import WAIT_S, orchestrator, pool_manager

OVERVIEW = "/llamaorch.orchestrator.v1.OrchestratorService/GetOverview"
HASH = "ab" * 32


def ways(token: str) -> list[tuple[str, tuple[tuple[str, str | bytes], ...], bytes]]:
    """Calls that present a token: method, metadata, message."""
    bearer = ("authorization", f"Bearer {token}")
    return [
        (OVERVIEW, (bearer,), b""),
        (OVERVIEW, (bearer, bearer), b""),
        (OVERVIEW, (("authorization", token),), b""),
        (OVERVIEW, (("authorization", f"Basic {token}"),), b""),
        (OVERVIEW, (("authorization-bin", token.encode()),), b""),
        (OVERVIEW, (("x-token", token),), b"\xff\xff"),
        (OVERVIEW, (bearer,), b"\xff" + token.encode()),
        ("/x.Unknown/Method", (bearer,), b""),
        ("/llamaorch.orchestrator.v1.PoolAdminService/DrainPool", (bearer,), b""),
    ]


def test_no_token_is_written_whatever_is_done_with_it(tmp_path: Path) -> None:
    """AUTH-1008: good, foreign and misplaced ones, at both services and on the link."""
    foreign, of_the_host = new_token(), new_token()
    answers = []
    with (
        orchestrator(tmp_path / "o") as first,
        pool_manager(tmp_path / "p", first.address, link=of_the_host) as second,
    ):
        for service in (first, second):
            with grpc.insecure_channel(service.address) as channel:
                for method, metadata, message in [*ways(service.token), *ways(foreign)]:
                    try:
                        channel.unary_unary(method)(message, metadata=metadata, timeout=WAIT_S)
                    except grpc.RpcError as error:
                        answers.append(str(error))
        until_s = time.monotonic() + WAIT_S
        while "session_lost" not in second.log.read_text(encoding="utf-8"):
            assert time.monotonic() < until_s
            time.sleep(0.05)
        secrets = (first.token, second.token, foreign, of_the_host)
        logs = [each.log for each in (first, second)]
    written = "".join(log.read_text(encoding="utf-8") for log in logs)

    assert len(answers) > 20
    assert "call_refused" in written
    assert fingerprint(foreign) in written
    for secret in secrets:
        assert secret not in written + "".join(answers)
        assert sha256_of(secret) not in written + "".join(answers)


def test_grpc_must_not_trace_where_there_are_tokens(tmp_path: Path) -> None:
    """AUTH-1008: its traces hold every header; without tokens they are nobody's business."""
    trace = {"GRPC_TRACE": "http"}
    tokens = f'[auth.tokens.a]\nrole = "client"\nsha256 = "{HASH}"\n'
    (tmp_path / "o.toml").write_text(tokens, encoding="utf-8")
    host = (
        'orchestrator = "127.0.0.1:1"\nhost_id = "h"\ndevices = "cpu"\n{}'
        '[[pools]]\npool_id = "p"\nengine = {{ kind = "mock" }}\n'
    )
    (tmp_path / "p.toml").write_text(host.format('[link]\ntoken_file = "t"\n'), encoding="utf-8")
    (tmp_path / "q.toml").write_text(host.format(""), encoding="utf-8")

    with pytest.raises(OrchestratorConfigError, match="GRPC_TRACE"):
        load_config(tmp_path / "o.toml", trace)
    with pytest.raises(HostConfigError, match="GRPC_TRACE"):
        load_host_config(tmp_path / "p.toml", trace)
    assert load_config(None, trace)
    assert load_host_config(tmp_path / "q.toml", trace)
