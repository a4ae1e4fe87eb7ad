"""Reading a host's frames: refused, started, tokens, ended, in this order."""

from typing import Final

import structlog

from llamaorch.pool.v1 import dispatch_pb2
from orchestrator_core import failpoints
from orchestrator_core.core.events import AttemptEnded, AttemptError, AttemptErrorKind
from orchestrator_core.core.outcome import FieldViolation, Reason, Refusal
from orchestrator_core.core.states import JobState
from orchestrator_core.errors import MalformedOutputError, RefusalError
from orchestrator_core.hosts.bindings import AttemptKey, Binding
from orchestrator_core.hosts.link import HostLink
from orchestrator_core.relay.items import Frame
from orchestrator_core.runtime import Runtime
from orchestrator_core.telemetry.tracked import found_by
from orchestrator_core.wire import dispatch as wire_dispatch
from orchestrator_core.wire.output_frames import Columns, OutputFrame, columns_of
from orchestrator_core.wire.plausible import CHUNK_BYTES_MAX, COUNT_MAX, frame_violations

_log = structlog.get_logger("orchestratord")

# Progress is told to the core at the first output and then this often: it is for watchdogs and
# forecasts.
PROGRESS_EVERY_MS: Final = 1_000


class FrameReader:
    """Applies the frames of one link to the relay and the core."""

    def __init__(self, runtime: Runtime, link: HostLink) -> None:
        self._runtime = runtime
        self._link = link
        self._bindings = link.bindings
        self._relay = runtime.relay

    def read(self, frame: dispatch_pb2.HostFrame) -> None:
        """Applies one frame. Frames of attempts that no longer count are dropped. LO-304.

        Raises:
            RefusalError: when it cannot be read; nothing of it was applied. Its host registers
            anew, and what it holds is sent again.
        """
        if bad := frame_violations(frame):
            raise self._unreadable(bad)
        link, runtime = self._link, self._runtime
        for refused in frame.refused:
            key = link.key(refused.handle)
            if key is not None:
                runtime.submit(wire_dispatch.attempt_refused(refused, key))
                self._bindings.handle_gone(refused.handle)
        for started in frame.started:
            key = link.key(started.handle)
            if key is not None:
                runtime.submit(wire_dispatch.attempt_started(started, key))
                runtime.followers.announce_ended(*key, kv_warmth=started.kv_warmth)
        if frame.HasField("tokens"):
            self._tokens(columns_of(frame.tokens), frame.applied_dispatch_seq)
        for ended in frame.ended:
            key = link.key(ended.handle)
            if key is not None:
                failpoints.reach("end.read")
                self._ended(ended, key, frame.frame_seq)
        self._was_read(frame.frame_seq)

    def read_output(self, frame: OutputFrame) -> None:
        """Applies a frame that has nothing but output, as `read` does.

        Its numbers are small, or it would have been left to protobuf.
        """
        self._tokens(frame.columns, frame.applied_dispatch_seq)
        self._was_read(frame.frame_seq)

    def _was_read(self, frame_seq: int) -> None:
        """Takes snapshots that were made before a frame."""
        link = self._link
        link.frame_seq = max(link.frame_seq, frame_seq)
        for event in link.ripe_snapshots():
            self._runtime.submit(event)

    def _ended(self, ended: dispatch_pb2.AttemptEnded, key: AttemptKey, frame_seq: int) -> None:
        if key[0] not in self._runtime.core.jobs:
            # Its release is on its way to the host; a log that is made now would stay.
            return
        log = self._runtime.relay.log(key[0])
        try:
            event = wire_dispatch.attempt_ended(ended, key, frame_seq)
        except MalformedOutputError as error:
            self._give_up(key, log.next_offset, error)
            return
        log.told_all(ended.text_bytes)
        self._runtime.submit(event)

    def _tokens(self, columns: Columns, applied_seq: int) -> None:
        rows = zip(
            columns.handles,
            columns.first_indexes,
            columns.piece_counts,
            columns.text_offsets,
            columns.text_bytes,
            columns.chunks,
            strict=True,
        )
        bindings, now_ms = self._bindings, self._runtime.clock.now_ms()
        self._relay.pace.frame()
        for handle, first_index, pieces, text_offset, text_bytes, chunk in rows:
            binding = bindings.of(handle)
            if binding is None:
                continue
            frame = Frame(binding.key[1], first_index, pieces, text_offset, text_bytes, chunk)
            if first_index == 0:
                failpoints.reach("output.first.before")
            try:
                taken = self._append(binding, frame, applied_seq)
            except MalformedOutputError as error:
                self._give_up(binding.key, min(text_offset, COUNT_MAX) + text_bytes, error)
                continue
            if taken is not None:
                bindings.read(binding, text_offset + text_bytes)
            if first_index == 0:
                failpoints.reach("output.first.after")
            if binding.told_ms < 0 or now_ms - binding.told_ms >= PROGRESS_EVERY_MS:
                self._tell(binding, now_ms)
        self._link.acknowledge()

    def _append(self, binding: Binding, frame: Frame, applied_seq: int) -> bool | None:
        """Takes a frame. After a gap the host is asked to go back; its answer is taken as it is.

        A host that adopted a job after a restart may have evicted what was acknowledged. Frames
        that it wrote before it read the request are no answer, and are dropped.
        """
        relay, job_id = self._relay, binding.key[0]
        if frame.first_index > COUNT_MAX or frame.text_offset > COUNT_MAX:
            raise MalformedOutputError(
                f"tokens.first_indexes {frame.first_index} or tokens.text_offsets"
                f" {frame.text_offset} is above {COUNT_MAX}"
            )
        if len(frame.chunk) > CHUNK_BYTES_MAX:
            size_bytes = len(frame.chunk)
            raise MalformedOutputError(f"a chunk of {size_bytes} bytes is above {CHUNK_BYTES_MAX}")
        log = binding.log
        if log is None or log.forgotten is not None:
            if job_id not in self._runtime.core.jobs:
                # Its release is on its way to the host.
                return False
            log = binding.log = relay.log(job_id)
        if not log.announced(frame.attempt) and self._unwanted(job_id):
            return False
        taken = relay.append_to(log, job_id, frame)
        if taken is not None:
            if not taken:
                relay.sides.offer(job_id, frame, applied_seq)
            return taken
        if binding.answers(log.next_offset, applied_seq):
            return relay.append_to(log, job_id, frame, accept_gap=True)
        self._link.seek(binding, log.next_index, log.next_offset)
        return None

    def _unreadable(self, bad: list[FieldViolation]) -> RefusalError:
        host_id, field, what = self._link.host_id, bad[0].field, bad[0].description
        _log.error(
            "frame_malformed",
            host_id=host_id,
            field=field,
            reason=what,
            human=f"Host {host_id} sent a frame that cannot be read: {field} {what}.",
        )
        text = "the frame cannot be read; the host must register anew"
        return RefusalError(Refusal(Reason.INVALID_PARAMS, text, violations=tuple(bad)))

    def _give_up(self, key: AttemptKey, text_bytes: int, error: MalformedOutputError) -> None:
        """Fails an attempt whose output is lost here. The host keeps it, as it is not acknowledged.

        Nothing more of the attempt counts, not even the host's word that it ended.
        """
        message = f"host {self._link.host_id} sent broken output: {error}"
        job = self._runtime.core.jobs.get(key[0])
        _log.error(
            "output_malformed",
            host_id=self._link.host_id,
            **({"job_id": key[0]} if job is None else found_by(job.spec)),
            attempt=key[1],
            human=f"Attempt {key[1]} of job {key[0]} is given up: {message}.",
        )
        self._link.cancel(key)
        self._link.unbind(key)
        self._runtime.submit(
            AttemptEnded(
                *key,
                frame_seq=0,
                error=AttemptError(AttemptErrorKind.ENGINE_ERROR, message),
                text_bytes=text_bytes,
            )
        )

    def _unwanted(self, job_id: str) -> bool:
        """True for the text of a job that was ended before it started, so nobody heard `started`.

        Its outcome may still wait for the journal.
        """
        job = self._runtime.core.jobs.get(job_id)
        return job is not None and not job.live and job.state is not JobState.FINISHED

    def _tell(self, binding: Binding, now_ms: int) -> None:
        """Tells the core that an attempt lives, be its output new or not."""
        binding.told_ms = now_ms
        job = self._runtime.core.jobs.get(binding.key[0])
        if job is not None:
            self._runtime.text_arrived(job, binding.key[1])
