"""The bounded two-class queue: lanes of jobs with equal needs, arrival order within a class.

Jobs with equal `Needs` have the same statically feasible pools, so one look at a lane's head
answers for the whole lane. ORCH-3004, ORCH-3008, OC-CORE-1003, LO-101.
"""

from dataclasses import dataclass, field

from orchestrator_core.core.job import Job, Needs, Priority
from orchestrator_core.core.ranked import RankedSet


@dataclass(slots=True)
class Lane:
    """Waiting jobs of one class with equal needs."""

    needs: Needs
    priority: Priority
    waiting: RankedSet = field(default_factory=RankedSet)


class Queue:
    """Waiting jobs by arrival number. The bound counts both classes; retries are exempt from it.

    A retry is not dropped for a newcomer either (design 5.1): `oldest` and `newest` pass it by.
    """

    __slots__ = ("_by_class", "_by_seq", "_lanes", "_untried")
    _by_class: dict[Priority, RankedSet]
    _by_seq: dict[int, Job]
    _lanes: dict[tuple[Priority, Needs], Lane]
    _untried: dict[Priority, RankedSet]

    def __init__(self) -> None:
        self._by_seq = {}
        self._by_class = {p: RankedSet() for p in Priority}
        self._untried = {p: RankedSet() for p in Priority}
        self._lanes = {}

    def __len__(self) -> int:
        """Jobs that wait, both classes together."""
        return len(self._by_seq)

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Lanes in which somebody waits, in the order in which they came into use."""
        return tuple(self._lanes.values())

    def depth(self, priority: Priority) -> int:
        """Jobs that wait in one class."""
        return len(self._by_class[priority])

    def has_lane(self, priority: Priority, needs: Needs) -> bool:
        """True when a job with these needs would not open a new lane."""
        return (priority, needs) in self._lanes

    def add(self, job: Job) -> None:
        """Puts a job at the place of its arrival number. O(log n)."""
        spec = job.spec
        key = (spec.priority, spec.needs)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(spec.needs, spec.priority)
        lane.waiting.add(job.seq)
        self._by_class[spec.priority].add(job.seq)
        if not job.attempts_made:
            self._untried[spec.priority].add(job.seq)
        self._by_seq[job.seq] = job

    def remove(self, job: Job) -> None:
        """Takes a job out. O(log n). Raises KeyError when it does not wait."""
        spec = job.spec
        key = (spec.priority, spec.needs)
        lane = self._lanes[key]
        lane.waiting.remove(job.seq)
        if not lane.waiting:
            del self._lanes[key]
        self._by_class[spec.priority].remove(job.seq)
        if not job.attempts_made:
            self._untried[spec.priority].remove(job.seq)
        del self._by_seq[job.seq]

    def job(self, seq: int) -> Job:
        """Returns the waiting job with this arrival number. Raises KeyError."""
        return self._by_seq[seq]

    def position(self, job: Job) -> int:
        """Rank from 1: jobs ahead in lane and class, plus the higher class of the same needs."""
        spec = job.spec
        ahead = self._lanes[(spec.priority, spec.needs)].waiting.rank(job.seq)
        if spec.priority is Priority.BATCH:
            upper = self._lanes.get((Priority.INTERACTIVE, spec.needs))
            ahead += len(upper.waiting) if upper else 0
        return ahead + 1

    def oldest(self, priority: Priority) -> Job | None:
        """Longest waiting job of a class that may be dropped."""
        waiting = self._untried[priority]
        return self._by_seq[waiting.first()] if waiting else None

    def newest(self, priority: Priority) -> Job | None:
        """Latest job of a class that may be dropped."""
        waiting = self._untried[priority]
        return self._by_seq[waiting.last()] if waiting else None

    def snapshot(self, priority: Priority) -> tuple[str, ...]:
        """Job ids of one class in offer order. O(n)."""
        return tuple(self._by_seq[seq].job_id for seq in self._by_class[priority])
