"""A llama-server without a model: `python benchmarks/load/llama_engine.py --port 8080 --slots 8`.

It answers what an attached pool asks (`/health`, `/props`, `/slots`, `/v1/models`) and streams
`/completion` at `--rate` tokens per second with a random phase. To be started as an engine of a
pool, and to be a bad one: `--helpers N` starts N further processes, each of them abandoned and in a
session of its own; with `--stubborn` none of them minds SIGTERM; `--say` and `--exit` end it with
last words. With LLAMA_API_KEY in its environment it asks for that key.

Only the standard library, and nothing of this repository: it starts in a tenth of a second.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time

_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel")
_HELPER = """
import os, signal, sys, time
if sys.argv[1] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork():
    os._exit(0)
os.setsid()
time.sleep(3600)
"""


class Server:
    """All slots of the server."""

    def __init__(self, slots: int, rate: float, key: str) -> None:
        self._busy = [False] * slots
        self._period_s = 1.0 / rate if rate else 0.0
        self._key = key

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection with one request."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.split("\r\n")
            headers = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(":") for line in lines)
            }
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            path = first.split(" ")[1]
            if self._key and headers.get("authorization") != f"Bearer {self._key}":
                _answer(writer, 401, {"error": {"code": 401, "message": "Invalid API Key"}})
            elif path == "/completion":
                await self._complete(json.loads(body), writer)
            else:
                _answer(writer, 200, self._facts(path))
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _facts(self, path: str) -> object:
        if path == "/slots":
            return [
                {"id": number, "n_ctx": 1_000_000, "is_processing": busy}
                for number, busy in enumerate(self._busy)
            ]
        if path == "/props":
            return {"total_slots": len(self._busy), "model_path": "paced", "build_info": "paced-1"}
        if path == "/v1/models":
            return {"data": [{"id": "paced", "meta": {"n_params": 0}}]}
        return {"status": "ok"}

    async def _complete(self, asked: dict[str, object], writer: asyncio.StreamWriter) -> None:
        slot, limit = asked.get("id_slot"), asked.get("n_predict")
        number = slot if isinstance(slot, int) else 0
        tokens = limit if isinstance(limit, int) and limit > 0 else 1024
        self._busy[number] = True
        try:
            await self._stream(number, tokens, writer)
        finally:
            self._busy[number] = False

    async def _stream(self, slot: int, tokens: int, writer: asyncio.StreamWriter) -> None:
        writer.write(_HEAD)
        due_s = time.monotonic() + random.random() * self._period_s  # noqa: S311 - a phase
        for index in range(tokens):
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            due_s += self._period_s
            word = index % len(_WORDS)
            frame = {"index": 0, "content": f" {_WORDS[word]}", "tokens": [word], "stop": False}
            frame |= {"id_slot": slot, "tokens_predicted": index + 1, "tokens_evaluated": 1}
            writer.write(_chunk(frame))
            await writer.drain()
        timings = {"prompt_n": 1, "prompt_ms": 1.0, "predicted_n": tokens, "predicted_ms": 1.0}
        end = {"content": "", "tokens": [], "stop": True, "stop_type": "limit", "id_slot": slot}
        end |= {"tokens_predicted": tokens, "tokens_evaluated": 1, "timings": timings}
        writer.write(_chunk(end) + b"0\r\n\r\n")


def _chunk(frame: object) -> bytes:
    data = b"data: " + json.dumps(frame).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def _answer(writer: asyncio.StreamWriter, status: int, fields: object) -> None:
    body = json.dumps(fields).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


async def main() -> None:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--helpers", type=int, default=0)
    parser.add_argument("--stubborn", action="store_true")
    parser.add_argument("--say", default="")
    parser.add_argument("--exit", type=int, default=-1)
    arguments = parser.parse_args()
    if arguments.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mood = "stubborn" if arguments.stubborn else "meek"
    for _ in range(arguments.helpers):
        subprocess.run([sys.executable, "-S", "-c", _HELPER, mood], check=True)  # noqa: S603, ASYNC221 - before it serves
    print(arguments.say, file=sys.stderr, flush=True)
    if arguments.exit >= 0:
        sys.exit(arguments.exit)
    engine = Server(arguments.slots, arguments.rate, os.environ.get("LLAMA_API_KEY", ""))
    server = await asyncio.start_server(engine.serve, "127.0.0.1", arguments.port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
