"""A process that reads devices through the real binding and the stub of NVML."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nvml_stub.stub import NO_COMPILER, StubDriver, build, compiler

ROOT = Path(__file__).parents[3]
INTERVAL_MS = 20

Facts = dict[str, Any]


class Host:
    """The runner in its process, and the driver that it sees.

    Every wait is for a line of the runner; the test's own timeout bounds it.
    """

    def __init__(self, driver: StubDriver, environment: dict[str, str]) -> None:
        self.driver = driver
        self.faults: list[tuple[str, str]] = []
        paths = os.pathsep.join(str(ROOT / part) for part in (".", "proto", "clients/python"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.nvml_stub.runner"],
            env={**environment, "PYTHONPATH": paths},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start(self) -> str:
        """Starts reading; returns "started", or the sentence with which it was refused."""
        self.faults.clear()
        self.driver.forget_calls()
        self._send({"do": "start", "interval_ms": INTERVAL_MS})
        while True:
            kind, value = self._next()
            if kind in ("started", "refused"):
                return "started" if kind == "started" else str(value)

    def read(self) -> list[Facts]:
        """Starts, and returns the first reading."""
        self._send({"do": "start", "interval_ms": INTERVAL_MS})
        self.faults.clear()
        return self.until(lambda _devices: True)

    def until(self, condition: Callable[[list[Facts]], bool]) -> list[Facts]:
        """The next reading that satisfies `condition`."""
        while True:
            kind, value = self._next()
            if kind == "devices" and condition(value):
                return list(value)

    def until_fault(self, condition: Callable[[str, str], bool]) -> tuple[str, str]:
        """The next word on a device's health that satisfies `condition`."""
        while True:
            kind, value = self._next()
            if kind == "fault" and condition(*value):
                return value[0], value[1]

    def readings(self, count: int) -> None:
        """Lets so many readings pass."""
        for _ in range(count):
            self.until(lambda _devices: True)

    def ask(self) -> list[Facts]:
        """What is told at this moment, whether or not the driver answers."""
        self._send({"do": "ask"})
        while True:
            kind, value = self._next()
            if kind == "asked":
                return list(value)

    def stop(self) -> None:
        """Stops reading and waits for that."""
        self._send({"do": "stop"})
        while self._next()[0] != "stopped":
            pass

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate(timeout=20)

    def _send(self, command: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def _next(self) -> tuple[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the runner ended"
        ((kind, value),) = json.loads(line).items()
        if kind == "fault":
            self.faults.append((value[0], value[1]))
        return kind, value


def _host(folder: Path, *, old_driver: bool) -> Iterator[Host]:
    if compiler() is None:
        pytest.skip(NO_COMPILER)
    driver = StubDriver(folder, build(folder / "lib", old_driver=old_driver))
    driver.set()
    host = Host(driver, driver.environment)
    yield host
    host.close()


@pytest.fixture(scope="session")
def new_driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One process for all tests: what the driver answers is scripted by each."""
    yield from _host(tmp_path_factory.mktemp("nvml"), old_driver=False)


@pytest.fixture(scope="session")
def old_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The same with a library that lacks the younger functions."""
    yield from _host(tmp_path_factory.mktemp("nvml-old"), old_driver=True)


@pytest.fixture
def host(new_driver: Host) -> Iterator[Host]:
    """The process, with nothing running before and after the test."""
    yield new_driver
    new_driver.stop()
