"""Reloading a pool with both services: rolled back, or done, while another pool's streams go on.

OC-CTRL-2003, ORCH-3038.
"""

import asyncio
from pathlib import Path

from llamaorch_client import (
    AsyncClient,
    ClientOptions,
    LlamaOrchError,
    Pool,
    ReloadOutcome,
    RetryOptions,
    Sampling,
    StreamOptions,
)
from llamaorch_client.stream import JobStream
from tests.integration.faults.services import host_of, orchestrator, output, rest

WAIT_S = 30.0
PATIENT = RetryOptions(attempts_max=500, time_max_ms=30_000, backoff_max_ms=100)
OPTIONS = ClientOptions(retry=PATIENT, stream=StreamOptions(retry=PATIENT))
POOLS = [
    {"pool_id": "mock", "engine": {"kind": "mock", "slots": 2}},
    {"pool_id": "other", "engine": {"kind": "mock", "slots": 2, "model_id": "other"}},
]


def job(client: AsyncClient, model: str, tokens: int) -> JobStream:
    """A job that gives a token every 20 ms."""
    script = {"token_count": tokens, "token_interval_ms": 20}
    sampling = Sampling(seed=1, engine_options={"mock": script})
    return client.run(model_id=model, prompt="slow", sampling=sampling)


async def pool(client: AsyncClient, pool_id: str) -> Pool:
    """A pool as it is now."""
    return next(found for found in await client.pools() if found.pool_id == pool_id)


async def test_a_broken_model_is_rolled_back_while_others_stream(tmp_path: Path) -> None:
    """The pool serves what it served; what ran there ended before, what runs elsewhere goes on."""
    async with (
        orchestrator(tmp_path / "journal") as server,
        host_of(server, pools=POOLS),
        AsyncClient(str(server.address), options=OPTIONS) as client,
    ):
        expected = await rest(job(client, "other", 100)), await rest(job(client, "mock", 15))
        before = await pool(client, "mock")
        elsewhere, here = job(client, "other", 100), job(client, "mock", 15)
        begun = await output(elsewhere, 1), await output(here, 1)
        # The mock loads nothing by reference, so this model cannot be served.
        broken = asyncio.create_task(client.reload_pool("mock", "no-such-model.gguf"))
        ended_here = begun[1] + await rest(here)
        rolled_back = await asyncio.wait_for(broken, WAIT_S)
        after = await pool(client, "mock")
        served = await rest(job(client, "mock", 15))
        done = await client.reload_pool("mock")
        anew = await pool(client, "mock")
        streamed = begun[0] + await rest(elsewhere)

    assert (rolled_back.outcome, done.outcome) == (ReloadOutcome.ROLLED_BACK, ReloadOutcome.DONE)
    assert "no-such-model.gguf" in rolled_back.detail or "reference" in rolled_back.detail
    assert (after.state, after.model_digest) == ("READY", before.model_digest)
    assert len({before.replica_id, after.replica_id, anew.replica_id}) == 3
    assert (streamed, ended_here) == expected
    assert served == expected[1]


async def test_a_reload_goes_on_through_a_restart_of_the_orchestrator(tmp_path: Path) -> None:
    """The caller is cut off; the host waits for the stream to end, reloads, and takes work."""
    journal = tmp_path / "journal"
    async with orchestrator(journal) as server:
        address = str(server.address)
        hosts = host_of(server, pools=POOLS)
        await hosts.__aenter__()
        client = await AsyncClient(address, options=OPTIONS).__aenter__()
        expected = await rest(job(client, "mock", 60))
        before = await pool(client, "mock")
        stream = job(client, "mock", 60)
        text = await output(stream, 1)
        call = asyncio.create_task(client.reload_pool("mock"))
        while (await pool(client, "mock")).state != "DRAINING":
            await anext(aiter(client.watch_pools()))
    async with orchestrator(journal, listen=address):
        try:
            text += await rest(stream)
            cut = (await asyncio.gather(call, return_exceptions=True))[0]
            async with asyncio.timeout(WAIT_S):
                async for pools in client.watch_pools():
                    found = next((p for p in pools if p.pool_id == "mock"), None)
                    if found and found.state == "READY" and found.replica_id != before.replica_id:
                        break
            again = await rest(job(client, "mock", 60))
        finally:
            await client.close()
            await hosts.__aexit__(None, None, None)

    assert isinstance(cut, LlamaOrchError)
    assert (text, again) == (expected, expected)
