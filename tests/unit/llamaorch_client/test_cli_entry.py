"""Ctrl-C while `llorch` is still being imported, and before it has anything to undo."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CLIENT = Path(__file__).resolve().parents[3] / "clients" / "python"
BLOCKING_IMPORT = """
import sys
try:
    print("importing", flush=True)
    sys.stdin.read()
except BaseException:
    raise ImportError("what a library makes of an exception") from None
"""


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A stand-in for the client's package: its import says that it began, and then takes long."""
    package = tmp_path / "llamaorch_client"
    package.mkdir()
    (package / "__init__.py").write_text(BLOCKING_IMPORT, encoding="utf-8")
    return tmp_path


def test_an_interrupt_during_the_imports_is_quiet(slow: Path) -> None:
    """No traceback, and the exit code of every Ctrl-C."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(slow), str(CLIENT)))}
    with subprocess.Popen(
        [sys.executable, "-m", "llorch", "status"],
        cwd=slow,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)

    assert (process.returncode, stderr) == (130, "")


def test_an_interrupt_before_the_command_begins_is_quiet(tmp_path: Path) -> None:
    """While the command line is read, and while another package's command is imported."""
    module = tmp_path / "llamaorch_client" / "cli" / "main.py"
    module.parent.mkdir(parents=True)
    for package in (module.parent, module.parent.parent):
        (package / "__init__.py").touch()
    module.write_text("def main():\n    raise KeyboardInterrupt\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(CLIENT)))}

    ended = subprocess.run(
        [sys.executable, "-m", "llorch"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert (ended.returncode, ended.stderr) == (130, "")
