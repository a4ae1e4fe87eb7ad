"""What clients send, what engines say, and secrets stay out of everything that leaves. ORCH-3302.

Both services run as processes with all their telemetry on. Canaries go in wherever a client, an
engine or an operator puts text; then everything that came out is searched: what they printed, spans
and metrics as a collector received them, scrapes, and the flight recorder. The last holds the
message with which an attempt failed, as its client gets it, and the catalog: see docs/logs.md. The
journal holds the prompts of live jobs by design, and an engine's own log is its own.
"""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from aiohttp import web

from llamaorch_client import (
    ArtifactAbout,
    ArtifactKind,
    AsyncClient,
    CatalogModel,
    ChatMessage,
    ClientOptions,
    FailoverPolicy,
    LlamaOrchError,
    RetryOptions,
    Sampling,
)
from orchestrator_core.recorder.segment import read_frames
from tests.integration.telemetry.both import scrape
from tests.integration.telemetry.receiver import Received, receiving

WAIT_S = 40.0
FEW = Sampling(max_tokens=9)
API_KEY = "CANARY_API_KEY_VARIABLE"
POOLS = ("p", "q")


def _canary(name: str) -> str:
    # Longer than any excerpt that a redaction would let through, and in no word of ours.
    return f"canary-{name}-{secrets.token_hex(24)}"


CANARIES = {
    name: _canary(name)
    for name in (
        *("prompt", "chat", "schema", "grammar", "stop", "label", "option", "output"),
        *("key", "bearer", "engine_error", "cancelled", "rejected", "undecodable"),
        *("continued", "content", "content_label", "input", "catalog_label", "url", "setting"),
    )
}


class Engine:
    """Speaks OpenAI's API: streams a canary, or refuses in the words of the request and its own."""

    async def models(self, request: web.Request) -> web.Response:
        """Lists the one model."""
        assert request.headers["Authorization"] == f"Bearer {CANARIES['key']}"
        return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """One generation."""
        asked = await request.json()
        if "please fail" in json.dumps(asked):
            told = CANARIES["engine_error"]
            if "quote" in json.dumps(asked):
                told += f": cannot answer {json.dumps(asked)}"
            return web.json_response({"error": {"message": told, "code": 500}}, status=500)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        texts = (CANARIES["output"], " and more")
        for text in texts:
            delta = {"delta": {"role": "assistant", "content": text}, "text": text, "index": 0}
            await self._event(answer, {"choices": [{**delta, "finish_reason": None}]})
        if "please break" in json.dumps(asked) and CANARIES["output"] not in json.dumps(asked):
            # The next attempt is sent what was delivered, to go on from there.
            assert request.transport is not None
            request.transport.abort()
            return answer
        if "please wait" in json.dumps(asked):
            with contextlib.suppress(ConnectionError):
                await asyncio.sleep(WAIT_S)
            return answer
        usage = {"prompt_tokens": 3, "completion_tokens": len(texts), "total_tokens": 5}
        done = {"delta": {}, "text": "", "index": 0, "finish_reason": "stop"}
        await self._event(answer, {"choices": [done]})
        await self._event(answer, {"choices": [], "usage": usage})
        await answer.write(b"data: [DONE]\n\n")
        return answer

    async def _event(self, answer: web.StreamResponse, data: dict[str, object]) -> None:
        frame = {"id": "c", "object": "chunk", "model": "m", **data}
        await answer.write(b"data: " + json.dumps(frame).encode() + b"\n\n")


@asynccontextmanager
async def _engine() -> AsyncIterator[int]:
    engine, application = Engine(), web.Application()
    application.router.add_get("/v1/models", engine.models)
    application.router.add_post("/v1/completions", engine.complete)
    application.router.add_post("/v1/chat/completions", engine.complete)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


