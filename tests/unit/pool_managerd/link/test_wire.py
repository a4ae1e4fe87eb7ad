"""What the pool manager puts on the wire."""

import pytest

from llamaorch.orchestrator.v1 import events_pb2
from llamaorch.pool.v1 import dispatch_pb2
from pool_managerd.core.attempts import AttemptFailure, AttemptKey, AttemptLog, ErrorKind, Terminal
from pool_managerd.core.logprobs import TokenLogprob
from pool_managerd.core.outbox import Outbox
from pool_managerd.link import wire

MESSAGE_BYTES_MAX = 4 << 20


def failed_log(number: int, message: str) -> AttemptLog:
    """An attempt that is over."""
    log = AttemptLog(AttemptKey(f"job-{number:032d}", 1), ("pool-a", "pool-a-01234567"))
    log.end(Terminal(AttemptFailure(ErrorKind.INVALID_REQUEST, message)))
    return log


@pytest.mark.parametrize("message", ["", "x" * 500, "\N{GRINNING FACE}" * 2_000])
def test_a_full_store_registers_within_the_message_limit(message: str) -> None:
    """8,192 held attempts with the longest messages never make one message too large."""
    held = [failed_log(number, message) for number in range(8_192)]
    first = dispatch_pb2.Register(host_id="h", boot_id="b")

    pages = wire.register_pages(first, held)

    assert all(page.ByteSize() < MESSAGE_BYTES_MAX / 2 for page in pages)
    assert all(len(page.held) <= wire.HELD_PER_MESSAGE for page in pages)
    assert [page.more for page in pages] == [True] * (len(pages) - 1) + [False]
    told = [entry.job_id for page in pages for entry in page.held]
    assert told == [log.key.job_id for log in held]


def test_a_host_that_holds_nothing_registers_with_one_message() -> None:
    """There is always a first message."""
    pages = wire.register_pages(dispatch_pb2.Register(host_id="h"), [])

    assert [(page.host_id, page.more) for page in pages] == [("h", False)]


@pytest.mark.parametrize(
    ("pieces", "counts"),
    [
        ([("a", (1,))], [1]),
        ([("a", (1, 2)), ("b", ()), ("c", (3,))], [2, 0, 1]),
        ([("a", ()), ("b", ())], []),
    ],
)
def test_a_batch_counts_the_tokens_of_every_piece(
    pieces: list[tuple[str, tuple[int, ...]]], counts: list[int]
) -> None:
    """token_counts runs parallel to the pieces, and is empty where no ids are reported."""
    log = AttemptLog(AttemptKey("j", 1), ("p", "r"))
    outbox = Outbox(1 << 16, 1 << 16, lambda: None)
    outbox.bind(1, log)
    for text, token_ids in pieces:
        log.append(text, token_ids)
    outbox.touch(log)
    frame = outbox.take()
    assert frame is not None

    message = wire.frame_message(frame, 1, 1)

    batch = events_pb2.TokenBatch.FromString(message.frame.tokens.chunks[0])
    assert list(batch.pieces) == [text for text, _ in pieces]
    assert list(batch.token_counts) == counts
    assert len(batch.token_ids) == sum(counts)


def test_a_batch_has_log_probabilities_where_they_were_asked_for() -> None:
    """One entry for each piece, with the likeliest tokens; none at all otherwise."""
    log, plain = (AttemptLog(AttemptKey(job, 1), ("p", "r")) for job in ("j", "k"))
    outbox = Outbox(1 << 16, 1 << 16, lambda: None)
    token = TokenLogprob(b"a", -0.5, ((b"b", -0.25), (b"a", -0.5)))
    for handle, one in enumerate((log, plain), 1):
        outbox.bind(handle, one)
        one.append("a", (), (token,) if one is log else ())
        one.append("b")
        outbox.touch(one)
    frame = outbox.take()
    assert frame is not None

    message = wire.frame_message(frame, 1, 1)

    batches = [events_pb2.TokenBatch.FromString(chunk) for chunk in message.frame.tokens.chunks]
    first, second = batches[0].logprobs
    assert [(token.token, token.logprob) for token in first.tokens] == [(b"a", -0.5)]
    assert [(token.token, token.logprob) for token in first.tokens[0].top] == [
        (b"b", -0.25),
        (b"a", -0.5),
    ]
    assert not second.tokens
    assert not batches[1].logprobs


def test_a_piece_larger_than_the_rest_of_the_window_goes_once_all_is_acknowledged() -> None:
    """However little text came before it: 200 bytes, then 900, in a window of 1,024."""
    log = AttemptLog(AttemptKey("j", 1), ("p", "r"))
    outbox = Outbox(1_024, 1 << 16, lambda: None)
    outbox.bind(1, log)
    log.append("a" * 200)
    log.append("b" * 900)
    outbox.touch(log)
    first = outbox.take()
    assert first is not None
    assert outbox.take() is None

    outbox.ack(1, 200)
    second = outbox.take()

    assert second is not None
    assert [first.chunks[0][2].text_bytes, second.chunks[0][2].text_bytes] == [200, 900]


def test_the_ends_of_all_that_is_held_fit_into_frames() -> None:
    """After a restart of the orchestrator all of them are due at once, with the longest words."""
    outbox = Outbox(1 << 16, 1 << 20, lambda: None)
    for number in range(8_192):
        outbox.bind(number + 1, failed_log(number, "\N{GRINNING FACE}" * 2_000))

    sizes, told = [], 0
    while (frame := outbox.take()) is not None:
        message = wire.frame_message(frame, 1, 1)
        sizes.append(message.ByteSize())
        told += len(message.frame.ended)

    assert told == 8_192
    assert max(sizes) < MESSAGE_BYTES_MAX
