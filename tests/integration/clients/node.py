"""Installs and runs the Node smoke client."""

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
NODE = shutil.which("node")
NPM = shutil.which("npm")
INSTALL_TIMEOUT_S = 50.0
RUN_TIMEOUT_S = 20.0
# npm's words for "no registry can be reached"; every other failure is a defect of the lock file.
OFFLINE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT", "ENETUNREACH")

needs_node = pytest.mark.skipif(
    NODE is None or NPM is None, reason="node and npm are needed for the Node client"
)


async def _process(*command: str, cwd: Path, timeout_s: float) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, stdout.decode(), stderr.decode()


async def _installed() -> Path:
    """Installs the locked packages once per lock file; returns the folder with the client in it."""
    source = ROOT / "clients" / "node"
    target = ROOT / ".build" / "node-smoke"
    target.mkdir(parents=True, exist_ok=True)
    lock = (source / "package-lock.json").read_bytes()
    stamp = target / "installed-lock.json"
    for name in ("package.json", "package-lock.json", "smoke.mjs"):
        shutil.copyfile(source / name, target / name)
    if not stamp.exists() or stamp.read_bytes() != lock:
        assert NPM is not None
        command = (NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
        code, _, stderr = await _process(*command, cwd=target, timeout_s=INSTALL_TIMEOUT_S)
        if code != 0 and any(sign in stderr for sign in OFFLINE):
            pytest.skip("the Node packages cannot be fetched from here")
        assert code == 0, stderr
        stamp.write_bytes(lock)
    return target


async def _third_party() -> Path:
    """Returns a folder with google/rpc/*.proto, made by the command that `make deps` runs."""
    made = ROOT / ".build" / "third_party"
    if not (made / "google" / "rpc" / "status.proto").exists():
        script = str(ROOT / "ci" / "copy_third_party_protos.py")
        code, _, stderr = await _process(sys.executable, script, cwd=ROOT, timeout_s=RUN_TIMEOUT_S)
        assert code == 0, stderr
    return made


async def run_smoke(address: str) -> tuple[int, Any]:
    """Runs the client against a server; returns its exit code and its summary."""
    folder = await _installed()
    assert NODE is not None
    command = (NODE, "smoke.mjs", "--server", address, "--model", "tiny")
    protos = ("--proto", str(ROOT / "proto"), "--include", str(await _third_party()))
    code, stdout, stderr = await _process(*command, *protos, cwd=folder, timeout_s=RUN_TIMEOUT_S)
    assert stdout, stderr
    return code, json.loads(stdout)
