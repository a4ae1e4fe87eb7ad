"""Reading a host's frames: refused, started, tokens, ended, in this order."""

from dataclasses import dataclass

from llamaorch.pool.v1 import dispatch_pb2
from orchestrator_core import failpoints
from orchestrator_core.core.states import JobState
from orchestrator_core.hosts.link import HostLink
from orchestrator_core.relay.log import Frame
from orchestrator_core.runtime import Runtime
from orchestrator_core.wire import dispatch as wire_dispatch

# Progress is told to the core at the first output and then this often: it is for watchdogs and
# forecasts.
PROGRESS_EVERY_MS = 1_000


@dataclass(slots=True)
class _Heard:
    """Of a handle's output: when it was last told to the core, and where the last gap was."""

    told_ms: int | None = None
    gap_offset: int | None = None


class FrameReader:
    """Applies the frames of one link to the relay and the core."""

    def __init__(self, runtime: Runtime, link: HostLink) -> None:
        self._runtime = runtime
        self._link = link
        self._heard: dict[int, _Heard] = {}

    def read(self, frame: dispatch_pb2.HostFrame) -> None:
        """Applies one frame. Frames of attempts that no longer count are dropped. LO-304."""
        link, runtime = self._link, self._runtime
        for refused in frame.refused:
            key = link.key(refused.handle)
            if key is not None:
                runtime.submit(wire_dispatch.attempt_refused(refused, key))
                self._forget(refused.handle)
        for started in frame.started:
            key = link.key(started.handle)
            if key is not None:
                runtime.submit(wire_dispatch.attempt_started(started, key))
                runtime.announce_ended(*key, kv_warmth=started.kv_warmth)
        if frame.HasField("tokens"):
            self._tokens(frame.tokens)
        for ended in frame.ended:
            key = link.key(ended.handle)
            if key is not None:
                failpoints.reach("end.read")
                runtime.relay.log(key[0]).told_all(ended.text_bytes)
                runtime.submit(wire_dispatch.attempt_ended(ended, key, frame.frame_seq))
                self._heard.pop(ended.handle, None)
        link.frame_seq = max(link.frame_seq, frame.frame_seq)
        for event in link.ripe_snapshots():
            runtime.submit(event)

    def _tokens(self, tokens: dispatch_pb2.TokenFrames) -> None:
        columns = zip(
            tokens.handles,
            tokens.first_indexes,
            tokens.piece_counts,
            tokens.text_offsets,
            tokens.text_bytes,
            tokens.chunks,
            strict=True,
        )
        link, now_ms = self._link, self._runtime.clock.now_ms()
        self._runtime.relay.pace.frame()
        read: dict[int, int] = {}
        for handle, first_index, pieces, text_offset, text_bytes, chunk in columns:
            key = link.key(handle)
            if key is None:
                continue
            heard = self._heard.get(handle) or self._hear(handle)
            frame = Frame(key[1], first_index, pieces, text_offset, text_bytes, chunk)
            if first_index == 0:
                failpoints.reach("output.first.before")
            if self._append(handle, key[0], frame, heard) is not None:
                read[handle] = text_offset + text_bytes
            if first_index == 0:
                failpoints.reach("output.first.after")
            if heard.told_ms is None or now_ms - heard.told_ms >= PROGRESS_EVERY_MS:
                heard.told_ms = now_ms
                self._progress(key[0], key[1])
        link.acknowledge(read)

    def _append(self, handle: int, job_id: str, frame: Frame, heard: _Heard) -> bool | None:
        """Takes a frame. After a gap the host is asked once to go back, and then taken at its word.

        A host that adopted a job after a restart may have evicted what was acknowledged.
        """
        relay, gap_offset = self._runtime.relay, heard.gap_offset
        log = relay.log(job_id)
        if not log.announced(frame.attempt) and self._unwanted(job_id):
            return False
        asked = gap_offset is not None and gap_offset == log.next_offset
        taken = relay.append_text(job_id, frame, accept_gap=asked)
        if taken is None:
            log = relay.log(job_id)
            heard.gap_offset = log.next_offset
            self._link.seek(handle, log.next_index)
        return taken

    def _unwanted(self, job_id: str) -> bool:
        """True for the text of a job that was ended before it started, so nobody heard `started`.

        Its outcome may still wait for the journal.
        """
        job = self._runtime.core.jobs.get(job_id)
        return job is not None and not job.live and job.state is not JobState.FINISHED

    def _progress(self, job_id: str, attempt: int) -> None:
        """Tells the core that an attempt lives, be its output new or not."""
        job = self._runtime.core.jobs.get(job_id)
        if job is not None:
            self._runtime.text_arrived(job, attempt)

    def _hear(self, handle: int) -> _Heard:
        """Begins to listen to a handle, and drops those whose attempts no longer count."""
        self._heard = {known: it for known, it in self._heard.items() if self._link.key(known)}
        heard = self._heard[handle] = _Heard()
        return heard

    def _forget(self, handle: int) -> None:
        self._heard.pop(handle, None)
        self._link.handle_gone(handle)
