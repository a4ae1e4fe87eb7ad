"""A client of its own process: runs one job and prints what it gets, a JSON line per event."""

import asyncio
import json
import sys

from llamaorch_client import (
    AsyncClient,
    ClientOptions,
    End,
    RetryOptions,
    Sampling,
    Started,
    StreamOptions,
    Tokens,
)

PATIENT = RetryOptions(attempts_max=500, time_max_ms=60_000, backoff_max_ms=500)
OPTIONS = ClientOptions(
    retry=PATIENT,
    stream=StreamOptions(retry=PATIENT),
    keepalive_ms=6_000,
    keepalive_timeout_ms=2_000,
)


async def main(address: str, tokens: int) -> None:
    """Runs a job that gives a token every 20 ms."""
    script = {"token_count": tokens, "token_interval_ms": 20}
    sampling = Sampling(seed=1, engine_options={"mock": script})
    async with AsyncClient(address, options=OPTIONS) as client:
        stream = client.run(model_id="mock", prompt="half-open", sampling=sampling)
        async for event in stream:
            if isinstance(event, Started):
                tell(event="started", attempt=event.attempt)
            if isinstance(event, Tokens):
                tell(event="tokens", text=event.text)
            if isinstance(event, End):
                tell(event="end", resumes=stream.resumes)


def tell(**fields: object) -> None:
    """Prints a line, as a service logs one."""
    sys.stderr.write(json.dumps(fields) + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
