"""Reading a host's frames: refused, started, tokens, ended, in this order."""

from llamaorch.pool.v1 import dispatch_pb2
from orchestrator_core.hosts.link import HostLink
from orchestrator_core.relay.log import Frame
from orchestrator_core.runtime import Runtime
from orchestrator_core.wire import dispatch as wire_dispatch

# Progress is told to the core at the first output and then this often: it is for watchdogs and
# forecasts.
PROGRESS_EVERY_MS = 1_000


class FrameReader:
    """Applies the frames of one link to the relay and the core."""

    def __init__(self, runtime: Runtime, link: HostLink) -> None:
        self._runtime = runtime
        self._link = link
        self._told_ms: dict[int, int] = {}

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
        if frame.HasField("tokens"):
            self._tokens(frame.tokens)
        for ended in frame.ended:
            key = link.key(ended.handle)
            if key is not None:
                runtime.submit(wire_dispatch.attempt_ended(ended, key, frame.frame_seq))
                self._told_ms.pop(ended.handle, None)
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
        read: dict[int, int] = {}
        for handle, first_index, pieces, text_offset, text_bytes, chunk in columns:
            key = self._link.key(handle)
            if key is None:
                continue
            job_id, attempt = key
            frame = Frame(attempt, first_index, pieces, text_offset, text_bytes, chunk)
            taken = self._runtime.relay.append_text(job_id, frame)
            if taken is None:
                self._link.seek(handle, self._runtime.relay.log(job_id).next_index)
                continue
            read[handle] = text_offset + text_bytes
            if taken:
                self._progress(handle, job_id, attempt)
        self._link.acknowledge(read)

    def _progress(self, handle: int, job_id: str, attempt: int) -> None:
        now_ms = self._runtime.clock.now_ms()
        told_ms = self._told_ms.get(handle)
        if told_ms is not None and now_ms - told_ms < PROGRESS_EVERY_MS:
            return
        self._told_ms[handle] = now_ms
        job = self._runtime.core.jobs.get(job_id)
        if job is not None:
            self._runtime.text_arrived(job, attempt)

    def _forget(self, handle: int) -> None:
        self._told_ms.pop(handle, None)
        self._link.handle_gone(handle)
