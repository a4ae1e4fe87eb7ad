"""The peers of pool-managerd: `python -m benchmarks.load.sse_bare URL --streams 8 [--epoll]`.

aiohttp alone on uvloop, or nothing but epoll and recv. They read the same streams of server-sent
events as bytes, count the events and do nothing else.
"""

import argparse
import asyncio
import json
import select
import socket
import threading
from urllib.parse import urlsplit

import aiohttp
import uvloop

from benchmarks.load.control import Fields, obey

_END = b"\n\n"


def body_of(slot: int) -> dict[str, object]:
    """A generation without an end."""
    return {"prompt": "Hi", "n_predict": 10_000_000, "stream": True, "id_slot": slot}


class Count:
    """Events so far."""

    def __init__(self) -> None:
        self.tokens = 0

    def poll(self, url: str, streams: int) -> None:
        """Reads all streams with epoll until the process ends."""
        target = urlsplit(url)
        poller, sockets = select.epoll(), {}
        for slot in range(streams):
            one = socket.create_connection((target.hostname, target.port))
            body = json.dumps(body_of(slot)).encode()
            head = f"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            one.sendall(head.encode() + body)
            poller.register(one, select.EPOLLIN)
            sockets[one.fileno()] = one
        while True:
            for number, _ in poller.poll():
                self.tokens += sockets[number].recv(65_536).count(_END)

    async def read(self, session: aiohttp.ClientSession, url: str, slot: int) -> None:
        """Reads one stream with aiohttp."""
        async with session.post(f"{url}/completion", json=body_of(slot)) as response:
            async for chunk in response.content.iter_any():
                self.tokens += chunk.count(_END)


async def main() -> None:
    """Reads until the driver ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--epoll", action="store_true")
    arguments = parser.parse_args()
    count = Count()

    async def totals(_: Fields) -> Fields:
        return {"tokens": count.tokens}

    if arguments.epoll:
        work = (arguments.url, arguments.streams)
        threading.Thread(target=count.poll, args=work, daemon=True).start()
        await obey({"totals": totals})
        return
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        slots = range(arguments.streams)
        reads = [asyncio.create_task(count.read(session, arguments.url, slot)) for slot in slots]
        await obey({"totals": totals})
        for one in reads:
            one.cancel()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
