"""Reads devices in a process of its own, whose `libnvidia-ml.so.1` is the stub.

Commands come on stdin, one JSON object a line; what happens goes to stdout in the same form.
"""

import asyncio
import dataclasses
import json
import sys

from pool_managerd.core.device import Device
from pool_managerd.devices.nvml import NvmlDevices
from pool_managerd.errors import DevicesUnavailableError
from pool_managerd.telemetry import configure_logs


class Told(NvmlDevices):
    """Tells of every reading."""

    def _publish(self, devices: tuple[Device, ...], read_at_s: float) -> None:
        super()._publish(devices, read_at_s)
        tell("devices", [dataclasses.asdict(device) for device in self.devices()])


def tell(kind: str, value: object) -> None:
    """One line on stdout."""
    sys.stdout.write(json.dumps({kind: value}, default=lambda member: member.value) + "\n")
    sys.stdout.flush()


async def main() -> None:
    """Obeys `start` (with an interval), `ask` (the facts at this moment) and `stop`, until EOF."""
    source: NvmlDevices | None = None
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        match command["do"]:
            case "start":
                source = Told(command["interval_ms"])
                try:
                    await source.start(lambda *fault: tell("fault", fault), lambda: None)
                except DevicesUnavailableError as error:
                    tell("refused", str(error))
                else:
                    tell("started", True)
            case "ask" if source is not None:
                tell("asked", [dataclasses.asdict(device) for device in source.devices()])
            case "stop" if source is not None:
                await source.stop()
                tell("stopped", True)
            case _:
                return


if __name__ == "__main__":
    configure_logs("error")
    asyncio.run(main())
