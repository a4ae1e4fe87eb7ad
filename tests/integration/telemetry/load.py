"""Clients whose jobs end in every way there is."""

import contextlib
import random
from datetime import UTC, datetime, timedelta

from llamaorch_client import (
    AsyncClient,
    ClientOptions,
    LlamaOrchError,
    Priority,
    RetryOptions,
    Sampling,
)
from tests.integration.telemetry.both import Both

JOBS_EACH = 30
ONCE = ClientOptions(retry=RetryOptions(attempts_max=1))


async def run_client(running: Both, seed: int) -> None:
    """Jobs that finish, fail, run out of time, are cancelled, or give way to others."""
    chance = random.Random(seed)  # noqa: S311 - chooses, guards nothing
    async with AsyncClient(running.address, options=ONCE) as client:
        for number in range(JOBS_EACH):
            kind = chance.choice(("finish", "fail", "expire", "cancel", "leave"))
            script = {"token_count": 5, "token_interval_ms": 1}
            if kind == "fail":
                script = {"fail_after_tokens": 1}
            elif kind in ("expire", "cancel"):
                script = {"stall_after_tokens": 2}
            deadline = timedelta(milliseconds=30) if kind == "expire" else timedelta(seconds=20)
            try:
                receipt = await client.enqueue(
                    model_id="mock",
                    prompt="go",
                    priority=chance.choice(list(Priority)),
                    sampling=Sampling(seed=number, engine_options={"mock": script}),
                    deadline=datetime.now(UTC) + deadline,
                )
            except LlamaOrchError:
                continue
            if kind == "cancel":
                await _cancel(client, receipt.job_id)
            elif kind == "finish":
                await _outcome(client, receipt.job_id)


async def run_client_for_ever(running: Both, seed: int) -> None:
    """As `run_client`, until it is cancelled."""
    while True:
        await run_client(running, seed)


async def _cancel(client: AsyncClient, job_id: str) -> None:
    # A server that is started anew takes it a moment later, or never: the job ends all the same.
    with contextlib.suppress(LlamaOrchError):
        await client.cancel(job_id)


async def _outcome(client: AsyncClient, job_id: str) -> None:
    try:
        async for _ in client.stream(job_id):
            pass
    except LlamaOrchError:
        pass
