"""What a token costs in orchestratord's own code between two gRPC messages, without gRPC.

    python -m benchmarks.relay_path [--streams 64] [--together 16] [--ways exchange,job]

Frames as played hosts send them are parsed and applied, what followers get of them is taken out,
and an Exchange acknowledges every tenth of a second. It measures CPU of this process, best of the
rounds. `--rounds 1 --seconds N` under `valgrind --tool=cachegrind` counts instructions: those of
two runs of different length, subtracted, do not depend on what else runs.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from benchmarks.load.hosts import PIECE_BYTES, Stream
from benchmarks.machine import run_on_machine
from llamaorch.orchestrator.v1 import events_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from llamaorch.pool.v1 import pool_registry_service_pb2
from orchestrator_core.core.effects import SendVerdicts, Verdict
from orchestrator_core.core.states import JobState
from orchestrator_core.hosts.link import HostLink, LinkTerms
from orchestrator_core.relay import log as relay_log
from orchestrator_core.relay.relay import Relay, RelayLimits
from orchestrator_core.servicers.exchange_session import ExchangeSession
from orchestrator_core.servicers.follow import Audience
from orchestrator_core.servicers.frames import FrameReader
from orchestrator_core.servicers.subscription import Terms
from orchestrator_core.wire.frames import encode_event
from orchestrator_core.wire.output_frames import read_output_frame

if TYPE_CHECKING:
    from orchestrator_core.relay.reader import Reader

STARTED = events_pb2.JobEvent(started=events_pb2.Started(attempt=1))
RATE = 50
ACKS_PER_S = 10
FORM = "interpreted" if relay_log.__file__.endswith(".py") else "compiled"


class StillRuntime:
    """What frames and sessions use of the runtime; the core is told nothing and does nothing."""

    def __init__(self, jobs: int) -> None:
        self.relay = Relay(RelayLimits())
        self.clock = SimpleNamespace(now_ms=lambda: 0)
        self.jobs = {
            f"job-{n}": SimpleNamespace(job_id=f"job-{n}", live=True, state=JobState.RUNNING)
            for n in range(jobs)
        }
        self.core = SimpleNamespace(jobs=self.jobs)

    def job(self, job_id: str) -> object:
        """As the runtime."""
        return self.jobs[job_id]

    def submit(self, _: object) -> None:
        """Nothing comes of it."""

    def text_arrived(self, _: object, __: int) -> None:
        """Nothing comes of it."""


def frames(streams: list[Stream], together: int, count: int) -> Iterator[bytes]:
    """Messages of a host, with one piece of each of `together` streams in turn."""
    at = 0
    for seq in range(1, count + 1):
        message = pool_registry_service_pb2.DispatchRequest()
        message.frame.frame_seq = seq
        tokens = message.frame.tokens
        for _ in range(together):
            stream = streams[at % len(streams)]
            at += 1
            tokens.handles.append(stream.handle)
            tokens.first_indexes.append(stream.pieces)
            tokens.piece_counts.append(1)
            tokens.text_offsets.append(stream.pieces * PIECE_BYTES)
            tokens.text_bytes.append(PIECE_BYTES)
            tokens.chunks.append(stream.batch([at & 0xFFFFFF]))
        yield message.SerializeToString()


class Path:
    """One host whose frames go to an Exchange, or to one reader per job."""

    def __init__(self, streams: int, *, exchange: bool) -> None:
        runtime = StillRuntime(streams)
        self.relay = runtime.relay
        self.link = HostLink("host-1", "boot", 1, LinkTerms(1, 1_000, 3_000, 1 << 16))
        verdicts = tuple((job_id, 1, Verdict.ADOPT) for job_id in runtime.jobs)
        self.link.registered(SendVerdicts("host-1", 1, verdicts), runtime.relay)
        self.frames = FrameReader(cast("Any", runtime), self.link)
        for job_id in runtime.jobs:
            runtime.relay.append_event(job_id, encode_event(STARTED))
        self.woken: list[Reader] = []
        self.bytes_out = 0
        if exchange:
            audience = Audience(cast("Any", runtime))
            self.session = ExchangeSession(cast("Any", runtime), audience, self._no_wake)
            self.handles = [self.session.subscribe(job_id, Terms()) for job_id in runtime.jobs]
        else:
            for job_id in runtime.jobs:
                self._follow(job_id)
        self.take = self._take_exchange if exchange else self._take_jobs
        self.take()

    def read(self, data: bytes) -> None:
        """As the servicer reads a message of a host."""
        frame = read_output_frame(data)
        if frame is None:
            self.frames.read(pool_registry_service_pb2.DispatchRequest.FromString(data).frame)
        else:
            self.frames.read_output(frame)
        self.take()

    def acknowledge(self) -> None:
        """As the servicer takes acknowledgements of a client that has read everything."""
        offsets = [self.relay.log(f"job-{n}").next_offset for n in range(len(self.handles))]
        request = pb.ExchangeRequest(ack=pb.ExchangeAck(handles=self.handles, text_offsets=offsets))
        self.session.acknowledge(pb.ExchangeRequest.FromString(request.SerializeToString()).ack)

    def _follow(self, job_id: str) -> None:
        readers: list[Reader] = []
        readers.append(self.relay.log(job_id).open(None, lambda: self.woken.append(readers[0])))

    def _no_wake(self, *, urgent: bool) -> None:
        pass

    def _take_exchange(self) -> None:
        self.bytes_out += len(self.session.next_message())

    def _take_jobs(self) -> None:
        woken, self.woken = self.woken, []
        for reader in woken:
            self.bytes_out += sum(map(len, reader.take()))


async def measure(streams: int, together: int, seconds: float, *, exchange: bool) -> float:
    """Microseconds of CPU per token."""
    path = Path(streams, exchange=exchange)
    made = [Stream(n + 1, 1, f"job-{n}", 0, 0.0) for n in range(streams)]
    tokens = int(seconds * streams * RATE)
    count = tokens // together
    messages = list(frames(made, together, count))
    ack_every = max(1, streams * RATE // ACKS_PER_S // together)
    began_s = time.process_time()
    for number, message in enumerate(messages, start=1):
        path.read(message)
        if exchange and number % ack_every == 0:
            path.acknowledge()
    took_s = time.process_time() - began_s
    if path.bytes_out < count * together * PIECE_BYTES:
        raise RuntimeError("less was read than was sent")
    return took_s / (count * together) * 1e6


def main(argv: list[str] | None = None) -> int:
    """Prints microseconds per token of each way."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--together", type=int, default=16, help="tokens in a frame")
    parser.add_argument("--ways", default="exchange,job")
    parser.add_argument("--seconds", type=float, default=4.0, help="of output in a round")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(argv)
    print("python -m benchmarks.relay_path " + " ".join(sys.argv[1:] if argv is None else argv))
    with run_on_machine():
        for way in options.ways.split(","):
            found = sorted(
                asyncio.run(
                    measure(
                        options.streams,
                        options.together,
                        options.seconds,
                        exchange=way == "exchange",
                    )
                )
                for _ in range(options.rounds)
            )
            print(
                f"{FORM:12} {way:9} {options.streams:6} streams, {options.together} in a frame:"
                f" best {found[0]:6.2f} us a token, median {found[len(found) // 2]:6.2f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
