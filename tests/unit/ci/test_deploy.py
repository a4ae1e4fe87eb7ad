"""The systemd units: what they must say, and that systemd understands them."""

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator_core.config.loading import load_config as load_orchestrator
from pool_managerd.config.loading import load_config
from pool_managerd.config.schema import Config
from pool_managerd.config.supervision import SupervisionTable

UNITS = Path(__file__).parents[3] / "deploy" / "systemd"
NAMES = ("orchestratord.service", "pool-managerd.service")
LEAVING_S = 2 + 5 + 1


class _Parser(configparser.RawConfigParser):
    def optionxform(self, optionstr: str) -> str:
        return optionstr


def unit(name: str) -> configparser.RawConfigParser:
    """A unit file; continuation lines and repeated keys do not occur in ours."""
    parser = _Parser(interpolation=None)
    parser.read_string((UNITS / name).read_text(encoding="utf-8"))
    return parser


@pytest.mark.parametrize("name", NAMES)
def test_units_restart_after_a_crash_and_not_after_a_refusal(name: str) -> None:
    """Exit code 2 means that it cannot start as configured."""
    service = unit(name)["Service"]

    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"
    assert service["User"] == "llama-orch"
    assert service["NoNewPrivileges"] == service["PrivateTmp"] == "yes"
    assert service["ProtectSystem"] == "strict"


def test_engines_are_left_to_the_pool_manager_until_its_time_is_over() -> None:
    """SIGTERM reaches the pool manager alone; the grace holds a whole drain. OC-CTRL-2002."""
    service = unit("pool-managerd.service")["Service"]
    grace_ms = Config.model_fields["shutdown_grace_ms"].default
    stop_ms = 2 * SupervisionTable().stop_timeout_ms

    assert service["KillMode"] == "mixed"
    assert int(service["TimeoutStopSec"]) >= (grace_ms + stop_ms) / 1000 + LEAVING_S
    assert service["OOMPolicy"] == "continue"
    assert "-HUP $MAINPID" in service["ExecReload"]


def test_engines_are_kept_from_the_machine_and_from_what_others_run() -> None:
    """A model's own code may run there; the devices are what it needs."""
    service = unit("pool-managerd.service")["Service"]
    denied = service["SystemCallFilter"].removeprefix("~").split()

    assert service["CapabilityBoundingSet"] == ""
    assert service["ProtectProc"] == "invisible"
    assert {"@clock", "@debug", "@module", "@mount", "@raw-io", "@reboot", "@swap"} <= {*denied}
    assert service["SystemCallErrorNumber"] == "EPERM"
    assert "PrivateDevices" not in service


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("name", NAMES)
def test_systemd_understands_the_units(name: str, tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say about a unit whose program exists."""
    text = (UNITS / name).read_text(encoding="utf-8")
    program = f"/opt/llama-orch/bin/{name.removesuffix('.service')}"
    assert program in text
    copy = tmp_path / name
    copy.write_text(text.replace(program, sys.executable), encoding="utf-8")

    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)],  # noqa: S607 - found above
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_the_example_configurations_write_where_the_units_may() -> None:
    """Both are taken as they are, and name nothing below /etc."""
    orchestrator = load_orchestrator(UNITS / "orchestratord.toml", {})
    host = load_config(UNITS / "pool-managerd.toml", {})

    state, cache, logs = (f"/var/{kind}/llama-orch" for kind in ("lib", "cache", "log"))
    assert orchestrator.store.path.startswith(state)
    assert orchestrator.recorder.path.startswith(state)
    assert host.engine_logs.directory.startswith(logs)
    assert host.models.cache_directory.startswith(cache)
