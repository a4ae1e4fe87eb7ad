"""What nvidia-smi says of each GPU, and how a snapshot compares with it."""

import csv
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from llamaorch.pool.v1 import snapshot_pb2

MIB = 1 << 20
TIMEOUT_S = 60
Judge = Callable[[float, float], bool]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a `Device`, what nvidia-smi calls it, and when both agree.

    `unit` is what a unit of nvidia-smi is in units of the snapshot; 0 compares texts. Without
    `agrees` the field changes too fast to be judged and is only shown.
    """

    name: str
    query: str
    unit: float = 0.0
    agrees: Judge | None = None


def _same(one: float, other: float) -> bool:
    return one == other


def _near(share: float, margin: float) -> Judge:
    return lambda one, other: abs(one - other) <= margin + share * max(one, other)


FIELDS = (
    Field("name", "name"),
    Field("driver_version", "driver_version"),
    Field("compute_capability", "compute_cap"),
    Field("index", "index", 1, _same),
    # nvidia-smi rounds to whole MiB, and other programs allocate between the two looks.
    Field("memory_total_bytes", "memory.total", MIB, _near(0, MIB)),
    Field("memory_reserved_bytes", "memory.reserved", MIB, _near(0.05, 8 * MIB)),
    Field("memory_used_bytes", "memory.used", MIB, _near(0.02, 64 * MIB)),
    Field("memory_free_bytes", "memory.free", MIB, _near(0.02, 64 * MIB)),
    Field("temperature_celsius", "temperature.gpu", 1, _near(0, 8)),
    Field("max_sm_clock_mhz", "clocks.max.sm", 1, _same),
    Field("ecc_uncorrected_total", "ecc.errors.uncorrected.volatile.total", 1, _same),
    Field("ecc_uncorrected_aggregate", "ecc.errors.uncorrected.aggregate.total", 1, _same),
    Field("utilization_ratio", "utilization.gpu", 0.01),
    Field("power_milliwatts", "power.draw", 1000),
    Field("sm_clock_mhz", "clocks.sm", 1),
    Field("memory_clock_mhz", "clocks.mem", 1),
)


@dataclass(frozen=True, slots=True)
class Compared:
    """A field on both sides, as text; `verdict` is "same", "differs" or "shown"."""

    field: str
    ours: str
    theirs: str
    verdict: str


def query() -> dict[str, dict[str, str]]:
    """Fields by GPU UUID and by their names at nvidia-smi; empty without nvidia-smi.

    Raises:
        subprocess.SubprocessError: when it fails.
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    names = ["uuid", *(field.query for field in FIELDS)]
    asked = [command, f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    rows = csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows if row}


def compare(device: snapshot_pb2.Device, smi: dict[str, str]) -> list[Compared]:
    """Each field of a device beside what nvidia-smi says of it."""
    return [_compare(field, device, smi[field.query].strip()) for field in FIELDS]


def _compare(field: Field, device: snapshot_pb2.Device, theirs: str) -> Compared:
    value = getattr(device, field.name) if device.HasField(field.name) else None
    # "[N/A]", "[Not Supported]", "[Unknown Error]": absent there as well.
    absent = theirs.startswith("[") or theirs == "N/A"
    if value is None or absent:
        verdict = "same" if value is None and absent else "differs"
        return Compared(field.name, "absent" if value is None else str(value), theirs, verdict)
    if not field.unit:
        verdict = "same" if value == theirs else "differs"
        return Compared(field.name, str(value), theirs, verdict)
    number = float(theirs) * field.unit
    verdict = "shown"
    if field.agrees is not None:
        verdict = "same" if field.agrees(float(value), number) else "differs"
    return Compared(field.name, f"{value:g}" if value < MIB else f"{value:,}", theirs, verdict)
