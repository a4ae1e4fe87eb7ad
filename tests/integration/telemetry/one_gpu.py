"""A machine with one GPU, as far as it is reported."""

import time

from pool_managerd.core.device import Device, DeviceKind
from pool_managerd.devices.port import OnChange, OnFault


class OneGpu:
    """A device source with a GPU that reports everything."""

    async def start(self, on_fault: OnFault, on_change: OnChange) -> None:
        """See `DeviceSource.start`."""

    def devices(self) -> tuple[Device, ...]:
        """See `DeviceSource.devices`."""
        return (
            Device(
                device_id="GPU-1",
                kind=DeviceKind.GPU,
                name="NVIDIA Test",
                index=0,
                driver_version="550.1",
                memory_total_bytes=4 << 30,
                memory_free_bytes=3 << 30,
                memory_used_bytes=1 << 30,
                utilization_ratio=0.5,
                temperature_celsius=61,
                power_milliwatts=250_500,
                sm_clock_mhz=1_200,
                max_sm_clock_mhz=2_400,
                clock_event_reasons=0x24,
                ecc_uncorrected_total=2,
                last_xid=79,
            ),
        )

    def read_at_ms(self) -> int:
        """See `DeviceSource.read_at_ms`: just now."""
        return time.monotonic_ns() // 1_000_000

    async def stop(self) -> None:
        """See `DeviceSource.stop`."""
