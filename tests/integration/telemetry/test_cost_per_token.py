"""Telemetry does nothing for a token: what it costs does not grow with them. Design §8.

Processor time of a token cannot be told apart to a microsecond on a machine that does other things;
calls into telemetry can be counted.
"""

import sys
from collections import Counter
from pathlib import Path
from types import FrameType

from llamaorch_client import AsyncClient, Sampling, Tokens
from tests.integration.telemetry.both import both
from tests.integration.telemetry.receiver import receiving

TELEMETRY = ("/orchestrator_core/telemetry/", "/pool_managerd/telemetry/", "/opentelemetry/")
# Spans of the job before are made a moment after its end: that is far below a tenth of these.
MANY = 3_000
# Less than a job's spans and counts take, so telemetry was on.
JOB_CALLS_MIN = 50


async def calls_of(client: AsyncClient, tokens: int) -> Counter[str]:
    """How often each function of telemetry was called in the life of a job with so many tokens."""
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and any(it in frame.f_code.co_filename for it in TELEMETRY):
            calls[f"{frame.f_code.co_filename}:{frame.f_code.co_name}"] += 1

    script = {"token_count": tokens, "token_interval_ms": 1}
    sampling = Sampling(max_tokens=tokens, engine_options={"mock": script})
    read = 0
    sys.setprofile(count)
    try:
        async for event in client.run(model_id="mock", prompt="go", sampling=sampling):
            if isinstance(event, Tokens):
                read += len(event.pieces)
    finally:
        sys.setprofile(None)
    assert read == tokens
    return calls


async def test_nothing_of_telemetry_runs_per_token(tmp_path: Path) -> None:
    """A job is told about in full, hundreds of tokens make no difference but for the clock's."""
    with receiving() as received:
        async with (
            both(tmp_path, otlp_traces_endpoint=received.endpoint) as running,
            AsyncClient(running.address) as client,
        ):
            await calls_of(client, 1)
            few = await calls_of(client, 1)
            many = await calls_of(client, MANY)

    assert few.total() > JOB_CALLS_MIN
    # What beats with the clock runs on while tokens come: a tenth of them at the most.
    more = {it for it, n in many.items() if n - few[it] > MANY // 10}
    # A call's handler runs inside of one of telemetry's coroutines, through which it is resumed.
    assert {it for it in more if not it.endswith("/rpcs.py:call")} == set()
