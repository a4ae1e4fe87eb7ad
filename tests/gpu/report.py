"""The report of `make gpu-check`, as Markdown."""

import datetime as dt
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llamaorch.pool.v1 import snapshot_pb2
from tests.gpu.engine import Ran
from tests.gpu.smi import Compared


@dataclass(frozen=True, slots=True)
class Arrival:
    """How long `size_bytes` of allocated memory took to be in a snapshot; None: it never was."""

    size_bytes: int
    took_s: float | None
    sentence: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found of one device."""

    device: snapshot_pb2.Device
    compared: Sequence[Compared]
    arrival: Arrival


def held(checked: Sequence[Checked], ran: Ran, bar_s: float) -> bool:
    """True when nothing differed, all memory arrived in time and no engine failed."""
    same = all(row.verdict != "differs" for item in checked for row in item.compared)
    return same and all(_in_time(item.arrival, bar_s) for item in checked) and not ran.failed


def write(folder: Path, checked: Sequence[Checked], ran: Ran, bar_s: float) -> Path:
    """Writes the report, named by date and first device, and returns its path."""
    today = dt.datetime.now(dt.UTC).date().isoformat()
    first = checked[0].device
    words = re.sub(r"[^a-z0-9]+", "-", (first.name or first.device_id).lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{today}-{words}.md"
    verdict = "everything held" if held(checked, ran, bar_s) else "**something did not hold**"
    lines = [
        f"# {first.name or 'GPU'}, {today}",
        "",
        (
            f"`make gpu-check`: {verdict}. Driver {first.driver_version or 'unknown'}, "
            f"CUDA {first.cuda_driver_version or 'unknown'}, "
            f"{platform.system()} {platform.release()}, {platform.machine()}, "
            f"Python {platform.python_version()}."
        ),
        "",
    ]
    for item in checked:
        lines.extend(_device(item, bar_s))
    took = "" if ran.ready_s is None else f"READY after {ran.ready_s:.1f} s: "
    lines.extend(["## A pool on the GPU", "", f"{took}{ran.sentence}.", ""])
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _device(item: Checked, bar_s: float) -> list[str]:
    device, arrival = item.device, item.arrival
    lines = [f"## {device.name or 'GPU'} ({device.device_id[:12]}…)", ""]
    if item.compared:
        lines.extend(["| field | snapshot | nvidia-smi | |", "|---|---|---|---|"])
        lines.extend(f"| {r.field} | {r.ours} | {r.theirs} | {r.verdict} |" for r in item.compared)
    else:
        lines.append("nvidia-smi says nothing about this device: not compared.")
    mib = arrival.size_bytes >> 20
    if arrival.took_s is None:
        told = f"{mib} MiB were not seen to arrive: {arrival.sentence}."
    else:
        verdict = "in time" if _in_time(arrival, bar_s) else "too late"
        told = (
            f"{mib} MiB arrived in a snapshot after {arrival.took_s:.2f} s ({verdict}: {bar_s:g})."
        )
    return [*lines, "", f"Health: {_health(device)}. {told}", ""]


def _health(device: snapshot_pb2.Device) -> str:
    name = snapshot_pb2.DeviceHealth.Name(device.health).removeprefix("DEVICE_HEALTH_")
    return f"{name} ({device.health_detail})" if device.health_detail else name


def _in_time(arrival: Arrival, bar_s: float) -> bool:
    return arrival.took_s is not None and arrival.took_s <= bar_s
