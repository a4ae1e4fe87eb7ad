"""Failpoints of both services: how they are armed, and that each name stands for a place."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import orchestrator_core.failpoints
import pool_managerd.failpoints

ROOT = Path(__file__).parents[2]
SERVICES = (orchestrator_core.failpoints, pool_managerd.failpoints)
both = pytest.mark.parametrize("module", SERVICES, ids=["orchestratord", "pool-managerd"])


@both
def test_every_point_is_named_in_the_source_and_in_the_documents(module: ModuleType) -> None:
    """No name stands for nothing, and no place has a name that nobody can look up."""
    package = Path(str(module.__file__)).parent
    sources = [file for file in package.rglob("*.py") if file.name != "failpoints.py"]
    text = "\n".join(file.read_text() for file in sources)
    page = (ROOT / "docs" / "chaos.md").read_text()

    reached = set(re.findall(r'failpoints\.reach\("([^"]+)"\)', text))

    assert reached <= set(module.POINTS)
    assert {name for name in module.POINTS if f'"{name}"' not in text} == set()
    assert {name for name in module.POINTS if f"`{name}`" not in page} == set()


@both
def test_an_unknown_name_is_refused_with_the_nearest(module: ModuleType) -> None:
    """A typing error does not run a test without its fault."""
    (name, *_) = [point for point in module.POINTS if "end" in point]

    with pytest.raises(ValueError, match=f"did you mean {name}\\?"):
        module.arm(f"{name[:-1]}:2")


@both
@pytest.mark.parametrize("rest", ["0", "-1", "many", "1:explode", ":kill"])
def test_a_wrong_pass_or_action_is_refused(module: ModuleType, rest: str) -> None:
    """The message names the variable that is wrong."""
    name = next(iter(module.POINTS))

    with pytest.raises(ValueError, match=module.VARIABLE):
        module.arm(f"{name}:{rest}")


@both
def test_it_dies_at_the_pass_that_was_named(module: ModuleType) -> None:
    """Passes before it, and other points, change nothing."""
    first, second, *_ = module.POINTS
    program = (
        f"import {module.__name__} as f; f.arm('{first}:3');"
        f"[print(i, flush=True) or f.reach('{second}') or f.reach('{first}') for i in range(5)]"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False
    )

    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == [b"0", b"1", b"2"]


@pytest.mark.parametrize("service", ["orchestrator_core", "pool_managerd"])
def test_a_service_refuses_to_start_with_an_unknown_point(tmp_path: Path, service: str) -> None:
    """Exit code 2 and the nearest name, before anything listens."""
    config = tmp_path / "pools.toml"
    config.write_text(
        'orchestrator = "127.0.0.1:1"\nlisten = "127.0.0.1:0"\ndevices = "cpu"\n'
        '[[pools]]\npool_id = "p"\n[pools.engine]\nkind = "mock"\n'
        if service == "pool_managerd"
        else 'listen = "127.0.0.1:0"\n'
    )
    environment = os.environ | {
        "LLAMAORCH_FAILPOINT": "end.befor",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "proto"))),
    }

    done = subprocess.run(
        [sys.executable, "-m", service, "--config", config],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 2
    assert b"did you mean end.before?" in done.stderr
