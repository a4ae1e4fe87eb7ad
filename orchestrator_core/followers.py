"""What followers of a job are told beside its output: who runs it, how it does, how it ended."""

from dataclasses import replace

from orchestrator_core import failpoints
from orchestrator_core.core.effects import JobEnded, JobStarted, SendVerdicts, Verdict
from orchestrator_core.core.job import Attempt, Job
from orchestrator_core.core.machine import Core
from orchestrator_core.core.outcome import Outcome, Reason
from orchestrator_core.core.records import TerminalRecord
from orchestrator_core.core.spec import StartMode
from orchestrator_core.core.states import JobState
from orchestrator_core.relay.log import OutputLog
from orchestrator_core.relay.relay import Relay
from orchestrator_core.wire import events as wire_events
from orchestrator_core.wire.frames import encode_event


class Followers:
    """Writes events into the logs of jobs, from which every follower reads."""

    def __init__(self, core: Core, relay: Relay) -> None:
        self._core = core
        self._relay = relay

    def started(self, effect: JobStarted) -> None:
        """An attempt of a job runs."""
        job = self._core.jobs.get(effect.job_id)
        if job is None or job.attempt is None:
            return
        attempt, replica_set = job.attempt, job.replica_set or ("", "", "", "")
        where = wire_events.Where(
            attempt.pool_id, attempt.replica_id, replica_set[0], replica_set[1]
        )
        self._tell(job, effect, where)

    def tell_former(self, former: Attempt) -> None:
        """The output of an attempt comes again that another one is to follow: first, who made it.

        After a restart nobody here has told that, and the core goes on with the other.
        """
        job = self._core.jobs.get(former.job_id)
        if job is None or self._relay.log(former.job_id).announced(former.number):
            return
        pool = self._core.pools.get(former.pool_id)
        engine = (pool.snapshot.engine, pool.snapshot.engine_version) if pool else ("", "")
        where = wire_events.Where(former.pool_id, former.replica_id, *engine)
        begun = JobStarted(former.job_id, former.number, former.mode, kv_warmth=False)
        self._tell(job, begun, where)

    def _tell(self, job: Job, effect: JobStarted, where: wire_events.Where) -> None:
        offset = self._relay.log(effect.job_id).next_offset
        event = wire_events.started_or_resumed(job, effect, where, offset)
        self._relay.append_event(effect.job_id, encode_event(event))

    def progressed(self, job: Job, log: OutputLog, now_ms: int) -> None:
        """How a job is doing; it replaces what its `log` said of that before."""
        event = wire_events.metrics(
            self._core.queue_depth(),
            self._core.on_time_probability(job, now_ms) if job.live else None,
            self._core.remaining(job, now_ms),
            kv_warmth=job.attempt is not None and job.attempt.kv_warmth,
        )
        log.set_metrics(encode_event(event))

    def announce_ended(self, job_id: str, attempt: int, *, kv_warmth: bool) -> None:
        """Tells readers of an ended job, whose output a host still holds, of which attempt it is.

        After a restart nobody here has told them; the core has no part in a job that is over.
        """
        job = self._core.jobs.get(job_id)
        if job is None or job.live or self._core.stopping(job_id, attempt):
            return
        if not self._relay.log(job_id).announced(attempt):
            self.started(JobStarted(job_id, attempt, StartMode.FRESH, kv_warmth))

    def tell_adopted(self, effect: SendVerdicts) -> None:
        """Output of a job that ended before a restart comes again: first, who made it."""
        for job_id, attempt, verdict in effect.verdicts:
            job = self._core.jobs.get(job_id)
            ended = verdict is Verdict.ADOPT and job is not None and not job.live
            if ended and not self._relay.log(job_id).announced(attempt):
                self.started(JobStarted(job_id, attempt, StartMode.FRESH, kv_warmth=False))

    def with_output(self, record: TerminalRecord) -> TerminalRecord:
        """Notes in the record of a job that did not finish how much output it ended with. LO-305.

        From here on nothing is added, so that followers get the same after a restart.
        """
        log = self._relay.log(record.job_id)
        if record.state is JobState.FINISHED:
            return record
        log.sealed = True
        if log.doubtful:
            return record
        outcome = replace(record.outcome, text_bytes=log.next_offset, text_digest=log.digest())
        return replace(record, outcome=outcome)

    def ended(self, effect: JobEnded) -> None:
        """A job is over; nothing follows."""
        if effect.job_id not in self._core.jobs:
            return
        log = self._relay.log(effect.job_id)
        # Of a job that did not finish it is known only from the journal; else all of it is here.
        expected, digest = effect.outcome.text_bytes, effect.outcome.text_digest
        text_bytes = log.next_offset if expected is None else expected
        if effect.state is JobState.CANCELLED and log.next_index:
            # The engine's own count comes too late for a cancelled job; pieces delivered are known.
            effect = replace(effect, usage=replace(effect.usage, tokens_out=log.next_index))
        error = effect.outcome.error
        if error is not None and error.reason is Reason.WORKER_RESET:
            told = error.metadata | {"text_offset": str(text_bytes)}
            effect = replace(effect, outcome=Outcome(error=replace(error, metadata=told)))
        output = wire_events.Output(text_bytes, log.digest() if expected is None else digest)
        entry = encode_event(wire_events.ended(effect, output))
        failpoints.reach("end.before")
        self._relay.finish(effect.job_id, entry, expected, digest)
        failpoints.reach("end.after")
