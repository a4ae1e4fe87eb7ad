"""What a host can say and be right: numbers beyond these bounds are refused and named. LO-203.

They are far above what any hardware or any job has, and so far below 2^63 that sums and products
of a few of them fit everywhere: into the journal, into messages, into floats.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from google.protobuf.message import Message

from llamaorch.pool.v1 import dispatch_pb2
from orchestrator_core.core.outcome import FieldViolation

# Tokens, pieces, bytes of output, and what is numbered one by one.
COUNT_MAX: Final = 1 << 40
# A chunk goes to clients whole, in a message of 4 MiB with others before it.
CHUNK_BYTES_MAX: Final = (4 << 20) - (128 << 10)
MEMORY_BYTES_MAX = 1 << 50
TIME_MS_MAX = 1 << 32
SLOTS_MAX = 1 << 16
RATE_MIN, RATE_MAX = 1e-3, 1e9

_COLUMNS = ("first_indexes", "piece_counts", "text_offsets", "text_bytes", "chunks")


def too_large(message: Message, names: Iterable[str], most: int, where: str = "") -> Iterator[str]:
    """Says of each named number that is above `most` that it is. `where` goes before its name."""
    for name in names:
        value = getattr(message, name)
        if value > most:
            yield f"{where}{name} is {value}, which is above {most}"


def frame_violations(frame: dispatch_pb2.HostFrame) -> list[FieldViolation]:
    """What is wrong with a frame as a whole, so that nothing in it can be believed."""
    bad = [
        FieldViolation(f"frame.{name}", f"must be at most {COUNT_MAX}")
        for name in ("frame_seq", "applied_dispatch_seq")
        if getattr(frame, name) > COUNT_MAX
    ]
    tokens = frame.tokens
    count = len(tokens.handles)
    for name in _COLUMNS:
        entries = len(getattr(tokens, name))
        if entries != count:
            what = f"has {entries} entries, but `handles` has {count}: the lists run in parallel"
            bad.append(FieldViolation(f"frame.tokens.{name}", what))
    return bad
