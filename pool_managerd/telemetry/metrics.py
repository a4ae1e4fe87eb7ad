"""What happened on this host, counted; and the gauges that `host_facts` fills. ORCH-3028.

Counts add up in every export: attempts started = ended + running.
"""

from collections.abc import Sequence

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk import metrics as sdk
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource

from pool_managerd.telemetry import rows
from pool_managerd.telemetry.instruments import Board, Histogram, Table

# Above the product of every budget that meets in one metric: our budgets cut off, not the SDK's.
SERIES_MAX = 65_536
CARDINALITY: dict[type, int] = {
    sdk.ObservableCounter: SERIES_MAX,
    sdk.ObservableGauge: SERIES_MAX,
    sdk.Histogram: SERIES_MAX,
}


class Metrics:
    """All instruments. Without readers nothing is exported and little is spent.

    Methods belong to the event loop, but for `device_read` and `xid`, which any thread may call.
    """

    def __init__(
        self, readers: Sequence[MetricReader] = (), resource: Resource | None = None
    ) -> None:
        self._provider = (
            MeterProvider(readers, resource or Resource.create(), shutdown_on_exit=False)
            if readers
            else None
        )
        self.board = board = Board(
            (self._provider or NoOpMeterProvider()).get_meter("pool-managerd")
        )
        # Of the contract, what is neither counted nor measured here is set by `host_facts`.
        self.gauges = {
            row.name: Table(board, row) for row in rows.METRICS if row.kind is rows.Kind.GAUGE
        }
        self.tokens_out = Table(board, rows.TOKENS_OUT)
        self.frames = Table(board, rows.FRAMES)
        self.dials = Table(board, rows.LINK_DIALS)
        self.registrations = Table(board, rows.LINK_SESSIONS)
        self.ecc = Table(board, rows.ECC)
        self._started = Table(board, rows.STARTED)
        self._ended = Table(board, rows.ENDED)
        self._refused = Table(board, rows.REFUSED)
        self._tokens_in = Table(board, rows.TOKENS_IN)
        self._restarts = Table(board, rows.RESTARTS)
        self._xids = Table(board, rows.XIDS)
        self._config_reloads = Table(board, rows.CONFIG_RELOADS)
        self._first_token = Histogram(board, rows.FIRST_TOKEN)
        self._attempt_time = Histogram(board, rows.ATTEMPT_TIME)
        self._engine_start = Histogram(board, rows.ENGINE_START)
        self._loop_lag = Histogram(board, rows.LOOP_LAG)
        self._device_read = Histogram(board, rows.DEVICE_READ)
        self._generated: dict[str, int] = {}

    def attempt_started(self, pool_id: str) -> None:
        """An attempt got a slot."""
        self._started.add(1, pool_id)

    def attempt_refused(self, pool_id: str, reason: str) -> None:
        """An attempt was not started; `pool_id` is empty unless the pool is one of this host."""
        self._refused.add(1, pool_id, reason)

    def first_output(self, pool_id: str, after_ms: int) -> None:
        """The first piece of an attempt's output came."""
        self._first_token.record(after_ms, pool_id)

    def attempt_ended(
        self, pool_id: str, outcome: str, took_ms: int, tokens: tuple[int | None, int]
    ) -> None:
        """An attempt gave its slot back; `tokens` were read and generated."""
        tokens_in, tokens_out = tokens
        self._ended.add(1, pool_id, outcome)
        self._attempt_time.record(took_ms, pool_id)
        if tokens_in is not None:
            self._tokens_in.add(tokens_in, pool_id)
        self._generated[pool_id] = self._generated.get(pool_id, 0) + tokens_out

    def generated(self, pool_id: str) -> int:
        """Tokens that ended attempts of a pool have generated."""
        return self._generated.get(pool_id, 0)

    def engine_started(self, pool_id: str, outcome: str, took_ms: int) -> None:
        """An engine is ready, or could not be started."""
        self._engine_start.record(took_ms, pool_id, outcome)

    def engine_restarted(self, pool_id: str, reason: str) -> None:
        """An engine takes the place of one that was given up for `reason`."""
        self._restarts.add(1, pool_id, reason)

    def config_reloaded(self, outcome: str) -> None:
        """The configuration was read again: applied, unchanged or refused."""
        self._config_reloads.add(1, outcome)

    def loop_was_late(self, lag_ms: float) -> None:
        """The event loop came back `lag_ms` after it was due."""
        self._loop_lag.record(lag_ms)

    def device_read(self, took_ms: float, *, thorough: bool) -> None:
        """All devices were read once."""
        self._device_read.record(took_ms, "thorough" if thorough else "brief")

    def xid(self, device_id: str, xid: int) -> None:
        """A device reported an XID."""
        self._xids.add(1, device_id, str(xid))

    def shutdown(self, timeout_ms: int) -> None:
        """Sends what is left, for at most `timeout_ms`. Blocks."""
        if self._provider is not None:
            self._provider.shutdown(timeout_ms)
