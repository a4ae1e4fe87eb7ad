"""What a simulated run leaves behind: one line per job, and how busy the pools were."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class JobLine:
    """What became of one job. Instants in float milliseconds, predictions in ms from arrival.

    A job without `end_ms` expired or was refused.
    """

    arrival_ms: float
    pool: int | None = None
    start_ms: float | None = None
    first_ms: float | None = None
    end_ms: float | None = None
    deadline_ms: int | None = None
    predicted_start_ms: int | None = None
    predicted_end_ms: int | None = None
    on_time_probability: float | None = None

    @property
    def on_time(self) -> bool:
        """True when the job ended by its deadline; a job without one is on time when it ended."""
        if self.end_ms is None:
            return False
        return self.deadline_ms is None or self.end_ms <= self.deadline_ms


@dataclass(frozen=True, slots=True)
class Run:
    """One policy over one trace. `busy_ms` is per pool the sum over slots of their busy time."""

    policy: str
    jobs: list[JobLine]
    busy_ms: tuple[float, ...]
    makespan_ms: float
    cpu_s: float = field(default=0.0, compare=False)
