"""The output logs of all jobs, within one bound."""

from dataclasses import dataclass

from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.relay.items import Frame
from orchestrator_core.relay.log import OutputLog
from orchestrator_core.relay.pace import Pace
from orchestrator_core.relay.sides import Sides


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """Encoded output kept per job, and memory for the output of all; bytes."""

    job_bytes: int = 1024 * 1024
    total_bytes: int = 256 * 1024 * 1024


class Relay:
    """One `OutputLog` per job, the `pace` of those who follow one job, and `sides` for who is late.

    Beyond the total, ended jobs lose their output first, oldest first. As a tenth is freed at a
    time, and who has nothing left is not looked at again, that is cheap on average. `limits` may be
    replaced: the one per job counts for jobs that come after, the total with the next output.
    """

    def __init__(self, limits: RelayLimits) -> None:
        self.limits = limits
        self._logs: dict[str, OutputLog] = {}
        # Jobs that may hold output, each in one of the two, in the order in which they came there;
        # their logs are `listed`.
        self._ended: dict[str, None] = {}
        self._holding: dict[str, None] = {}
        self._bytes = 0
        self.pace = Pace()
        self.sides = Sides()

    def log(self, job_id: str) -> OutputLog:
        """The log of a job, made when there is none yet."""
        log = self._logs.get(job_id)
        if log is None:
            log = self._logs[job_id] = OutputLog(self.limits.job_bytes)
        return log

    def append_text(self, job_id: str, frame: Frame, *, accept_gap: bool = False) -> bool | None:
        """Adds text; see `OutputLog.append_text`."""
        return self.append_to(self.log(job_id), job_id, frame, accept_gap=accept_gap)

    def append_to(
        self, log: OutputLog, job_id: str, frame: Frame, *, accept_gap: bool = False
    ) -> bool | None:
        """As `append_text`, where the job's log is known."""
        before = log.bytes_held
        taken = log.append_text(frame, accept_gap=accept_gap)
        self._account(log, job_id, log.bytes_held - before)
        return taken

    def append_event(self, job_id: str, entry: bytes) -> None:
        """Adds an event other than text."""
        log = self.log(job_id)
        before = log.bytes_held
        log.append_event(entry)
        self._account(log, job_id, log.bytes_held - before)

    def finish(
        self,
        job_id: str,
        entry: bytes,
        text_bytes: int | None,
        text_digest: int | None = None,
    ) -> None:
        """Sets the outcome of a job; see `OutputLog.finish`."""
        log = self.log(job_id)
        log.finish(entry, text_bytes, text_digest)
        log.listed = True
        self._ended[job_id] = None
        self._holding.pop(job_id, None)

    def acknowledged(self, job_id: str) -> None:
        """A reader of a job moved its `acked`: drops what none of the present ones needs."""
        log = self._logs.get(job_id)
        if log is not None:
            self._bytes -= log.drop_acknowledged()

    def release(self, job_id: str) -> bool:
        """Drops the output of an ended job that nobody reads any more; its outcome stays.

        False when somebody still reads, or output is still to come.
        """
        log = self._logs.get(job_id)
        if log is None or log.followed or not log.complete:
            return False
        self._evict(job_id, log)
        return True

    @property
    def bytes_held(self) -> int:
        """Memory for output in all, in bytes."""
        return self._bytes

    def forget(self, job_id: str) -> None:
        """Drops everything about a job. Readers that are still there are told NOT_FOUND."""
        log = self._logs.pop(job_id, None)
        self._ended.pop(job_id, None)
        self._holding.pop(job_id, None)
        if log is not None:
            message = f"job {job_id!r} is not kept any longer"
            self._bytes -= log.forget(Refusal(Reason.NOT_FOUND, message, resource=job_id))

    def _account(self, log: OutputLog, job_id: str, change: int) -> None:
        self._bytes += change
        if not log.listed:
            log.listed = True
            self._holding[job_id] = None
        if self._bytes > self.limits.total_bytes:
            self._make_room(job_id)

    def _make_room(self, spare: str) -> None:
        """Drops the output of ended jobs, then of others, down to nine tenths of the total."""
        for job_id in [*self._ended, *self._holding]:
            if self._bytes <= self.limits.total_bytes * 9 // 10:
                return
            if job_id != spare:
                self._evict(job_id, self._logs[job_id])

    def _evict(self, job_id: str, log: OutputLog) -> None:
        self._bytes -= log.evict_all()
        log.listed = False
        self._ended.pop(job_id, None)
        self._holding.pop(job_id, None)
