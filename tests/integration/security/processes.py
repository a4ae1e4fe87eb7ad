"""The services as processes of their own, so that what an attack costs them can be measured."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator_core.auth.tokens import new_token, sha256_of

WAIT_S = 60.0
LOOK_S = 0.05
# Source: proc(5), /proc/pid/clear_refs: 5 resets the peak of the resident set.
RESET_PEAK = "5"


@dataclass
class Service:
    """A running service: where it listens, a client's token, and what it says."""

    process: "subprocess.Popen[bytes]"
    address: str
    metrics_port: int
    token: str
    log: Path

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a client's call sends along."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def alive(self) -> bool:
        """True while the process has not ended."""
        return self.process.poll() is None

    @contextmanager
    def growth(self) -> Iterator["Growth"]:
        """Measures by how much the resident set grows above what it is now, at its peak."""
        proc = Path(f"/proc/{self.process.pid}")
        (proc / "clear_refs").write_text(RESET_PEAK, encoding="ascii")
        before = _kib(proc, "VmRSS")
        growth = Growth()
        try:
            yield growth
        finally:
            growth.mib = max(0, _kib(proc, "VmHWM") - before) / 1024


@dataclass
class Growth:
    """Memory that an attack took at its peak, in MiB; known after the block."""

    mib: float = 0.0


def _kib(proc: Path, name: str) -> int:
    lines = (proc / "status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _config(token: str) -> str:
    if not token:
        return ""
    return f'[auth.tokens.client]\nrole = "client"\nsha256 = "{sha256_of(token)}"\n'


@contextmanager
def orchestrator(folder: Path, *, tokens: bool = True, more: str = "") -> Iterator[Service]:
    """An orchestratord, with a token for a client or with none; `more` are further tables."""
    token = new_token() if tokens else ""
    text = (
        'listen = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\nlog_format = "json"\n'
        'shutdown_grace_ms = 0\n[store]\nkind = "memory"\n'
    )
    with _running("orchestrator_core", folder, text + _config(token) + more) as found:
        yield Service(*found[:3], token, found[3])


@contextmanager
def pool_manager(
    folder: Path, orchestrated_at: str = "127.0.0.1:1", *, tokens: bool = True, link: str = ""
) -> Iterator[Service]:
    """A pool-managerd, by default without its orchestrator, with a token for a client or none.

    `link` is the token that it presents to its orchestrator.
    """
    token = new_token() if tokens else ""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "token").write_text(link, encoding="ascii")
    text = (
        f'orchestrator = "{orchestrated_at}"\n'
        'listen = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\n'
        'log_format = "json"\nhost_id = "gpu1"\ndevices = "cpu"\nshutdown_grace_ms = 0\n'
        + ('[link]\ntoken_file = "token"\n' if link else "")
        + '[[pools]]\npool_id = "p0"\nengine = { kind = "mock" }\n'
    )
    with _running("pool_managerd", folder, text + _config(token)) as found:
        yield Service(*found[:3], token, found[3])


@contextmanager
def _running(
    module: str, folder: Path, text: str
) -> Iterator[tuple["subprocess.Popen[bytes]", str, int, Path]]:
    folder.mkdir(parents=True, exist_ok=True)
    config, log = folder / "service.toml", folder / "service.log"
    config.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", module, "--config", str(config)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        address, metrics_port = _listening(process, log)
        yield process, address, metrics_port, log
    finally:
        process.terminate()
        try:
            process.wait(WAIT_S)
        finally:
            process.kill()


def _listening(process: "subprocess.Popen[bytes]", log: Path) -> tuple[str, int]:
    """Waits for the line that says where it listens."""
    until_s = time.monotonic() + WAIT_S
    address, port = "", 0
    while time.monotonic() < until_s:
        assert process.poll() is None, log.read_text(encoding="utf-8", errors="replace")
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            entry = json.loads(line) if line.startswith("{") else {}
            address = (
                entry.get("address", address) if entry.get("event") == "listening" else address
            )
            port = entry.get("metrics_port", port) or port
        if address and port:
            return address, port
        time.sleep(LOOK_S)
    raise AssertionError(log.read_text(encoding="utf-8", errors="replace"))


def bugs(log: Path) -> list[str]:
    """Lines of a log that tell of a bug, and what is no line of ours."""
    found = []
    # The last line may be half written.
    for line in log.read_text(encoding="utf-8").rpartition("\n")[0].splitlines():
        entry = json.loads(line) if line.startswith("{") else {"event": "stray"}
        if (
            entry["event"] in ("internal_error", "telemetry_failed", "stray")
            or "exception" in entry
        ):
            found.append(line[:2_000])
    return found
