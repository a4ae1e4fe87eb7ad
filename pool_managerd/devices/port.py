"""The port to the devices of a host."""

from collections.abc import Callable
from typing import Protocol

from pool_managerd.core.device import Device

OnFault = Callable[[str, str], None]
"""Called on the event loop with a device id and a sentence for people: the device is unwell.

An empty sentence: it is well again.
"""

OnChange = Callable[[], None]
"""Called on the event loop after a reading in which facts changed."""


class DeviceSource(Protocol):
    """Reads devices beside the event loop and keeps the latest facts.

    Life: start, stop (idempotent).
    """

    async def start(self, on_fault: OnFault, on_change: OnChange) -> None:
        """Reads every device once and then goes on reading until `stop`.

        Raises:
            DevicesUnavailableError: saying what to install or to configure.
        """
        ...

    def devices(self) -> tuple[Device, ...]:
        """The latest facts, sorted by index; never blocks."""
        ...

    def read_at_ms(self) -> int:
        """Instant, of the monotonic clock, at which the reading behind the facts began."""
        ...

    async def stop(self) -> None:
        """Stops reading and waits until that is done."""
        ...
