"""The peer of pool-managerd: aiohttp alone, `python -m benchmarks.load.sse_bare URL --streams 8`.

It reads the same streams of server-sent events as bytes, counts the events and does nothing else.
"""

import argparse
import asyncio

import aiohttp

from benchmarks.load.control import Fields, obey

_END = b"\n\n"


async def main() -> None:
    """Reads until the driver ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--streams", type=int, default=8)
    arguments = parser.parse_args()
    tokens = 0

    async def read(session: aiohttp.ClientSession, slot: int) -> None:
        nonlocal tokens
        body = {"prompt": "Hi", "n_predict": 10_000_000, "stream": True, "id_slot": slot}
        async with session.post(f"{arguments.url}/completion", json=body) as response:
            async for chunk in response.content.iter_any():
                tokens += chunk.count(_END)

    async def totals(_: Fields) -> Fields:
        return {"tokens": tokens}

    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        reads = [asyncio.create_task(read(session, slot)) for slot in range(arguments.streams)]
        await obey({"totals": totals})
        for one in reads:
            one.cancel()


if __name__ == "__main__":
    asyncio.run(main())