class Service:
    """One service as a process; what it prints lies in `directory`."""

    def __init__(self, name: str, directory: Path, toml: str, env: dict[str, str]) -> None:
        self.name = name
        self._directory = directory
        self._config = directory / f"{name}.toml"
        self._config.write_text(toml, encoding="utf-8")
        self._env = {**os.environ, **env}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, module: str) -> None:
        """Starts it."""
        paths = [self._directory / f"{self.name}.{stream}" for stream in ("stdout", "stderr")]
        with paths[0].open("wb") as out, paths[1].open("wb") as err:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module, "--config", str(self._config)),
                stdout=out,
                stderr=err,
                env=self._env,
            )

    async def told(self, event: str, **having: object) -> dict[str, object]:
        """Waits for a log line of an event that has these fields."""
        assert self._process is not None
        path = self._directory / f"{self.name}.stderr"
        async with asyncio.timeout(WAIT_S):
            while True:
                for line in path.read_text("utf-8").splitlines():
                    with contextlib.suppress(ValueError):
                        fields: dict[str, object] = json.loads(line)
                        if fields.get("event") == event and having.items() <= fields.items():
                            return fields
                assert self._process.returncode is None, path.read_text("utf-8")
                # A file tells nobody that it grew.
                await asyncio.sleep(0.05)

    async def reloaded(self, toml: str) -> None:
        """Has it read another configuration, which it cannot use."""
        assert self._process is not None
        self._config.write_text(toml, encoding="utf-8")
        self._process.send_signal(signal.SIGHUP)
        await self.told("config_reload", outcome="refused")

    async def stop(self) -> None:
        """Ends it and waits; idempotent."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.terminate()
            await process.wait()


def _orchestrator_toml(directory: Path) -> str:
    return (
        'listen = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\nlog_level = "debug"\n'
        'log_format = "json"\nshutdown_grace_ms = 0\n'
        f"[store]\npath = {json.dumps(str(directory / 'journal.db'))}\n[queue]\ncapacity = 1\n"
    )


def _host_toml(address: object, port: int) -> str:
    return (
        f'orchestrator = "{address}"\nlisten = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\n'
        'devices = "cpu"\nlog_level = "debug"\nlog_format = "json"\n'
        "[supervision.self_test]\nenabled = false\n"
        + "".join(
            f'[[pools]]\npool_id = "{name}"\n[pools.engine]\nkind = "openai"\nflavor = "generic"\n'
            f'base_url = "http://127.0.0.1:{port}"\nmodel_id = "m"\nslots = 1\nctx_max = 4096\n'
            f'api_key_env = "{API_KEY}"\n'
            for name in POOLS
        )
    )


async def _outcome(client: AsyncClient, **job: object) -> str:
    """Runs a job; its text, or the message of its error."""
    try:
        return (await client.run(model_id="m", **job).result()).text  # type: ignore[arg-type]
    except LlamaOrchError as error:
        return str(error)


async def _jobs(address: str) -> dict[str, str]:
    """Jobs that carry every canary, each with its own end; what their client was told."""
    options = ClientOptions(token=CANARIES["bearer"], retry=RetryOptions(attempts_max=1))
    told = {}
    async with AsyncClient(address, options=options) as client:
        label = {"note": CANARIES["label"]}
        sampling = Sampling(stop=(CANARIES["stop"],), max_tokens=9)
        told["plain"] = await _outcome(
            client, prompt=f"say {CANARIES['prompt']}", labels=label, sampling=sampling
        )
        chat = (ChatMessage("user", f"please fail {CANARIES['chat']}"),)
        told["chat"] = await _outcome(client, messages=chat, sampling=FEW)
        for name, given in (
            (
                "schema",
                Sampling(max_tokens=9, json_schema=json.dumps({"title": CANARIES["schema"]})),
            ),
            ("grammar", Sampling(max_tokens=9, grammar=f'root ::= "{CANARIES["grammar"]}"')),
            ("option", Sampling(max_tokens=9, engine_options={CANARIES["option"]: 1})),
        ):
            told[name] = await _outcome(client, prompt="please fail and quote", sampling=given)
        waits = [
            await client.enqueue(
                model_id="m",
                prompt=f"please wait {CANARIES['cancelled']}",
                labels=label,
                sampling=FEW,
            )
            for _ in POOLS
        ]
        await client.enqueue(model_id="m", prompt="next", sampling=FEW)
        told["rejected"] = await _outcome(client, prompt=CANARIES["rejected"])
        for wait in waits:
            await client.cancel(wait.job_id)
        told["unknown"] = await _outcome(client, prompt=CANARIES["rejected"], engine="none-such")
        told |= await _with_content(client, label)
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary("/llamaorch.orchestrator.v1.OrchestratorService/Enqueue")
        with pytest.raises(grpc.aio.AioRpcError):
            await call(b"\xff" + CANARIES["undecodable"].encode())
    return told


async def _with_content(client: AsyncClient, label: dict[str, str]) -> dict[str, str]:
    """A continuation, artifacts, a catalog entry and a tool's address; what the client was told."""
    told = {
        "continued": await _outcome(
            client,
            prompt=f"please break {CANARIES['continued']}",
            failover=FailoverPolicy.CONTINUE,
            sampling=FEW,
        )
    }
    about = ArtifactAbout(labels={"note": CANARIES["content_label"]})
    await client.artifacts.put(CANARIES["content"].encode(), about)
    given = ArtifactAbout(kind=ArtifactKind.INPUT, media_type="text/plain", labels=label)
    artifact, _ = await client.artifacts.put(CANARIES["input"].encode(), given)
    told["artifact"] = await _outcome(client, artifact_id=artifact.artifact_id, sampling=FEW)
    labels = {"note": CANARIES["catalog_label"]}
    await client.catalog.register(CatalogModel(model_id="listed", labels=labels))
    address = f"https://tools.example/{CANARIES['url']}?key={CANARIES['url']}"
    await client.check_outbound(address, tool="search")
    with contextlib.suppress(LlamaOrchError):
        await client.check_outbound(f"https://{CANARIES['url']}@tools.example/", tool="search")
    return told


