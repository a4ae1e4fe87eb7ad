"""Simulated pools on virtual time: exact processor sharing, event by event.

A pool with k busy slots decodes each stream at `decode / (1 + slope * (k - 1))`. A stream first
spends its prefill, undisturbed by the others, and counts as busy meanwhile. All decoding streams
of a pool advance at one rate, so a pool keeps one running total, the tokens that a stream which
decodes since the beginning would have made (its level), and a heap of the levels at which
something happens. A change of k then costs O(log n) instead of O(k).

This module is a measured hot path, therefore its objects are mutable and its entries are tuples.
"""

import enum
import heapq
from collections.abc import Sequence

from orchestrator_core.simulator.fleets import PoolSpec

INFINITY = float("inf")


class StreamEvent(enum.IntEnum):
    """What happens to a stream. The order is that of one instant."""

    FIRST_TOKEN = 1
    END = 2


class SimPool:
    """One simulated pool. Times in float milliseconds; `busy_ms` sums up the time of busy slots."""

    __slots__ = (
        "_at_ms",
        "_level",
        "_levels",
        "_prefills",
        "_rate",
        "_rates",
        "busy",
        "busy_ms",
        "live",
        "spec",
        "stamp",
    )

    def __init__(self, spec: PoolSpec) -> None:
        self.spec = spec
        self.busy = 0
        self.busy_ms = 0.0
        self.stamp = 0
        self.live: dict[int, int] = {}
        self._rates = [0.0, *(spec.tokens_per_ms(k) for k in range(1, spec.slots + 1))]
        self._rate = 0.0
        self._at_ms = 0.0
        self._level = 0.0
        self._prefills: list[tuple[float, int, int]] = []
        self._levels: list[tuple[float, int, StreamEvent]] = []

    @property
    def free(self) -> int:
        """Slots that are not taken."""
        return self.spec.slots - self.busy

    def next_ms(self) -> float:
        """When something happens next if nothing is added; infinity when never."""
        prefills, levels, live = self._prefills, self._levels, self.live
        while prefills and prefills[0][1] not in live:
            heapq.heappop(prefills)
        while levels and levels[0][1] not in live:
            heapq.heappop(levels)
        due_ms = prefills[0][0] if prefills else INFINITY
        if levels:
            left = levels[0][0] - self._level
            end_ms = self._at_ms + left / self._rate if left > 0.0 else self._at_ms
            due_ms = min(due_ms, end_ms)
        return due_ms

    def start(self, serial: int, job: int, tokens: tuple[int, int], now_ms: float) -> None:
        """Takes a slot for a job of (prompt, output) tokens. Raises ValueError when full."""
        if self.busy >= self.spec.slots:
            raise ValueError(f"pool {self.spec.id} has no free slot for job {job}")
        self._change(now_ms, 1)
        self.live[serial] = job
        ready_ms = now_ms + 1000.0 * tokens[0] / self.spec.prefill
        heapq.heappush(self._prefills, (ready_ms, serial, tokens[1]))

    def stop(self, serial: int, now_ms: float) -> None:
        """Frees the slot of a stream; what it still had to do is void."""
        del self.live[serial]
        self._change(now_ms, -1)

    def advance(self, now_ms: float) -> tuple[StreamEvent, int, int] | None:
        """Lets the event that is due at `now_ms` happen: (what, serial, job), None for prefill."""
        prefills, levels = self._prefills, self._levels
        if prefills and prefills[0][0] <= now_ms:
            self._change(now_ms, 0)
            _, serial, output_tokens = heapq.heappop(prefills)
            heapq.heappush(levels, (self._level + 1.0, serial, StreamEvent.FIRST_TOKEN))
            heapq.heappush(levels, (self._level + output_tokens, serial, StreamEvent.END))
            return None
        level, serial, what = heapq.heappop(levels)
        self._change(now_ms, 0)
        # The instant was computed from the level: rounding must not let it fall short.
        self._level = max(self._level, level)
        job = self.live[serial]
        if what is StreamEvent.END:
            self.stop(serial, now_ms)
        return what, serial, job

    def _change(self, now_ms: float, by: int) -> None:
        span_ms = now_ms - self._at_ms
        self._level += span_ms * self._rate
        self.busy_ms += span_ms * self.busy
        self._at_ms = now_ms
        if by:
            self.busy += by
            self._rate = self._rates[self.busy]
        if not self.live:
            # Nobody counts from here: starting at 0 again keeps the sums small and exact.
            self._level = 0.0
            self._levels.clear()


class Engine:
    """All simulated pools of a fleet, in one order of time; ties go to the lower index."""

    __slots__ = ("_due", "_next_serial", "_of_job", "pools")

    def __init__(self, fleet: Sequence[PoolSpec]) -> None:
        self.pools = tuple(SimPool(spec) for spec in fleet)
        self._due: list[tuple[float, int, int]] = []
        self._next_serial = 0
        self._of_job: dict[int, tuple[int, int]] = {}

    def start(self, index: int, job: int, tokens: tuple[int, int], now_ms: float) -> None:
        """Starts a job of (prompt, output) tokens on pool `index`. Raises ValueError when full."""
        serial = self._next_serial
        self._next_serial += 1
        self.pools[index].start(serial, job, tokens, now_ms)
        self._of_job[job] = (index, serial)
        self._reschedule(index)

    def stop(self, job: int, now_ms: float) -> int:
        """Stops a running job and returns the index of its pool. Raises KeyError."""
        index, serial = self._of_job.pop(job)
        self.pools[index].stop(serial, now_ms)
        self._reschedule(index)
        return index

    def running(self, job: int) -> bool:
        """True while the job holds a slot."""
        return job in self._of_job

    def next_ms(self) -> float:
        """When something happens next; infinity when nothing runs."""
        due, pools = self._due, self.pools
        while due:
            at_ms, index, stamp = due[0]
            if pools[index].stamp == stamp:
                return at_ms
            heapq.heappop(due)
        return INFINITY

    def pop(self) -> tuple[StreamEvent, int, int] | None:
        """Lets the next event happen: (what, pool index, job); None for one that nobody sees."""
        now_ms, index, _ = heapq.heappop(self._due)
        happened = self.pools[index].advance(now_ms)
        self._reschedule(index)
        if happened is None:
            return None
        what, _, job = happened
        if what is StreamEvent.END:
            del self._of_job[job]
        return what, index, job

    def _reschedule(self, index: int) -> None:
        pool = self.pools[index]
        pool.stamp += 1
        due_ms = pool.next_ms()
        if due_ms < INFINITY:
            heapq.heappush(self._due, (due_ms, index, pool.stamp))
