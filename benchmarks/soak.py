"""A thousand jobs on one Exchange for as long as told: no violation, and memory stays flat.

    python -m benchmarks.soak [--seconds 600] [--streams 1000] [--rate 50] [--calls]

Readers check every batch: contiguous, with the digest of all text before it, and at the end the
outcome's length and digest. Resident memory of orchestratord is read every few seconds, and its
slope told by least squares over the second half, when caches and retention are filled. With
`--calls` each job is followed by a call of its own. Exit code 1 with any violation.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.load.processes import rss_bytes
from benchmarks.machine import run_on_machine
from benchmarks.relay import Case, loaded, our_relay

LOOK_EVERY_S = 5.0


async def soak(case: Case, seconds: float) -> int:
    """Plays the load; returns the number of violations."""
    seen: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        async with (
            our_relay(directory) as (server, address),
            loaded(case, address, directory) as (hosts, readers),
        ):
            began_s = time.monotonic()
            print(f"{'s':>6}{'tokens':>12}{'tokens/s':>10}{'MiB':>9}{'p99 ms':>9}{'problems':>9}")
            before = 0
            while (past_s := time.monotonic() - began_s) < seconds:
                await asyncio.sleep(min(LOOK_EVERY_S, seconds / 10))
                now_s, told = time.monotonic() - began_s, await readers.ask("count")
                seen.append((now_s, rss_bytes(server.pid) / 2**20))
                rate = (told["tokens"] - before) / (now_s - past_s)
                before = told["tokens"]
                print(
                    f"{now_s:6.0f}{before:12,}{rate:10,.0f}{seen[-1][1]:9.1f}"
                    f"{told['p99_ms']:9.1f}{told['problems']:9}",
                    flush=True,
                )
            await hosts.ask("finish")
            end, total = await readers.ask("close"), await hosts.ask("totals")
    problems = int(end["problems"]) + (end["tokens"] != total["tokens"])
    print(f"sent {total['tokens']:,} tokens, read {end['tokens']:,}; violations: {problems}")
    if problems:
        print(f"  first: {end['first']}")
    tell_slope(seen[len(seen) // 2 :])
    return int(problems)


def tell_slope(seen: list[tuple[float, float]]) -> None:
    """Prints how memory grew over what was seen: seconds and MiB."""
    times, sizes = zip(*seen, strict=True)
    slope = statistics.linear_regression(times, sizes).slope * 60 if len(seen) > 1 else 0.0
    print(f"memory, second half: {sizes[0]:.1f} to {sizes[-1]:.1f} MiB, {slope:+.2f} MiB a minute")


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--streams", type=int, default=1_000)
    parser.add_argument("--pools-per-host", type=int, default=8)
    parser.add_argument("--rate", type=float, default=50.0, help="tokens per second a stream")
    parser.add_argument("--calls", action="store_true", help="a call a job instead of Exchange")
    options = parser.parse_args(argv)
    options.told = " ".join(sys.argv[1:] if argv is None else argv)
    print("python -m benchmarks.soak " + options.told)
    print(f"{options.streams} jobs at {options.rate:g} tokens/s")
    exchange = not options.calls
    connections = 1 if exchange else 8
    case = Case(options.streams, exchange, options.pools_per_host, connections, options.rate)
    with run_on_machine():
        return 1 if asyncio.run(soak(case, options.seconds)) else 0


if __name__ == "__main__":
    sys.exit(main())
