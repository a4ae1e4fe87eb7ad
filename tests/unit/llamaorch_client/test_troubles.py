"""What is wrong with a connection is told in words that say what to change."""

import grpc
import pytest

from llamaorch_client import InvalidParamsError, LlamaOrchError, ServerError, UnavailableError
from llamaorch_client.errors import MESSAGE_BYTES_MAX, check_size, from_rpc_error
from llamaorch_client.troubles import SILENCES, WORDS, Trouble, words

TARGET = "box:7070"
AWAY = "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:7070: "


def raised(code: grpc.StatusCode, text: str) -> tuple[LlamaOrchError, grpc.aio.AioRpcError]:
    """The library's error, and gRPC's."""
    none = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(code, none, none, text)
    return from_rpc_error(error, "c-1", TARGET), error


@pytest.mark.parametrize(
    ("text", "trouble", "says"),
    [
        (
            f"{AWAY}Failed to connect to remote host: Connection refused",
            Trouble.NOBODY_LISTENS,
            "box:7070 does not answer: nobody listens there; start orchestratord there, or",
        ),
        (f"{AWAY}Permission denied", Trouble.OTHER, "does not answer: Permission denied; start"),
        ("", Trouble.OTHER, "does not answer: UNAVAILABLE; start"),
        ("DNS resolution failed: Domain name not found", Trouble.NO_SUCH_HOST, "no such host"),
        (f"{AWAY}Socket closed", Trouble.CLOSED_AT_ONCE, "see ClientOptions.credentials"),
        ("Socket closed", Trouble.CLOSED, "box:7070 does not answer: it closed the connection"),
        ("keepalive watchdog timeout", Trouble.TOO_SLOW, "it took too long"),
        (
            f"{AWAY}Ssl handshake failed: CERTIFICATE_VERIFY_FAILED",
            Trouble.CERTIFICATE_OF_NOBODY,
            "",
        ),
    ],
)
def test_a_server_that_is_away_is_told_in_our_words(text: str, trouble: Trouble, says: str) -> None:
    """What gRPC said is the cause."""
    told, error = raised(grpc.StatusCode.UNAVAILABLE, text)

    assert isinstance(told, UnavailableError)
    assert (told.reason, told.code, told.detail.connection) == (
        "UNAVAILABLE",
        "UNAVAILABLE",
        trouble,
    )
    assert says in told.message
    assert "last error" not in told.message
    assert told.__cause__ is error
    assert told.correlation_id == "c-1"


@pytest.mark.parametrize("text", ["Deadline Exceeded", "Stream removed (Deadline Exceeded)"])
def test_a_call_that_took_too_long_keeps_its_code(text: str) -> None:
    """It may have been carried out."""
    told, _ = raised(grpc.StatusCode.DEADLINE_EXCEEDED, text)

    assert isinstance(told, UnavailableError)
    assert (told.code, told.detail.connection) == ("DEADLINE_EXCEEDED", Trouble.TOO_SLOW)
    assert "box:7070 does not answer: it took too long" in told.message


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
        (grpc.StatusCode.UNKNOWN, "Stream removed"),
    ],
)
def test_a_call_that_a_proxy_broke_may_be_made_again(code: grpc.StatusCode, text: str) -> None:
    """LO-301: a stream is resumed then; the code says nothing of the server."""
    told, _ = raised(code, text)

    assert isinstance(told, UnavailableError)
    assert told.retriable
    assert told.code == "UNAVAILABLE"


def test_a_bug_in_a_server_is_no_break() -> None:
    """It would only happen again."""
    told, _ = raised(grpc.StatusCode.UNKNOWN, "Unexpected <class 'KeyError'>: 'x'")

    assert isinstance(told, ServerError)
    assert (told.retriable, told.detail.connection) == (False, Trouble.NONE)
    assert told.message == "Unexpected <class 'KeyError'>: 'x'"


def test_an_answer_that_is_too_large_is_no_full_queue() -> None:
    """Nothing was rejected, and waiting does not help."""
    told, _ = raised(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "CLIENT: Received message larger than max (5000000 vs. 4194304)",
    )

    assert isinstance(told, ServerError)
    assert told.reason == "MESSAGE_TOO_LARGE"
    assert "box:7070 answered with more than one message may hold" in told.message


def test_a_request_that_is_too_large_says_what_to_do() -> None:
    """Before it is sent."""
    check_size(MESSAGE_BYTES_MAX)

    with pytest.raises(InvalidParamsError, match="put a long input as an artifact"):
        check_size(MESSAGE_BYTES_MAX + 1)


def test_every_trouble_has_words() -> None:
    """But those that gRPC describes itself."""
    without = {trouble for trouble in Trouble if trouble not in WORDS}

    assert without == {Trouble.NONE, Trouble.OTHER}
    assert SILENCES - WORDS.keys() == {Trouble.OTHER}
    assert words(Trouble.OTHER, "a: b: disk on fire") == "disk on fire"
