"""What hosts report of their devices, once per device however many pools use it. ORCH-3040."""

from collections.abc import Iterable

from orchestrator_core.telemetry import service_rows as rows
from orchestrator_core.telemetry.fleet import SLOWED_BY, DeviceGauges, DeviceHealth
from orchestrator_core.telemetry.instruments import Board, Counter, Gauge

_MHZ = 1_000_000
# Gauges with a device's own labels alone, the field that they show, and what it is multiplied with.
_PLAIN = (
    (rows.VRAM_TOTAL, "memory_total_bytes", 1.0),
    (rows.GPU_TEMPERATURE, "temperature_celsius", 1.0),
    (rows.GPU_POWER, "power_milliwatts", 0.001),
    (rows.GPU_CLOCK, "sm_clock_mhz", _MHZ),
    (rows.GPU_CLOCK_MAX, "max_sm_clock_mhz", _MHZ),
    (rows.GPU_XID, "last_xid", 1.0),
)


class DeviceMetrics:
    """Gauges of devices. What the hardware does not report has no series."""

    def __init__(self, board: Board) -> None:
        self._plain = [(Gauge(board, row), name, scale) for row, name, scale in _PLAIN]
        self._info = Gauge(board, rows.GPU_INFO)
        self._health = Gauge(board, rows.GPU_HEALTH)
        self._slowed = Gauge(board, rows.GPU_SLOWED)
        self._ecc = Counter(board, rows.GPU_ECC)

    def sample(self, reported: Iterable[tuple[str, DeviceGauges]]) -> None:
        """Takes over devices with the hosts that have them."""
        devices = {(host_id, device.device): device for host_id, device in reported}
        for gauge, name, scale in self._plain:
            known = [(key, getattr(device, name)) for key, device in devices.items()]
            gauge.replace((key, value * scale) for key, value in known if value is not None)
        self._info.replace(
            ((*key, device.name, device.driver_version), 1) for key, device in devices.items()
        )
        self._health.replace(
            ((*key, state.value), float(state is device.health))
            for key, device in devices.items()
            for state in DeviceHealth
        )
        self._slowed.replace(
            ((*key, reason), float(bool(device.clock_event_reasons & bit)))
            for key, device in devices.items()
            if device.clock_event_reasons is not None
            for bit, reason in SLOWED_BY.items()
        )
        self._ecc.replace(
            (key, device.ecc_uncorrected_total)
            for key, device in devices.items()
            if device.ecc_uncorrected_total is not None
        )
