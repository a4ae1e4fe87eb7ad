"""Readers of server-sent events: `python -m benchmarks.load.sse_readers HOST:PORT`.

Streams of `/v1/chat/completions`, each on a connection of its own. Answers as `load.readers`.
"""

import argparse
import asyncio
import json
import re
import time

from benchmarks.load.control import Fields, obey
from benchmarks.load.hosts import MODEL, age_s

SAMPLE_EVERY = 8
_TEXT = re.compile(rb'"content": ?" ([0-9a-f]{6})"')


class Streams:
    """Counts over all streams of this process."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._where = host, int(port)
        self._tasks: list[asyncio.Task[None]] = []
        self._tokens = self._batches = self._started = 0
        self._ages_s: list[float] = []

    async def _read(self, max_tokens: int) -> None:
        reader, writer = await asyncio.open_connection(*self._where)
        asked = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Once upon a time"}],
            "max_tokens": max_tokens,
            "stream": True,
        }
        body = json.dumps(asked).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\n"
            "content-type: application/json\r\nauthorization: Bearer none\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"{status!r} {(await reader.read(2_000))!r}")
        fresh = True
        while b"[DONE]" not in (data := await reader.read(65_536)):
            if not data:
                raise RuntimeError("the stream was cut")
            texts = _TEXT.findall(data)
            if not texts:
                continue
            self._started += fresh
            fresh = False
            self._tokens += len(texts)
            self._batches += 1
            if self._batches % SAMPLE_EVERY == 0:
                self._ages_s.append(age_s(int(texts[0], 16), time.monotonic()))
        writer.close()

    async def open(self, fields: Fields) -> Fields:
        """Begins streams; answers when each has output."""
        count = int(fields["jobs"])
        read = [self._read(int(fields["max_tokens"])) for _ in range(count)]
        self._tasks.extend(map(asyncio.create_task, read))
        while self._started < count:
            await asyncio.sleep(0.05)
            for task in self._tasks:
                if task.done():
                    task.result()
        return {}

    async def count(self, _: Fields) -> Fields:
        """Tokens and reads so far, and ages of tokens since the last call, in ms."""
        ages, self._ages_s = sorted(self._ages_s), []
        at = {
            f"p{percent}_ms": ages[len(ages) * percent // 100] * 1000 if ages else 0.0
            for percent in (50, 99)
        }
        return {"tokens": self._tokens, "batches": self._batches, **at}


async def main() -> None:
    """Reads until the driver ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    streams = Streams(parser.parse_args().address)
    await obey({"open": streams.open, "count": streams.count})


if __name__ == "__main__":
    asyncio.run(main())
