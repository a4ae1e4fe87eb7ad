"""Lines of a streamed answer, without any I/O: server-sent events and newline-delimited JSON."""

import json

import msgspec

Json = dict[str, object]

MAX_LINE_BYTES = 16 * 1024 * 1024
"""Longest accepted line of a stream: the longest prompt, escaped, with room to spare."""

DONE = b"[DONE]"
"""The payload with which OpenAI's protocol ends a stream."""


class FrameError(Exception):
    """The engine sent something that is no stream of frames."""


class LineDecoder:
    """Cuts a byte stream into the payloads of server-sent events, or the lines of NDJSON.

    Accepts payloads without the `data:` prefix and errors under `error:`; skips pings, other fields
    and empty lines. Holds one unfinished line of at most `max_line_bytes`. Linear in the bytes fed.
    """

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_line_bytes = max_line_bytes
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Returns the payload of each line that `chunk` completes.

        Raises:
            FrameError: when a line is too long.
        """
        size = len(chunk)
        # What most chunks are: one event, whole.
        if (
            chunk.find(b"\n") == size - 2
            and chunk.startswith(b"data: {")
            and chunk.endswith(b"}\n\n")
            and not self._buffer
            and size <= self._max_line_bytes
        ):
            return [chunk[6:-2]]
        payloads = []
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            line = end
            if self._buffer or len(end) > self._max_line_bytes:
                self._extend(end)
                line = bytes(self._buffer)
                self._buffer.clear()
            payload = _payload(line) if line else b""
            if payload:
                payloads.append(payload)
        if rest:
            self._extend(rest)
        return payloads

    def _extend(self, part: bytes) -> None:
        if len(self._buffer) + len(part) > self._max_line_bytes:
            raise FrameError(f"the engine sent a line of more than {self._max_line_bytes} bytes")
        self._buffer += part


def _payload(line: bytes) -> bytes:
    line = line.strip()
    if line.startswith((b"data:", b"error:")):
        return line.partition(b":")[2].strip()
    return line if line.startswith(b"{") else b""


def json_object(payload: bytes) -> Json:
    """Returns the frame in a payload.

    Raises:
        FrameError: when the payload is no JSON object.
    """
    try:
        frame: object = msgspec.json.decode(payload)
    except (msgspec.DecodeError, ValueError, RecursionError):
        frame = _lenient(payload)
    if not isinstance(frame, dict):
        raise FrameError("the engine sent a frame that is no JSON object")
    return frame


def _lenient(payload: bytes) -> object:
    """Takes half a pair of surrogates too, of which msgspec makes no text; None for junk."""
    try:
        value: object = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    return value


def is_incomplete(text: str) -> bool:
    """Tells whether the last character of a text that is not empty is half a pair of surrogates."""
    return "\ud800" <= text[-1] <= "\udbff"


def whole_characters(text: str) -> str:
    """Joins pairs of surrogates that came in two frames; a half that stands alone is replaced."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
