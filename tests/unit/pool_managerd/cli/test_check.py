"""`pool-managerd check`: what is here, what is wrong, and the exit code."""

import asyncio
import json
import sys
from pathlib import Path

import pytest
from aiohttp import web

from pool_managerd.__main__ import main
from pool_managerd.cli.check import inspect_host, report_lines
from pool_managerd.config.loading import load_config
from pool_managerd.core.device import Device, DeviceHealth, DeviceKind
from pool_managerd.devices.cpu import CpuDevices
from pool_managerd.devices.port import OnChange, OnFault
from pool_managerd.engines.embedded_worker import NO_GPU
from pool_managerd.models.tiny_gguf import TinyShape, write_tiny_model

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
        "would take 15",
        "plan: 2 layers from 0 and the output on the host",
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
            llama_server("program", 'launch = { command = ["no-such-server", "{port}"] }'),
            llama_server("fine", f'launch = {{ command = ["{sys.executable}", "{{port}}"] }}'),
        )
    )

    code = check(tmp_path, text, "--json")
    report = json.loads(capsys.readouterr().out)

    problems = {pool["pool_id"]: " ".join(pool["problems"]) for pool in report["pools"]}
    assert (code, report["exit_code"]) == (1, 1)
    assert "absent.gguf does not exist" in problems["missing"]
    assert f", not {NO_DIGEST}" in problems["other"]
    assert "http://127.0.0.1:9 does not answer: nobody listens there" in problems["silent"]
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
    assert "pool a: cannot start" in said
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


def by_ref(pool_id: str, ref: str) -> str:
    """A pool whose model is a reference."""
    return embedded(pool_id, "").replace('model_path = ""', f'model_ref = "{ref}"')


def test_a_reference_is_told_as_a_start_would_find_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here, to be fetched, or forbidden; nothing is fetched. ORCH-3080."""
    write_tiny_model(tmp_path / "tiny.gguf")
    other = f"https://other.example/x.gguf#{NO_DIGEST.replace(':', '=')}"
    pools = (
        by_ref("here", "file:tiny.gguf"),
        by_ref("hub", "hf:org/repo/a.gguf"),
        by_ref("other", other),
        by_ref("gone", "absent.gguf"),
    )
    text = HEAD + f'models.cache_directory = "{tmp_path}/cache"\noutbound.enabled = true\n'

    code = check(tmp_path, text + "".join(pools), "--json")
    found = {pool["pool_id"]: pool for pool in json.loads(capsys.readouterr().out)["pools"]}
    facts = {pool_id: " ".join(pool["facts"]) for pool_id, pool in found.items()}
    problems = {pool_id: " ".join(pool["problems"]) for pool_id, pool in found.items()}

    assert code == 1
    assert problems["here"] == problems["hub"] == ""
    assert "would take 15" in facts["here"]
    assert "would be fetched from huggingface.co (outbound.allow huggingface.co)" in facts["hub"]
    assert (
        "is not on this host, and fetching from other.example is not allowed" in problems["other"]
    )
    assert "absent.gguf does not exist" in problems["gone"]


class TwoGpus:
    """A host with a large GPU and a small, unwell one."""

    async def start(self, on_fault: OnFault, on_change: OnChange) -> None:
        """Nothing to do."""

    def devices(self) -> tuple[Device, ...]:
        """The facts."""
        gib = 1 << 30
        sizes = {"memory_total_bytes": 8 * gib, "memory_free_bytes": 8 * gib}
        small = {"memory_total_bytes": gib // 2, "memory_free_bytes": gib // 2}
        return (
            Device("GPU-a", DeviceKind.GPU, "RTX 3070", 0, **sizes),
            Device("GPU-b", DeviceKind.GPU, "RTX 3060", 1, **small),
            Device("GPU-c", DeviceKind.GPU, "RTX 3060", 2).unwell(
                DeviceHealth.LOST, "GPU 2 fell off the bus"
            ),
        )

    def read_at_ms(self) -> int:
        """Nobody waits for a reading."""
        return 0

    async def stop(self) -> None:
        """Nothing to do."""


async def test_what_pools_take_is_told_for_each_device_in_the_words_of_a_start(
    tmp_path: Path,
) -> None:
    """One after the other: what fits alone need not fit beside the pools before it. ORCH-3003."""
    write_tiny_model(tmp_path / "tiny.gguf")

    def on(device: str, pool_id: str, more: str = "") -> str:
        pool = embedded(pool_id, "tiny.gguf", "gpu_layers = -1")
        mask = f'devices = ["{device}"]\n{more}'
        return pool.replace("[pools.engine]", f"{mask}\n[pools.engine]")

    path = tmp_path / "c.toml"
    path.write_text(
        HEAD
        + on("1", "first")
        + on("1", "second")
        + on("1", "warned", 'memory_check = "warn"')
        + on("0", "stated", "vram_claim_ratio = 0.5")
        + on("2", "lost")
    )

    async with asyncio.timeout(20):
        report = await inspect_host(load_config(path, {}), TwoGpus(), all_digests=False)
    facts = {pool.pool_id: " ".join(pool.facts) for pool in report.pools}
    # These GPUs are there for us alone, not for the engine.
    assert all(NO_GPU in pool.problems for pool in report.pools)
    problems = {
        pool.pool_id: " ".join(told for told in pool.problems if told != NO_GPU)
        for pool in report.pools
    }

    assert "of GPU 1 (RTX 3060)" in facts["first"]
    assert "plan: 2 layers from 0 and the output on GPU 1 (RTX 3060)" in facts["first"]
    assert problems["first"] == problems["warned"] == problems["stated"] == ""
    assert problems["second"].startswith("GPU 1 (RTX 3060) lacks ")
    assert "other pools of this host claim 45" in problems["second"]
    assert "starts all the same: GPU 1 (RTX 3060) lacks " in facts["warned"]
    assert "would take 4.0 GiB of GPU 0 (RTX 3070)" in facts["stated"]
    assert "as the configuration states" in facts["stated"]
    assert problems["lost"] == "GPU 2 fell off the bus"
    assert "LOST: GPU 2 fell off the bus" in report.devices[2]


def test_a_context_that_the_model_does_not_have_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pool can start all the same: the exit code says so."""
    write_tiny_model(tmp_path / "tiny.gguf", TinyShape(context=512))
    pool = embedded("a", "tiny.gguf", "ctx_per_slot = 2048")

    code = check(tmp_path, HEAD + pool)
    told = capsys.readouterr().out
    check(tmp_path, HEAD + pool, "--json")
    (shown,) = json.loads(capsys.readouterr().out)["pools"]

    assert code == 0
    assert "  warning: ctx_per_slot = 2048, but the model was trained with" in told
    assert [warning[:19] for warning in shown["warnings"]] == ["ctx_per_slot = 2048"]