def _written(directory: Path) -> dict[str, bytes]:
    left = {path.name: path.read_bytes() for path in directory.glob("*.std*")}
    for path in (directory / "flight").iterdir():
        left[f"flight/{path.name}"] = b"".join(frame.body for frame in read_frames(path))
    return left


def _exported(received: Received) -> bytes:
    messages = [*received.resource_spans(), *received.resource_metrics()]
    return b"\n".join(message.SerializeToString() for message in messages)


async def test_no_canary_leaves_but_to_its_client(tmp_path: Path) -> None:
    """Whatever becomes of the job that carried it."""
    with receiving() as received:
        otlp = {"OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint, API_KEY: CANARIES["key"]}
        async with _engine() as port:
            orchestrator = Service("orchestratord", tmp_path, _orchestrator_toml(tmp_path), otlp)
            host = None
            try:
                await orchestrator.start("orchestrator_core")
                listening = await orchestrator.told("listening")
                toml = _host_toml(listening["address"], port)
                host = Service("pool-managerd", tmp_path, toml, otlp)
                await host.start("pool_managerd")
                await host.told("pool_state", state="ready")
                told = await _jobs(str(listening["address"]))
                await orchestrator.reloaded(f'log_level = "{CANARIES["setting"]}"\n')
                url = f"http://127.0.0.1:{listening['metrics_port']}/metrics"
                scraped = await scrape(url)
            finally:
                if host is not None:
                    await host.stop()
                await orchestrator.stop()
        left = _written(tmp_path)
        left["otlp"] = _exported(received)
        left["scrape"] = scraped.encode()

    # They went where they belong: to the engine, and what it said to the client.
    assert CANARIES["output"] in told["plain"]
    assert CANARIES["engine_error"] in told["chat"]
    assert told["continued"].count(CANARIES["output"]) == 2
    assert CANARIES["output"] in told["artifact"]
    assert left["otlp"].count(b"pool.attempt") >= 3
    assert b'"event":"job_failed"' in left["orchestratord.stderr"]
    recorded = {name: data for name, data in left.items() if name.startswith("flight/")}
    assert recorded
    assert set(_found(recorded)) == {"engine_error", "option", "catalog_label"}
    assert _found({name: data for name, data in left.items() if name not in recorded}) == {}


def _found(left: dict[str, bytes]) -> dict[str, list[str]]:
    """Where canaries, or halves of them, turned up; nothing of one that did not."""
    found: dict[str, list[str]] = {}
    for name, canary in CANARIES.items():
        parts = [part.encode() for part in (canary, canary[-24:], canary[-48:-24])]
        for where, data in left.items():
            if any(part in data for part in parts):
                found.setdefault(name, []).append(where)
    return found
