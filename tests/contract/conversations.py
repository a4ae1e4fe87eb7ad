"""What clients say to the server, by the Python client library; recorded once, kept ever after."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import grpc

from llamaorch_client import (
    AsyncClient,
    Budgets,
    ClientOptions,
    JobFilter,
    JobRequest,
    JobState,
    KvHint,
    LlamaOrchError,
    Priority,
    Requirements,
    ResumePoint,
    RetryOptions,
    Sampling,
)
from llamaorch_client.artifact import ArtifactAbout, ArtifactFilter, ArtifactKind
from llamaorch_client.model_catalog import CatalogModel, ModelState

ONCE = RetryOptions(attempts_max=1, retry_rejected=False)
STORY = JobRequest(
    model_id="tiny",
    prompt="Tell me a story.",
    job_id="story",
    request_id="r-story",
    sampling=Sampling(seed=7, temperature=0.5, max_tokens=12),
    labels={"team": "docs"},
)
SLOW = replace(
    STORY,
    job_id="long",
    request_id="r-long",
    sampling=Sampling(seed=7, engine_options={"mock": {"token_interval_ms": 60_000}}),
)
# Fixed, so that a recorded call is let in again; they open nothing but these tests.
TOKENS = {
    "ann": ("client", "contract-token-of-ann-000000000000"),
    "olga": ("admin", "contract-token-of-olga-00000000000"),
}


@dataclass(frozen=True)
class Conversation:
    """Who says what to which server. `slots` 0: no pool; `guarded`: tokens are asked for."""

    says: Callable[["Speaker"], Awaitable[None]]
    tables: dict[str, Any] = field(default_factory=dict)
    slots: int = 1
    guarded: bool = False


@dataclass(frozen=True)
class Speaker:
    """The address to speak to, and clients of it."""

    address: str

    def client(self, token: str | None = None) -> AsyncClient:
        """A client that asks everything once."""
        return AsyncClient(self.address, options=ClientOptions(token=token, retry=ONCE))


async def refused(call: Awaitable[object]) -> None:
    """A call that is answered with an error.

    Raises:
        AssertionError: when it is not.
    """
    try:
        await call
    except LlamaOrchError:
        return
    raise AssertionError("this was to be refused")


async def _life(speaker: Speaker) -> None:
    async with speaker.client() as client:
        await client.enqueue(STORY)
        text = (await client.stream("story").result()).text
        await client.enqueue(STORY)
        await client.get_job("story")
        first = " ".join(text.split(" ")[:4])
        await client.stream("story", ResumePoint(1, first), observer=True).result()
        await client.explain("story")
        async for _ in client.list_jobs(JobFilter(states=(JobState.FINISHED,)), limit=5):
            pass
        await client.cancel("story")


async def _cancelling(speaker: Speaker) -> None:
    async with speaker.client() as client:
        await client.enqueue(SLOW)
        await client.enqueue(STORY)
        await client.cancel("story")
        stream = client.stream("story", failures_as_events=True)
        async for _ in stream:
            pass
        await refused(client.cancel("none-such"))


async def _sessions(speaker: Speaker) -> None:
    async with speaker.client() as client:
        budgets = Budgets(tokens=200, time_ms=60_000)
        turn = replace(
            STORY, session_id="chat", session_budgets=budgets, kv_hint=KvHint.REUSE, deadline=None
        )
        await client.enqueue(turn)
        await client.stream("story").result()
        await client.get_session("chat")
        async for _ in client.list_sessions():
            pass
        other = replace(turn, job_id="too-long", request_id="r-2", session_budgets=None)
        long = replace(other.sampling, max_tokens=500)
        await refused(client.enqueue(replace(other, sampling=long)))
        await client.delete_session("chat")
        await refused(client.get_session("chat"))


async def _refusals(speaker: Speaker) -> None:
    async with speaker.client() as client:
        await client.enqueue(SLOW)
        await client.enqueue(STORY)
        await refused(client.enqueue(replace(STORY, job_id="late", request_id="r-late")))
        await refused(client.enqueue(replace(STORY, prompt="Another story.")))
        await refused(client.enqueue(replace(STORY, job_id="other", request_id="r-story")))
        new = replace(STORY, job_id="new", request_id="r-new")
        await refused(client.enqueue(replace(new, model_id="none-such")))
        await refused(client.enqueue(replace(new, engine="none-such")))
        huge = Requirements(min_vram_bytes=1 << 60)
        await refused(client.enqueue(replace(new, requirements=huge)))
        await refused(client.enqueue(replace(new, required_ctx=1_000_000)))
        bad = Sampling(temperature=-1.0, top_p=7.0)
        await refused(client.enqueue(replace(new, sampling=bad, priority=Priority.BATCH)))
        await refused(client.get_job("none-such"))
        await refused(client.explain("none-such"))
        await refused(client.stream("none-such").result())
    async with grpc.aio.insecure_channel(speaker.address) as channel:
        enqueue = channel.unary_unary("/llamaorch.orchestrator.v1.OrchestratorService/Enqueue")
        try:
            await enqueue(b"\xff\xff\xff")
        except grpc.aio.AioRpcError:
            return
    raise AssertionError("what cannot be read was accepted")


async def _looking(speaker: Speaker) -> None:
    async with speaker.client() as client:
        await client.capabilities()
        await client.overview(3)
        await client.pools()
        await client.check_outbound("https://docs.example.org/a", job_id="j-1", tool="fetcher")
        await client.check_outbound("https://elsewhere.example")
        await refused(client.check_outbound("https://a@b.example"))


async def _pools(speaker: Speaker) -> None:
    async with speaker.client() as client:
        watch = client.watch_pools()
        async for _ in watch:
            break
        await watch.aclose()
        await client.drain_pool("gpu", timeout_s=60)
        await client.undrain_pool("gpu")
        await client.reload_pool("gpu", timeout_s=60)
        await refused(client.drain_pool("none-such"))


async def _exchange(speaker: Speaker) -> None:
    async with speaker.client() as client:
        await client.enqueue(SLOW)
        async with client.exchange() as exchange:
            one = await exchange.run(replace(STORY, job_id="one", request_id="r-1"))
            two = await exchange.run(replace(STORY, job_id="two", request_id="r-2"))
            await one.result()
            await two.result()
            await refused(exchange.enqueue(replace(STORY, request_id="r-3", model_id="none-such")))
            await exchange.cancel("long")


async def _access(speaker: Speaker) -> None:
    async with speaker.client() as client:
        await client.health()
        await refused(client.enqueue(STORY))
    async with speaker.client(TOKENS["ann"][1]) as client:
        await client.enqueue(STORY)
        await client.stream("story").result()
        await refused(client.drain_pool("gpu"))
    async with speaker.client(TOKENS["olga"][1]) as client:
        await client.drain_pool("gpu", timeout_s=60)


async def _artifacts(speaker: Speaker) -> None:
    async with speaker.client() as client:
        plan = ArtifactAbout(kind=ArtifactKind.PLAN, media_type="text/plain", tags=("release",))
        first, _ = await client.artifacts.put(b"first this, then that", plan)
        child = ArtifactAbout(kind=ArtifactKind.INPUT, media_type="text/plain")
        child = replace(child, parent_ids=(first.artifact_id,))
        second, _ = await client.artifacts.put(b"Tell me all of it.", child)
        await client.artifacts.put(b"Tell me all of it.", child)
        await client.artifacts.read(first.artifact_id)
        await client.artifacts.info(second.artifact_id, ancestors=3)
        async for _ in client.artifacts.list(ArtifactFilter(tags=("release",))):
            pass
        long = replace(SLOW, prompt=None, artifact_id=second.artifact_id)
        await client.enqueue(long)
        await refused(client.artifacts.delete(second.artifact_id))
        await client.artifacts.delete(first.artifact_id)
        await refused(client.artifacts.read(first.artifact_id))


async def _catalog(speaker: Speaker) -> None:
    async with speaker.client() as client:
        tiny = CatalogModel(
            model_id="tiny", aliases=("chat",), engines=("mock",), expected_tokens=9, ctx_max=2048
        )
        await client.catalog.register(tiny)
        await refused(client.catalog.register(replace(tiny, ctx_max=1024)))
        await client.enqueue(replace(STORY, model_id="chat"))
        await client.stream("story").result()
        await client.catalog.update(replace(tiny, aliases=("chat", "story")), ("aliases",))
        await refused(client.catalog.update(replace(tiny, revision=1)))
        await client.catalog.get("story")
        async for _ in client.catalog.list((ModelState.ACTIVE,)):
            pass
        await client.catalog.verify("tiny")
        await client.catalog.retire("tiny", grace_s=3600, replaced_by="tiny-2")
        retired = replace(STORY, job_id="late", request_id="r-late")
        await refused(client.enqueue(retired))
        await client.catalog.activate("tiny")
        await client.catalog.delete("tiny")
        await refused(client.catalog.get("tiny"))


async def _configuration(speaker: Speaker) -> None:
    async with speaker.client() as client:
        await client.config()
        await client.reload_config(dry_run=True)
        await client.reload_config()


OUTBOUND = {"enabled": True, "allow": ["docs.example.org"]}
CONVERSATIONS = {
    "life-of-a-job": Conversation(_life),
    "cancelling": Conversation(_cancelling),
    "sessions": Conversation(_sessions),
    "refusals": Conversation(_refusals, {"queue": {"capacity": 1}}),
    "looking-around": Conversation(_looking, {"outbound": OUTBOUND}),
    "operating-pools": Conversation(_pools),
    "exchange": Conversation(_exchange, slots=3),
    "artifacts": Conversation(_artifacts),
    "catalog": Conversation(_catalog),
    "configuration": Conversation(_configuration, slots=0),
    "access": Conversation(_access, guarded=True),
}
