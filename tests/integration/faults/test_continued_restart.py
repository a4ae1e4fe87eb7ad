"""A job that is continued over engines that die, and an orchestrator that starts anew. LO-304."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from llamaorch_client import AsyncClient, FailoverPolicy, Sampling
from llamaorch_client.stream import JobStream
from tests.integration.faults.services import host_of, orchestrator, output, rest
from tests.ports import free_port

WAIT_S = 60.0
TOKENS = 25
MORTAL = {"token_count": TOKENS, "token_interval_ms": 40, "die_after_tokens": 10}
SOON = {"backoff": {"initial_ms": 20, "cap_ms": 20}}


def mortal_job(client: AsyncClient) -> JobStream:
    """A job whose engine dies after every ten tokens."""
    sampling = Sampling(seed=1, engine_options={"mock": MORTAL})
    return client.run(
        model_id="mock", prompt="go on", sampling=sampling, failover=FailoverPolicy.CONTINUE
    )


async def undisturbed(client: AsyncClient) -> str:
    """The text of the same job on an engine that lives."""
    sampling = Sampling(seed=1, engine_options={"mock": {"token_count": TOKENS}})
    return (await client.run(model_id="mock", prompt="go on", sampling=sampling).result()).text


async def test_what_a_continuation_followed_on_survives_a_restart(tmp_path: Path) -> None:
    """While the second attempt runs and after the third: whoever asks has all of the text."""
    listen, journal = f"127.0.0.1:{free_port()}", tmp_path / "journal.db"
    async with asyncio.timeout(WAIT_S), AsyncExitStack() as hosts, AsyncClient(listen) as client:
        async with orchestrator(journal, listen=listen) as server:
            await hosts.enter_async_context(host_of(server, supervision=SOON))
            expected = await undisturbed(client)
            stream = mortal_job(client)
            before = await output(stream, 13)
        async with orchestrator(journal, listen=listen):
            from_the_beginning = await rest(client.stream(stream.job_id))
            after = await rest(stream)
            attempt = (await client.get_job(stream.job_id)).attempt
        async with orchestrator(journal, listen=listen):
            late = await rest(client.stream(stream.job_id))

    assert before + after == expected
    assert from_the_beginning == expected
    assert late == expected
    assert attempt == 3
