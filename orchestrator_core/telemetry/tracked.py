"""What telemetry remembers of a live job, and nothing of one that ended."""

from dataclasses import dataclass
from typing import NamedTuple

from opentelemetry.trace import SpanContext

from orchestrator_core.core.job import Job
from orchestrator_core.core.spec import JobSpec
from orchestrator_core.telemetry.tracing import Span, parse_traceparent


@dataclass(slots=True)
class Tracked:
    """A live job. `job` belongs to the core and is only read.

    `queued_ms` is when it entered the queue last, None while it is not there. `unstarted` is the
    number of an attempt that was sent and not taken up yet, else 0. `dispatch` and `decode` are the
    open spans of the present attempt. `told_chance` is the probability of meeting its deadline that
    was told at accept. `tried` is the span of the latest attempt that was sent. A `notable` job is
    one whose spans are exported also when it was sampled out. Mutable on purpose: one owner,
    `Telemetry`.
    """

    job: Job
    trace: SpanContext
    queued_ms: int | None
    unstarted: int = 0
    started: bool = False
    kv_warmth: bool = False
    dispatch: Span | None = None
    decode: Span | None = None
    told_chance: float | None = None
    tried: SpanContext | None = None
    notable: bool = False

    @property
    def engine(self) -> str:
        """Engine that serves the job, else the one that it asks for; empty when it names none."""
        replica_set = self.job.replica_set
        return replica_set[0] if replica_set else self.job.spec.needs.engine

    @property
    def engine_version(self) -> str:
        """Version of that engine."""
        replica_set = self.job.replica_set
        return replica_set[1] if replica_set else self.job.spec.needs.engine_version

    @property
    def pool_id(self) -> str:
        """Pool of the present attempt; empty without one."""
        return self.job.attempt.pool_id if self.job.attempt else ""

    @property
    def replica_id(self) -> str:
        """Incarnation of the present attempt; empty without one."""
        return self.job.attempt.replica_id if self.job.attempt else ""

    def where(self, attempt: int) -> tuple[str, str]:
        """Pool and incarnation of an attempt, also of an earlier one; empty when not known."""
        for decision in reversed(self.job.decisions):
            if decision.attempt == attempt and decision.candidates:
                return decision.pool_id, decision.candidates[0].replica_id
        return "", ""

    @property
    def priority(self) -> str:
        """Class as a label."""
        return self.job.spec.priority.name.lower()


def found_by(spec: JobSpec) -> dict[str, str]:
    """What every line about a job has, by which its other lines and its spans are found."""
    context = parse_traceparent(spec.traceparent)
    return {
        "job_id": spec.job_id,
        "correlation_id": spec.correlation_id,
        "trace_id": "" if context is None else f"{context.trace_id:032x}",
    }


class Asked(NamedTuple):
    """What is known of a job that was refused: nothing of its own where it could not be read."""

    trace_id: str = ""
    correlation: str = ""
    spec: JobSpec | None = None

    @property
    def correlation_id(self) -> str:
        """By which its caller finds it."""
        return self.correlation if self.spec is None else self.spec.correlation_id

    @property
    def who(self) -> dict[str, str]:
        """Which job, in the words of its client; empty texts are not said. ORCH-3027."""
        told = {"correlation_id": self.correlation_id}
        spec = self.spec
        if spec is not None:
            told |= {
                "job_id": spec.job_id,
                "session_id": spec.session_id,
                "model_id": spec.needs.model_id,
                "priority": spec.priority.name.lower(),
            }
        return {key: value for key, value in told.items() if value}


class About(NamedTuple):
    """Which job, its trace, and what it runs on or asks for: a `Tracked` at an instant."""

    spec: JobSpec
    trace: SpanContext
    engine: str
    engine_version: str
    pool_id: str
    replica_id: str
    priority: str

    @classmethod
    def of(cls, tracked: Tracked) -> "About":
        """As it is now."""
        job = tracked.job
        return cls(
            job.spec,
            tracked.trace,
            tracked.engine,
            tracked.engine_version,
            tracked.pool_id,
            tracked.replica_id,
            tracked.priority,
        )
