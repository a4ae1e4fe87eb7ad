"""`make gpu-check` on a scripted driver, with a scripted nvidia-smi: what a real GPU would run."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llamaorch.pool.v1 import snapshot_pb2 as pb
from tests.gpu import report, smi
from tests.gpu.engine import Ran
from tests.nvml_stub.stub import NO_COMPILER, StubDriver, build, compiler, h200

ROOT = Path(__file__).parents[3]
MIB_TOTAL, MIB_USED, MIB_FREE = 140 << 10, 39 << 10, 100 << 10
SMI = {
    "name": "NVIDIA H200",
    "driver_version": "580.65.06",
    "compute_cap": "9.0",
    "index": "0",
    "memory.total": str(MIB_TOTAL),
    "memory.reserved": "1024",
    "memory.used": str(MIB_USED),
    "memory.free": str(MIB_FREE),
    "temperature.gpu": "63",
    "clocks.max.sm": "2000",
    "ecc.errors.uncorrected.volatile.total": "1",
    "ecc.errors.uncorrected.aggregate.total": "7",
    "utilization.gpu": "12",
    "power.draw": "341.20",
    "clocks.sm": "1480",
    "clocks.mem": "2600",
}


def test_all_that_agrees_is_a_report_that_everything_held(tmp_path: Path) -> None:
    """Fields are compared, allocated memory arrives in time, and the report says so."""
    if compiler() is None:
        pytest.skip(NO_COMPILER)
    driver = StubDriver(tmp_path, build(tmp_path / "lib"))
    driver.set(h200())

    line = ", ".join(["GPU-a", *(SMI[field.query] for field in smi.FIELDS)])
    command = tmp_path / "bin" / "nvidia-smi"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\necho '{line}'\n", encoding="utf-8")
    command.chmod(0o755)
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "proto", "clients/python"))
    # Of PATH only what runs a shell script: no llama-server of this machine.
    environment = {**driver.environment, "PATH": f"{command.parent}:/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.check", "--folder", str(tmp_path / "out")],
        env={**environment, "PYTHONPATH": paths},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "out").iterdir()
    assert path.name.endswith("-nvidia-h200.md")
    text = path.read_text(encoding="utf-8")
    assert "everything held. Driver 580.65.06, CUDA 13.0" in text
    assert "| compute_capability | 9.0 | 9.0 | same |" in text
    assert "| power_milliwatts | 350000 | 341.20 | shown |" in text
    assert "2048 MiB arrived in a snapshot after" in text
    assert "not run: no llama-server on PATH" in text


@pytest.mark.parametrize(
    ("query", "theirs", "differs"),
    [
        ("memory.total", str(MIB_TOTAL - 2), ["memory_total_bytes"]),
        ("memory.used", str(MIB_USED + 1000), ["memory_used_bytes"]),
        ("memory.used", str(MIB_USED + 40), []),
        ("temperature.gpu", "[N/A]", ["temperature_celsius"]),
        ("temperature.gpu", "75", ["temperature_celsius"]),
        ("name", "NVIDIA H100", ["name"]),
        ("power.draw", "3.0", []),
    ],
)
def test_what_differs_is_named_and_fails_the_check(
    query: str, theirs: str, differs: list[str]
) -> None:
    """Within what rounding and other programs explain, fields agree; fast ones are only shown."""
    device = pb.Device(
        device_id="GPU-a",
        name="NVIDIA H200",
        index=0,
        compute_capability="9.0",
        driver_version="580.65.06",
        memory_total_bytes=MIB_TOTAL << 20,
        memory_free_bytes=MIB_FREE << 20,
        memory_used_bytes=MIB_USED << 20,
        memory_reserved_bytes=1 << 30,
        utilization_ratio=0.5,
        temperature_celsius=61,
        power_milliwatts=350_000,
        sm_clock_mhz=1500,
        max_sm_clock_mhz=2000,
        memory_clock_mhz=2600,
        ecc_uncorrected_total=1,
        ecc_uncorrected_aggregate=7,
    )

    compared = smi.compare(device, {**SMI, query: theirs})
    checked = report.Checked(device, compared, report.Arrival(1, 0.5, ""))

    assert [row.field for row in compared if row.verdict == "differs"] == differs
    assert report.held([checked], Ran(None, "not run"), bar_s=2) == (not differs)
    late = replace(checked, compared=[], arrival=report.Arrival(1, 2.5, ""))
    assert not report.held([late], Ran(None, "not run"), bar_s=2)


@pytest.mark.skipif(
    any(Path("/proc/driver").glob("nvidia/version")), reason="this machine has an NVIDIA driver"
)
def test_without_a_gpu_it_says_so_and_exits_with_2() -> None:
    """One sentence on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.check"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/proto"},
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.startswith("gpu-check: no NVIDIA GPU that could be checked: libnvidia-ml")
    assert done.stderr.count("\n") == 1
