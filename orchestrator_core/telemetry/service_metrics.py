"""What orchestratord measures of itself: its loop, journal, recorder, streams and hosts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator_core.core.catalog import STATE_WORDS
from orchestrator_core.core.catalog_model import DigestVerdict
from orchestrator_core.core.machine import Core
from orchestrator_core.telemetry import service_rows as rows
from orchestrator_core.telemetry.instruments import Board, Counter, Gauge, Histogram

_DIGEST_RESULTS = {
    DigestVerdict.MATCH: "ok",
    DigestVerdict.UNKNOWN: "warned",
    DigestVerdict.MISMATCH: "failed",
}
_SIGNATURE_RESULTS = {"verified": "ok", "invalid": "failed"}


@dataclass(frozen=True, slots=True)
class ArtifactFacts:
    """Artifacts at one instant, and what happened since the start; see `ArtifactCounts`."""

    count: int
    count_max: int
    room_taken_bytes: int
    quota_bytes: int
    refused: Mapping[str, int]
    moved_bytes: Mapping[str, int]
    damaged: int


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """What is so at one instant. None where there is no such thing, e.g. no journal on disk.

    `journal_bytes` is by file: main and wal.
    """

    version: str = ""
    core_form: str = ""
    journal_bytes: Mapping[str, int] = field(default_factory=dict)
    disk_free_bytes: int | None = None
    recorder_lost_steps: int | None = None
    recorder_waiting_steps: int | None = None
    relay_held_bytes: int = 0
    relay_limit_bytes: int = 0
    hosts_connected: int = 0
    artifacts: ArtifactFacts | None = None


class ServiceMetrics:
    """Instruments of the process itself. All methods belong to the event loop's thread."""

    def __init__(self, board: Board) -> None:
        self._build = Gauge(board, rows.BUILD)
        self._capacity = Gauge(board, rows.CAPACITY)
        self._draining = Gauge(board, rows.DRAINING)
        self._loop_lag = Histogram(board, rows.LOOP_LAG)
        self._commit_time = Histogram(board, rows.COMMIT_TIME)
        self._commit_records = Histogram(board, rows.COMMIT_RECORDS)
        self._journal_bytes = Gauge(board, rows.JOURNAL_BYTES)
        self._journal_writable = Gauge(board, rows.JOURNAL_WRITABLE)
        self._disk_free = Gauge(board, rows.DISK_FREE)
        self._recorder_lost = Counter(board, rows.RECORDER_LOST)
        self._recorder_waiting = Gauge(board, rows.RECORDER_WAITING)
        self._streams = Gauge(board, rows.STREAMS)
        self._rpcs = Counter(board, rows.RPCS)
        self._config_reloads = Counter(board, rows.CONFIG_RELOADS)
        self._relay_held = Gauge(board, rows.RELAY_BYTES)
        self._relay_limit = Gauge(board, rows.RELAY_LIMIT)
        self._sessions = Gauge(board, rows.SESSIONS)
        self._model_state = Gauge(board, rows.MODEL_STATE)
        self._verifications = Counter(board, rows.CATALOG_VERIFICATIONS)
        self._artifacts = _ArtifactMetrics(board)
        self._hosts = Gauge(board, rows.HOSTS)
        self._host_up = Counter(board, rows.HOST_UP)
        self._host_down = Counter(board, rows.HOST_DOWN)
        self._open: dict[str, int] = {}
        self._writable = True

    def loop_was_late(self, lag_ms: float) -> None:
        """The event loop came back `lag_ms` after it was due."""
        self._loop_lag.record(lag_ms)

    def committed(self, outcome: str, took_ms: float, records: int) -> None:
        """A batch was written to the journal, or was not; `outcome` is the label."""
        self._writable = outcome == "written"
        self._commit_time.record(took_ms, outcome)
        self._commit_records.record(records)

    def stream_opened(self, method: str) -> None:
        """A stream began; `method` is its short name."""
        self._open[method] = self._open.get(method, 0) + 1

    def stream_closed(self, method: str) -> None:
        """A stream ended."""
        self._open[method] -= 1

    def call_ended(self, method: str, code: str) -> None:
        """A call ended with a status code, in capitals."""
        self._rpcs.add(1, method, code)

    def config_reloaded(self, outcome: str) -> None:
        """The configuration was read again."""
        self._config_reloads.add(1, outcome)

    def host_up(self, host_id: str) -> None:
        """A host registered."""
        self._host_up.add(1, host_id)
        # A rate sees no first increment of a series that is born with it.
        self._host_down.add(0, host_id)

    def host_down(self, host_id: str) -> None:
        """The stream of a host ended."""
        self._host_down.add(1, host_id)

    def digest_judged(self, verdict: DigestVerdict, engine: str) -> None:
        """What a pool reports was compared with the catalog. ORCH-3037."""
        self._verifications.add(1, _DIGEST_RESULTS[verdict], f"digest_{verdict.value}", engine)

    def signature_checked(self, verdict: str) -> None:
        """The signature of a model was checked; `verdict` is the label."""
        result = _SIGNATURE_RESULTS.get(verdict, "warned")
        self._verifications.add(1, result, f"signature_{verdict}", "")

    def sample(self, core: Core, facts: ServiceFacts) -> None:
        """Reads all gauges. O(1)."""
        self._build.replace([((facts.version, facts.core_form), 1)])
        self._capacity.set(core.config.queue_capacity)
        self._draining.set(int(core.draining))
        self._sessions.set(len(core.sessions))
        self._model_state.replace(
            ((model_id, state), float(state == core.catalog.state_word(model_id)))
            for model_id in core.catalog.entries
            for state in STATE_WORDS
        )
        self._journal_bytes.replace(((file,), size) for file, size in facts.journal_bytes.items())
        self._journal_writable.set(int(self._writable))
        self._disk_free.set(facts.disk_free_bytes)
        if facts.recorder_lost_steps is not None:
            self._recorder_lost.replace([((), facts.recorder_lost_steps)])
        self._recorder_waiting.set(facts.recorder_waiting_steps)
        self._streams.replace(((method,), count) for method, count in self._open.items())
        self._relay_held.set(facts.relay_held_bytes)
        self._relay_limit.set(facts.relay_limit_bytes)
        self._hosts.set(facts.hosts_connected)
        if facts.artifacts is not None:
            self._artifacts.sample(facts.artifacts)


class _ArtifactMetrics:
    """How full the store of artifacts is, and what goes in and out."""

    def __init__(self, board: Board) -> None:
        self._count = Gauge(board, rows.ARTIFACTS)
        self._count_max = Gauge(board, rows.ARTIFACTS_MAX)
        self._bytes = Gauge(board, rows.ARTIFACT_BYTES)
        self._quota = Gauge(board, rows.ARTIFACT_QUOTA)
        self._refused = Counter(board, rows.ARTIFACT_REFUSALS)
        self._moved = Counter(board, rows.ARTIFACT_MOVED)
        self._damaged = Counter(board, rows.ARTIFACT_DAMAGED)

    def sample(self, facts: ArtifactFacts) -> None:
        self._count.set(facts.count)
        self._count_max.set(facts.count_max)
        self._bytes.set(facts.room_taken_bytes)
        self._quota.set(facts.quota_bytes)
        self._refused.replace(((reason,), count) for reason, count in facts.refused.items())
        self._moved.replace(((way,), size) for way, size in facts.moved_bytes.items())
        self._damaged.replace([((), facts.damaged)])
