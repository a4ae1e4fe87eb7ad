"""The bounded two-class queue: lanes of jobs with equal needs, arrival order within a class.

Jobs with equal `Needs` have the same statically feasible pools, so one look at a lane's head
answers for the whole lane. With token fairness each identity has lanes of its own. ORCH-3004,
ORCH-3008, OC-CORE-1003, LO-101, LO-104.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from orchestrator_core.core.job import Job
from orchestrator_core.core.ranked import RankedSet
from orchestrator_core.core.spec import BATCH, INTERACTIVE, JobSpec, Needs, Priority, Shape


@dataclass(slots=True)
class Lane:
    """Waiting jobs of one class with equal needs; `identity` is empty where it does not matter."""

    needs: Needs
    priority: Priority
    identity: str
    waiting: RankedSet = field(default_factory=RankedSet)


@dataclass(slots=True)
class Contenders:
    """Waiting jobs for one model, whichever lane they are in: they compete for its pools.

    The token counts are sums over the jobs' shapes, whole tokens so that nothing drifts.
    """

    interactive: RankedSet = field(default_factory=RankedSet)
    batch: RankedSet = field(default_factory=RankedSet)
    prompt_tokens: int = 0
    output_tokens: int = 0

    def __len__(self) -> int:
        """Jobs of both classes."""
        return len(self.interactive) + len(self.batch)

    def of(self, priority: Priority) -> RankedSet:
        """Arrival numbers of one class."""
        return self.interactive if priority is INTERACTIVE else self.batch


@dataclass(slots=True, eq=False, repr=False)
class Queue:
    """Waiting jobs by arrival number. The bound counts both classes; retries are exempt from it.

    A retry is not dropped for a newcomer either (design 5.1): `oldest` and `newest` pass it by.
    """

    per_identity: bool = False
    _by_seq: dict[int, Job] = field(default_factory=dict)
    _depth: dict[Priority, int] = field(default_factory=lambda: dict.fromkeys(Priority, 0))
    _lane_of: dict[int, Lane] = field(default_factory=dict)
    _lanes: dict[tuple[Priority, Needs, str], Lane] = field(default_factory=dict)
    _of_model: dict[str, Contenders] = field(default_factory=dict)
    _untried: dict[Priority, RankedSet] = field(
        default_factory=lambda: {p: RankedSet() for p in Priority}
    )

    def __len__(self) -> int:
        """Jobs that wait, both classes together."""
        return len(self._by_seq)

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Lanes in which somebody waits, in the order in which they came into use."""
        return tuple(self._lanes.values())

    def depth(self, priority: Priority) -> int:
        """Jobs that wait in one class."""
        return self._depth[priority]

    def waiting_for_model(self, model_id: str) -> int:
        """Jobs of both classes that wait for one model."""
        known = self._of_model.get(model_id)
        return len(known) if known is not None else 0

    def place_in_line(self, spec: JobSpec, seq: int | None = None) -> int:
        """Rank from 1 among all who compete for the model's pools; without `seq` a newcomer's.

        Jobs of other lanes count too: unlike `position`, which tells of equal needs only.
        """
        known = self._of_model.get(spec.needs.model_id)
        if known is None:
            return 1
        mine = known.of(spec.priority)
        ahead = len(mine) if seq is None else mine.rank(seq)
        if spec.priority is BATCH:
            ahead += len(known.interactive)
        return ahead + 1

    def has_lane(self, spec: JobSpec) -> bool:
        """True when a job like this would not open a new lane."""
        return self._key(spec) in self._lanes

    def add(self, job: Job) -> None:
        """Puts a job at the place of its arrival number. O(log n)."""
        spec, seq, shape = job.spec, job.seq, job.shape
        key = self._key(spec)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(spec.needs, spec.priority, key[2])
        lane.waiting.add(seq)
        self._lane_of[seq] = lane
        self._depth[spec.priority] += 1
        if not job.attempts_made:
            self._untried[spec.priority].add(seq)
        self._by_seq[seq] = job
        model_id = spec.needs.model_id
        rivals = self._of_model.get(model_id)
        if rivals is None:
            rivals = self._of_model[model_id] = Contenders()
        rivals.of(spec.priority).add(seq)
        rivals.prompt_tokens += int(shape.prompt_tokens)
        rivals.output_tokens += int(shape.output_tokens)

    def remove(self, job: Job) -> None:
        """Takes a job out. O(log n). Raises KeyError when it does not wait."""
        spec, seq = job.spec, job.seq
        lane = self._lane_of.pop(seq)
        lane.waiting.remove(seq)
        if not lane.waiting:
            del self._lanes[self._key(spec)]
        self._depth[spec.priority] -= 1
        if not job.attempts_made:
            self._untried[spec.priority].remove(seq)
        del self._by_seq[seq]
        model_id = spec.needs.model_id
        rivals = self._of_model[model_id]
        rivals.of(spec.priority).remove(seq)
        rivals.prompt_tokens -= int(job.shape.prompt_tokens)
        rivals.output_tokens -= int(job.shape.output_tokens)
        if not rivals.interactive and not rivals.batch:
            del self._of_model[model_id]

    def regroup(self, *, per_identity: bool) -> None:
        """Gives each identity lanes of its own, or none. O(n log n)."""
        jobs = [self._by_seq[seq] for seq in sorted(self._by_seq)]
        for job in jobs:
            self.remove(job)
        self.per_identity = per_identity
        for job in jobs:
            self.add(job)

    def job(self, seq: int) -> Job:
        """Returns the waiting job with this arrival number. Raises KeyError."""
        return self._by_seq[seq]

    def position(self, job: Job) -> int:
        """Rank from 1: jobs ahead in lane and class, plus the higher class of the same needs."""
        spec = job.spec
        ahead = self._lane_of[job.seq].waiting.rank(job.seq)
        if spec.priority is BATCH:
            upper = self._lanes.get((INTERACTIVE, spec.needs, self._identity(spec)))
            ahead += len(upper.waiting) if upper else 0
        return ahead + 1

    def mean_shape(self, model_id: str) -> Shape | None:
        """Mean expected size of the jobs that wait for a model; None when nobody does."""
        known = self._of_model.get(model_id)
        if known is None:
            return None
        count = len(known)
        return Shape(known.prompt_tokens / count, known.output_tokens / count)

    def position_of_newcomer(self, spec: JobSpec) -> int:
        """Rank that a job would get if it were added now."""
        identity = self._identity(spec)
        classes = (p for p in Priority if p <= spec.priority)
        lanes = (self._lanes.get((priority, spec.needs, identity)) for priority in classes)
        return 1 + sum(len(lane.waiting) for lane in lanes if lane is not None)

    def oldest(self, priority: Priority) -> Job | None:
        """Longest waiting job of a class that may be dropped."""
        waiting = self._untried[priority]
        return self._by_seq[waiting.first()] if waiting else None

    def newest(self, priority: Priority) -> Job | None:
        """Latest job of a class that may be dropped."""
        waiting = self._untried[priority]
        return self._by_seq[waiting.last()] if waiting else None

    def snapshot(self, priority: Priority) -> tuple[str, ...]:
        """Job ids of one class in order of arrival. O(n log n)."""
        return tuple(
            job.job_id for _, job in sorted(self._by_seq.items()) if job.spec.priority is priority
        )

    def waiting(self, priority: Priority) -> Iterator[Job]:
        """Jobs of one class in order of arrival. O(lanes), then O(log lanes) for each one taken."""
        lanes = [lane.waiting for lane in self._lanes.values() if lane.priority is priority]
        for seq in heapq.merge(*lanes):
            yield self._by_seq[seq]

    def last(self, priority: Priority) -> Job | None:
        """The job of a class that arrived last. O(lanes)."""
        lanes = [lane.waiting for lane in self._lanes.values() if lane.priority is priority]
        return self._by_seq[max(lane.last() for lane in lanes)] if lanes else None

    def _identity(self, spec: JobSpec) -> str:
        return spec.identity if self.per_identity else ""

    def _key(self, spec: JobSpec) -> tuple[Priority, Needs, str]:
        return spec.priority, spec.needs, spec.identity if self.per_identity else ""
