"""`pool-managerd check` says whether the orchestrator would take the host. AUTH-1004."""

import asyncio
from pathlib import Path

from pool_managerd.cli.check import inspect_host
from pool_managerd.config.schema import Config
from pool_managerd.devices.cpu import CpuDevices
from tests.integration.security.conftest import Guarded

WAIT_S = 20.0


async def said(guarded: Guarded, **link: object) -> str:
    """What stands between this host and the orchestrator; empty for nothing."""
    config = Config.model_validate(
        {
            "orchestrator": guarded.address,
            "listen": "127.0.0.1:0",
            "devices": "cpu",
            "link": link,
            "pools": [{"pool_id": "a", "engine": {"kind": "mock"}}],
        }
    )
    async with asyncio.timeout(WAIT_S):
        report = await inspect_host(config, CpuDevices(), all_digests=False)
    assert bool(report.exit_code) is bool(report.fatal)
    return "\n".join(report.fatal)


async def test_a_host_that_would_be_refused_is_told_before_it_starts(
    guarded: Guarded, tmp_path: Path
) -> None:
    """No token, no file, the token of another role, TLS on one side; and a good one."""
    files = {role: tmp_path / role for role in ("client", "pool")}
    for role, file in files.items():
        file.write_text(guarded.tokens[role])

    assert "role pool" in await said(guarded)
    assert "link.token_file" in await said(guarded, token_file=str(tmp_path / "none"))
    assert "role client" in await said(guarded, token_file=str(files["client"]))
    tls = {"enabled": True}
    assert await said(guarded, token_file=str(files["pool"]), tls=tls)
    assert await said(guarded, token_file=str(files["pool"])) == ""
