"""An OpenAI-compatible engine without a model: `python -m benchmarks.load.engine --rate 50`.

Answers `/v1/chat/completions` and `/v1/completions` with server-sent events, `--rate` of them per
second on each stream until `max_tokens`, with a random phase. The text of an event is the piece
that a played host would send: its instant, in seven bytes.
"""

import argparse
import asyncio
import json
import random
import time

from benchmarks.load.control import Fields, obey
from benchmarks.load.hosts import MODEL, stamp

_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


class Engine:
    """All streams of the engine."""

    def __init__(self, rate: float) -> None:
        self._period_s = 1.0 / rate
        self.tokens = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, any number of requests after one another."""
        try:
            while (head := await reader.readuntil(b"\r\n\r\n")) != b"":
                first, *lines = head.decode("latin-1").split("\r\n")
                headers = {
                    name.lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in lines)
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if first.startswith("POST"):
                    await self._complete(json.loads(body), writer)
                else:
                    _answer(writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _complete(self, asked: Fields, writer: asyncio.StreamWriter) -> None:
        chat = "messages" in asked
        if not asked.get("stream"):
            _answer(writer)
            return
        writer.write(_HEAD)
        due_s = time.monotonic() + random.random() * self._period_s  # noqa: S311 - a phase
        for _ in range(int(asked.get("max_tokens") or asked.get("max_completion_tokens") or 16)):
            if (wait_s := due_s - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            text = f" {stamp(max(due_s, time.monotonic())):06x}"
            due_s += self._period_s
            writer.write(_chunk(_event(text, chat=chat)))
            self.tokens += 1
            await writer.drain()
        writer.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def _event(text: str, *, chat: bool) -> bytes:
    part = {"delta": {"content": text}} if chat else {"text": text}
    message = {
        "id": "cmpl-1",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "finish_reason": None, **part}],
    }
    return b"data: " + json.dumps(message).encode() + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _answer(writer: asyncio.StreamWriter) -> None:
    """Models, health and whatever else routers ask of an engine before they trust it."""
    model = {"id": MODEL, "object": "model", "created": 1, "owned_by": "bench"}
    fields = {"object": "list", "data": [model], "model_path": MODEL, "status": "ok"}
    body = json.dumps(fields).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    writer.write(head % len(body) + body)


async def main() -> None:
    """Serves until the driver ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=50.0)
    engine = Engine(parser.parse_args().rate)
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)

    async def totals(_: Fields) -> Fields:
        return {"tokens": engine.tokens}

    await obey({"totals": totals}, port=server.sockets[0].getsockname()[1])


if __name__ == "__main__":
    asyncio.run(main())
