"""All attempts that a host holds, within byte caps per job and per host. LO-302, LO-305."""

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pool_managerd.core.attempts import Appended, AttemptKey, AttemptLog
from pool_managerd.core.logprobs import TokenLogprob

# What a cap leaves when it makes room: evicting is linear in what is held, so it must be rare, and
# a reader that comes back after a crash of the orchestrator finds the rest.
_LEFT = (3, 4)


class AppendOutcome(enum.Enum):
    """What became of a piece."""

    KEPT = "kept"
    MISMATCH = "mismatch"
    TOO_LARGE = "too_large"


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Bounds of the token store: bytes as `AttemptLog.held_bytes` counts them, and attempts.

    Raises:
        ValueError: when a bound is not positive.
    """

    held_bytes_per_job: int
    held_bytes_total: int
    held_attempts_max: int

    def __post_init__(self) -> None:
        if min(self.held_bytes_per_job, self.held_bytes_total, self.held_attempts_max) <= 0:
            raise ValueError("the token store is bounded by positive limits")


class AttemptStore:
    """The logs of a host by (job, attempt), from start to release.

    Over a cap, acknowledged pieces are evicted, the oldest first and no more than a quarter of the
    cap. Over a job's cap those of its other attempts go first. Over the host's cap those of ended
    attempts go first, the one that ended first before the others, then the same share of each
    running one. If that does not make room the attempt that grows is refused. `limits` may be
    replaced; lower ones count with the next piece.
    """

    def __init__(self, limits: StoreLimits) -> None:
        self.limits = limits
        self._logs: dict[AttemptKey, AttemptLog] = {}
        self._ended: dict[AttemptKey, None] = {}
        self._bytes_by_job: dict[str, int] = {}
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes held by all logs."""
        return self._held_bytes

    @property
    def full(self) -> bool:
        """True when no further attempt can be held."""
        if len(self._logs) >= self.limits.held_attempts_max:
            return True
        return self._held_bytes >= self.limits.held_bytes_total and not self._make_room()

    def __len__(self) -> int:
        return len(self._logs)

    def __iter__(self) -> Iterator[AttemptLog]:
        return iter(tuple(self._logs.values()))

    def get(self, key: AttemptKey) -> AttemptLog | None:
        """The log of `key`, or None when it is not held."""
        return self._logs.get(key)

    def add(self, log: AttemptLog) -> None:
        """Holds a new log. The caller has looked at `full`.

        What it continues is acknowledged, so it is evicted where it exceeds a cap.
        """
        assert log.key not in self._logs, "an attempt is held once"
        assert len(self._logs) < self.limits.held_attempts_max, "the caller checks `full`"
        self._logs[log.key] = log
        self._keep_caps(log, self._charge(log.key.job_id, log.held_bytes))

    def append(
        self,
        log: AttemptLog,
        text: str,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> AppendOutcome:
        """Adds one piece to a held log and keeps the caps."""
        before = log.held_bytes
        appended = log.append(text, token_ids, logprobs)
        job_bytes = self._charge(log.key.job_id, log.held_bytes - before)
        if appended is not Appended.KEPT:
            return AppendOutcome.MISMATCH
        return AppendOutcome.KEPT if self._keep_caps(log, job_bytes) else AppendOutcome.TOO_LARGE

    def _keep_caps(self, log: AttemptLog, job_bytes: int) -> bool:
        """Evicts what exceeds a cap after `log` grew; False where that is not enough."""
        if job_bytes > self.limits.held_bytes_per_job and not self._fits_job(log, job_bytes):
            return False
        return self._held_bytes <= self.limits.held_bytes_total or self._make_room()

    def _fits_job(self, log: AttemptLog, job_bytes: int) -> bool:
        """Evicts from the attempts of a job, the present one last; False where it still has more.

        O(attempts held): a job's earlier attempts are seldom held, and its cap is seldom reached.
        """
        job_id, left = log.key.job_id, _left(self.limits.held_bytes_per_job)
        for each in (*self._of_job(job_id, log), log):
            if job_bytes <= left:
                break
            job_bytes = self._evict(each, job_bytes - left)
        return job_bytes <= self.limits.held_bytes_per_job

    def _of_job(self, job_id: str, without: AttemptLog) -> list[AttemptLog]:
        if self._bytes_by_job[job_id] == without.held_bytes:
            return []
        return [o for key, o in self._logs.items() if key.job_id == job_id and o is not without]

    def note_ended(self, key: AttemptKey) -> None:
        """Notes that the attempt of `key` is over, for the order of eviction."""
        if key in self._logs:
            self._ended.setdefault(key)

    def release(self, key: AttemptKey) -> None:
        """Forgets an attempt; without effect when it is not held."""
        log = self._logs.pop(key, None)
        self._ended.pop(key, None)
        if log is None:
            return
        self._charge(key.job_id, -log.held_bytes)

    def _charge(self, job_id: str, change_bytes: int) -> int:
        """Returns what the job then holds."""
        self._held_bytes += change_bytes
        job_bytes = self._bytes_by_job.get(job_id, 0) + change_bytes
        if job_bytes:
            self._bytes_by_job[job_id] = job_bytes
        else:
            self._bytes_by_job.pop(job_id, None)
        return job_bytes

    def _evict(self, log: AttemptLog, wanted_bytes: int) -> int:
        return self._charge(log.key.job_id, -log.evict_acked(wanted_bytes))

    def _make_room(self) -> bool:
        left = _left(self.limits.held_bytes_total)
        running = [log for key, log in self._logs.items() if key not in self._ended]
        self._evict_until(left, [self._logs[key] for key in self._ended])
        wanted, running_bytes = self._held_bytes - left, sum(log.held_bytes for log in running)
        if wanted > 0 and running_bytes:
            for log in running:
                self._evict(log, -(-wanted * log.held_bytes // running_bytes))
        # Where the share of one was not acknowledged, others give more.
        self._evict_until(left, running)
        return self._held_bytes <= self.limits.held_bytes_total

    def _evict_until(self, left_bytes: int, logs: Iterable[AttemptLog]) -> None:
        for log in logs:
            if self._held_bytes <= left_bytes:
                return
            self._evict(log, self._held_bytes - left_bytes)


def _left(cap_bytes: int) -> int:
    return cap_bytes * _LEFT[0] // _LEFT[1]
