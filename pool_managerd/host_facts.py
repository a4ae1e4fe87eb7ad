"""Fills the gauges with what the parts of a pool manager say, all at one instant."""

from collections.abc import Iterable, Mapping
from importlib import metadata

from pool_managerd.attempts.executor import Executor
from pool_managerd.config.schema import LimitsTable
from pool_managerd.core.clocks import HW_POWER_BRAKE, HW_SLOWDOWN, HW_THERMAL, POWER_CAP, SW_THERMAL
from pool_managerd.core.device import Device, DeviceHealth
from pool_managerd.core.replica import PoolState
from pool_managerd.devices.port import DeviceSource
from pool_managerd.link.dispatch import Link
from pool_managerd.pools.pool import Pool
from pool_managerd.snapshots import HostState
from pool_managerd.telemetry import Metrics, rows

_MHZ = 1_000_000
SLOWED_BY: Mapping[int, str] = {
    POWER_CAP: "power_cap",
    HW_SLOWDOWN: "hardware_slowdown",
    SW_THERMAL: "software_thermal",
    HW_THERMAL: "hardware_thermal",
    HW_POWER_BRAKE: "power_brake",
}
# A gauge, the field of a device that it shows, and what that is multiplied with.
_PLAIN = (
    (rows.MEMORY_TOTAL, "memory_total_bytes", 1.0),
    (rows.MEMORY_USED, "memory_used_bytes", 1.0),
    (rows.MEMORY_FREE, "memory_free_bytes", 1.0),
    (rows.BUSY, "utilization_ratio", 1.0),
    (rows.TEMPERATURE, "temperature_celsius", 1.0),
    (rows.POWER, "power_milliwatts", 0.001),
    (rows.CLOCK, "sm_clock_mhz", _MHZ),
    (rows.CLOCK_MAX, "max_sm_clock_mhz", _MHZ),
)


class HostFacts:
    """What `Metrics` shows and does not count itself."""

    def __init__(
        self,
        metrics: Metrics,
        pools: Iterable[Pool],
        executor: Executor,
        devices: DeviceSource,
        limits: LimitsTable,
    ) -> None:
        self._metrics = metrics
        self._pools = tuple(pools)
        self._executor = executor
        self._devices = devices
        self.limits = limits
        self._version = metadata.version("llamaorch")
        self._link: tuple[Link, HostState] | None = None

    def show(self, link: Link, host: HostState) -> None:
        """Shows what the link to the orchestrator says too, from now on."""
        self._link = (link, host)

    def sample(self) -> None:
        """Reads everything, on the event loop. O(pools + running attempts + devices)."""
        self._set(rows.BUILD, [((self._version,), 1)])
        self._sample_pools()
        self._sample_link()
        self._sample_devices(self._devices.devices())
        self._metrics.board.freeze()

    def _set(self, row: rows.MetricRow, values: Iterable[tuple[tuple[str, ...], float]]) -> None:
        self._metrics.gauges[row.name].replace(values)

    def _sample_pools(self) -> None:
        pools = [(pool.pool_id, pool.state()[0], pool.incarnation) for pool in self._pools]
        self._set(
            rows.POOL_STATE,
            (
                ((pool_id, state.value), float(state is now))
                for pool_id, now, _ in pools
                for state in PoolState
            ),
        )
        slots = [(pool_id, known.slots) for pool_id, _, known in pools if known.slots is not None]
        self._set(rows.SLOTS, (((pool_id, "free"), known.free) for pool_id, known in slots))
        for pool_id, known in slots:
            self._metrics.gauges[rows.SLOTS.name].add(known.total - known.free, pool_id, "busy")
        running = {pool.pool_id: 0 for pool in self._pools}
        generated = {pool_id: self._metrics.generated(pool_id) for pool_id in running}
        for log in self._executor.all_running():
            running[log.pool_id] += 1
            generated[log.pool_id] += log.tokens_out
        self._set(rows.RUNNING, (((pool_id,), count) for pool_id, count in running.items()))
        self._metrics.tokens_out.replace(((pool_id,), n) for pool_id, n in generated.items())
        store = self._executor.store
        self._set(rows.HELD_BYTES, [((), store.held_bytes)])
        self._set(rows.HELD_LIMIT, [((), self.limits.held_bytes_total)])
        self._set(rows.HELD_ATTEMPTS, [((), len(store))])

    def _sample_link(self) -> None:
        if self._link is None:
            return
        link, host = self._link
        self._set(rows.LINK_UP, [((), float(link.up))])
        self._set(rows.UNACKED, [((), link.unacked_bytes)])
        self._metrics.dials.set(host.dial_seq)
        self._metrics.registrations.set(host.registrations)
        self._metrics.frames.set(host.emitted_frame_seq)

    def _sample_devices(self, devices: tuple[Device, ...]) -> None:
        for row, name, scale in _PLAIN:
            known = [(device.device_id, getattr(device, name)) for device in devices]
            self._set(row, (((key,), value * scale) for key, value in known if value is not None))
        self._set(
            rows.DEVICE_INFO,
            (((d.device_id, d.name or "", d.driver_version or ""), 1) for d in devices),
        )
        self._set(
            rows.DEVICE_HEALTH,
            (
                ((device.device_id, state.value), float(state is device.health))
                for device in devices
                for state in DeviceHealth
            ),
        )
        self._set(
            rows.SLOWED,
            (
                ((device.device_id, reason), float(bool(device.clock_event_reasons & bit)))
                for device in devices
                if device.clock_event_reasons is not None
                for bit, reason in SLOWED_BY.items()
            ),
        )
        self._metrics.ecc.replace(
            ((device.device_id,), device.ecc_uncorrected_total)
            for device in devices
            if device.ecc_uncorrected_total is not None
        )
