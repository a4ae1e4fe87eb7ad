"""`pool-managerd check`: what is here, what is wrong, and the exit code."""

import asyncio
import json
import sys
from pathlib import Path

import pytest
from aiohttp import web

from pool_managerd.__main__ import main
from pool_managerd.config import load_config
from pool_managerd.devices.cpu import CpuDevices
from pool_managerd.inspection import inspect_host, report_lines
from pool_managerd.models.tiny_gguf import write_tiny_model

NO_DIGEST = "sha256:" + 64 * "0"
HEAD = 'devices = "cpu"\nlisten = "127.0.0.1:0"\norchestrator = "127.0.0.1:9"\n'


def embedded(pool_id: str, path: str, more: str = "") -> str:
    """A pool of the embedded engine."""
    return (
        f'[[pools]]\npool_id = "{pool_id}"\n[pools.engine]\nkind = "embedded"\n'
        f'model_path = "{path}"\nmodel_id = "m"\n{more}\n'
    )


def llama_server(pool_id: str, more: str) -> str:
    """A pool of a server."""
    return f'[[pools]]\npool_id = "{pool_id}"\n[pools.engine]\nkind = "llama_server"\nmodel_id = "m"\n{more}\n'  # noqa: E501 - one text


def check(directory: Path, text: str, *arguments: str) -> int:
    """The command's exit code."""
    path = directory / "pool-managerd.toml"
    path.write_text(text, encoding="utf-8")
    return main(["check", "--config", str(path), *arguments])


def test_a_host_that_can_start_everything_exits_with_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Devices, engine, model with digest and size, and what it takes of the memory."""
    write_tiny_model(tmp_path / "tiny.gguf")

    code = check(tmp_path, HEAD + embedded("a", "tiny.gguf"))
    out = capsys.readouterr().out

    assert code == 0
    for words in (
        "cpu: ",
        "xllamacpp 20",
        "pool a: ok",
        "sha256:25ba81",
        "weights 0.3 MiB + cache",
    ):
        assert words in out
    assert "orchestrator 127.0.0.1:9 does not answer" in out


def test_every_pool_that_cannot_start_is_told_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 while the pool manager itself would start; all problems, not the first."""
    write_tiny_model(tmp_path / "tiny.gguf")
    text = HEAD + "".join(
        (
            embedded("missing", "absent.gguf"),
            embedded("other", "tiny.gguf", f'model_digest = "{NO_DIGEST}"'),
            llama_server("silent", 'base_url = "http://127.0.0.1:9"'),
            llama_server("program", 'launch = { command = ["no-such-server"] }'),
            llama_server("fine", f'launch = {{ command = ["{sys.executable}"] }}'),
        )
    )

    code = check(tmp_path, text, "--json")
    report = json.loads(capsys.readouterr().out)

    problems = {pool["pool_id"]: " ".join(pool["problems"]) for pool in report["pools"]}
    assert (code, report["exit_code"]) == (1, 1)
    assert "absent.gguf does not exist" in problems["missing"]
    assert f"but model_digest is {NO_DIGEST}" in problems["other"]
    assert "http://127.0.0.1:9 does not answer" in problems["silent"]
    assert "no program no-such-server" in problems["program"]
    assert problems["fine"] == ""


def test_what_keeps_the_pool_manager_from_starting_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mask that names no device, and a file that cannot be used."""
    write_tiny_model(tmp_path / "tiny.gguf")
    pool = embedded("a", "tiny.gguf").replace("[pools.engine]", 'devices = ["7"]\n[pools.engine]')

    mask = check(tmp_path, HEAD + pool)
    said = capsys.readouterr().out
    unusable = check(tmp_path, "devises = 1\n" + HEAD + pool)

    assert (mask, unusable) == (2, 2)
    assert "! pools.a.devices: no device 7; this host has: cpu" in said
    assert 'did you mean "devices"?' in capsys.readouterr().err


async def test_a_server_that_answers_is_found_and_a_running_host_is_noted(tmp_path: Path) -> None:
    """Any answer to /health counts; whoever listens where we would is told of."""
    runner = web.AppRunner(web.Application())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    head = HEAD.replace('listen = "127.0.0.1:0"', f'listen = "127.0.0.1:{port}"')
    path = tmp_path / "c.toml"
    path.write_text(head + llama_server("up", f'base_url = "http://127.0.0.1:{port}"'))

    try:
        async with asyncio.timeout(20):
            config = load_config(path, {})
            report = await inspect_host(config, CpuDevices(), all_digests=False)
    finally:
        await runner.cleanup()

    text = "\n".join(report_lines(report))
    assert report.exit_code == 0
    assert "answers (HTTP 404 to /health)" in text
    assert f"127.0.0.1:{port} is in use" in text
