"""Model files of this host: found, fetched as the policy allows, verified. ORCH-3080, ORCH-3090.

Every decision about an outbound connection is logged with an id of its own and the ids of what it
is for; of addresses the host alone, since their queries can hold signatures.
"""

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from pool_managerd.clock import Clock
from pool_managerd.config.engines import EngineTable
from pool_managerd.config.launch import AttachingTable
from pool_managerd.config.llama import LAUNCH_FILES, EmbeddedTable, LlamaServerTable
from pool_managerd.config.schema import Config, PoolTable
from pool_managerd.core.fit import human_bytes
from pool_managerd.core.model_ref import ModelRefError, parse_model_ref, shown_ref
from pool_managerd.core.outbound import OutboundDecision, OutboundPolicy
from pool_managerd.engines.file_reads import FileReads
from pool_managerd.engines.gguf_file import digest_in_thread, gguf_shards, gguf_shortfalls
from pool_managerd.engines.port import PreloadError
from pool_managerd.models.fetch import FetchError, FetchLimits, Progress
from pool_managerd.models.fetch_policy import Plugin, decide_fetch, load_plugin
from pool_managerd.models.resolver import Resolver, ResolverConfig
from pool_managerd.telemetry import SPAN_OUTBOUND, Telemetry, log

PROGRESS_INTERVAL_MS = 5_000
"""Least time between two log lines about one fetch."""

_T = TypeVar("_T")
_FileFacts = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class FoundModel:
    """The file that a reference means.

    `verified` is its digest where that was compared as the file came, `stated` the digest that the
    reference asks for; either may be empty.
    """

    path: Path
    verified: str = ""
    stated: str = ""


def _resolver_config(config: Config, plugin: Plugin | None) -> ResolverConfig:
    outbound = config.outbound
    policy = OutboundPolicy(outbound.enabled, outbound.allow, outbound.deny)
    return ResolverConfig(
        base=Path(config.models.directory),
        cache=Path(config.models.cache_directory).expanduser(),
        policy=policy,
        limits=FetchLimits(
            silence_timeout_ms=outbound.silence_timeout_ms,
            file_bytes_max=outbound.file_bytes_max,
        ),
        hub_endpoint=outbound.hf_endpoint,
        hub_token=outbound.hf_token.get_secret_value(),
        decide=None if plugin is None else partial(decide_fetch, policy, plugin),
    )


class ModelFiles:
    """What references mean on this host.

    Raises ConfigError when it is made and `outbound.policy` names what is not installed.
    """

    def __init__(self, config: Config, clock: Clock, telemetry: Telemetry | None = None) -> None:
        self._telemetry = telemetry or Telemetry()
        self._clock = clock
        self._timeout_ms = config.outbound.fetch_timeout_ms
        self._reads = FileReads()
        self._digests: dict[Path, tuple[_FileFacts, str]] = {}
        self._plugin = load_plugin(config.outbound.policy)
        self._resolver = Resolver(_resolver_config(config, self._plugin))

    def reconfigure(self, config: Config) -> None:
        """Another policy and other bounds, for fetches that begin from now on."""
        self._timeout_ms = config.outbound.fetch_timeout_ms
        self._resolver.config = _resolver_config(config, self._plugin)

    async def find(self, text: str, owner: str, progress: Progress | None = None) -> FoundModel:
        """The file that the reference `text` means, fetched if need be.

        `owner` is who wants it, for the log: a pool id, or the command.

        Raises:
            PreloadError: in one sentence, when there is no such file and none may be fetched.
        """
        said = _Sayer(text, owner, self._clock.now_ms, progress)

        def decided(decision: OutboundDecision) -> None:
            self._telemetry.event(SPAN_OUTBOUND, said.decision(decision))

        try:
            ref = parse_model_ref(text)
            async with asyncio.timeout(self._timeout_ms / 1000):
                found = await self._resolver.resolve(ref, decided, said.progress)
        except (ModelRefError, FetchError, OSError, RuntimeError) as error:
            # RuntimeError: the home directory of a `~name` is not known.
            if isinstance(error, TimeoutError):
                raise PreloadError(
                    [f"{shown_ref(text)} was not fetched in {self._timeout_ms} ms"]
                ) from error
            passing = isinstance(error, FetchError) and not error.lasting
            raise PreloadError([self._sentence(error)], passing=passing) from error
        if ref.remote:
            shown = shown_ref(text)
            human = f"The model {shown} is at {found.path}."
            log.info("model_found", model_ref=shown, owner=owner, path=str(found.path), human=human)
        return FoundModel(found.path, found.digest, ref.digest)

    def _sentence(self, error: Exception) -> str:
        """What went wrong; a disk that takes no more does not say by itself which it is."""
        if isinstance(error, OSError) and error.filename is None and error.strerror:
            return (
                f"{self._resolver.config.cache} cannot be written: {error.strerror}; free some "
                "room, or set models.cache_directory to another disk"
            )
        return str(error)

    async def look(self, text: str) -> FoundModel | OutboundDecision:
        """The file that `text` means if it is here, else whether it may be fetched.

        Nothing is fetched. A redirect is not known here, and judged by a fetch alone.

        Raises:
            PreloadError: when the reference means nothing, or another file is in its place.
        """
        try:
            found = await self._resolver.look(ref := parse_model_ref(text))
        except (ModelRefError, FetchError) as error:
            raise PreloadError([str(error)]) from error
        if isinstance(found, OutboundDecision):
            return found
        return FoundModel(found.path, found.digest, ref.digest)

    async def digest(self, found: FoundModel, expected: str = "") -> str:
        """The digest of a file, computed once for each state of it. ORCH-3037.

        Raises:
            PreloadError: when it is not the one that the reference states or the `expected` one, or
                the file cannot be read.
        """
        try:
            digest = found.verified or await self._in_time(found.path, self._digest(found.path))
        except OSError as error:
            raise PreloadError([f"model file {found.path}: {error.strerror or error}"]) from error
        for wanted in (found.stated, expected):
            if wanted and digest != wanted:
                raise PreloadError(
                    [f"model file {found.path} has the digest {digest}, not {wanted}"]
                )
        return digest

    async def shortfalls(self, engine: EngineTable, path: Path) -> list[str]:
        """Why an engine cannot load what lies there, a sentence each.

        Raises:
            PreloadError: when that cannot be read in time.
        """
        work = partial(model_shortfalls, engine, path)
        return await self._in_time(path, self._reads.run(path, work))

    async def _in_time(self, path: Path, work: Coroutine[object, object, _T]) -> _T:
        """Bounds what reads a file: a disk or a server of files may never answer."""
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                return await work
        except TimeoutError as error:
            bound = f"outbound.fetch_timeout_ms = {self._timeout_ms}"
            raise PreloadError([f"{path} was not read in {bound}: look at its disk"]) from error

    async def _digest(self, path: Path) -> str:
        facts = await self._reads.run(path, partial(_facts, path))
        noted = self._digests.get(path)
        if noted is not None and noted[0] == facts:
            return noted[1]
        digest = await digest_in_thread(path, self._reads)
        self._digests = {path: (facts, digest), **self._digests}
        if len(self._digests) > _DIGESTS_MAX:
            self._digests.popitem()
        return digest


_DIGESTS_MAX = 1_024


class _Sayer:
    """Logs what becomes of one fetch, at a bounded rate."""

    def __init__(
        self, text: str, owner: str, now_ms: Callable[[], int], also: Progress | None
    ) -> None:
        self._text, self._owner = shown_ref(text), owner
        self._now_ms, self._also = now_ms, also
        self._said_ms: int | None = None

    def decision(self, decision: OutboundDecision) -> dict[str, str | bool]:
        """Logs one decision of the policy; returns what a span tells of it."""
        told: dict[str, str | bool] = {
            "decision_id": uuid.uuid4().hex,
            "owner": self._owner,
            "remote_host": decision.host,
            "allowed": decision.allowed,
            "rule": decision.rule,
        }
        log.info(
            "outbound_decision",
            **told,
            model_ref=self._text,
            human=decision.sentence or f"Fetching from {decision.host} is allowed.",
        )
        return told

    def progress(self, done: int, total: int | None) -> None:
        """Passes news on, and logs them now and then."""
        if self._also is not None:
            self._also(done, total)
        now_ms = self._now_ms()
        if self._said_ms is not None and now_ms - self._said_ms < PROGRESS_INTERVAL_MS:
            return
        self._said_ms = now_ms
        of_total = f" of {human_bytes(total)}" if total is not None else ""
        log.info(
            "model_fetch",
            owner=self._owner,
            model_ref=self._text,
            bytes_done=done,
            bytes_total=total,
            human=f"{human_bytes(done)}{of_total} of {self._text} are here.",
        )


def _facts(path: Path) -> _FileFacts:
    found = [shard.stat() for shard in gguf_shards(path)]
    return tuple((facts.st_size, facts.st_mtime_ns, facts.st_ino) for facts in found)


def reads_model(engine: EngineTable, model_ref: str = "") -> bool:
    """True for an engine that is told here which file or folder to load."""
    if isinstance(engine, EmbeddedTable):
        return True
    if not isinstance(engine, AttachingTable) or engine.launch is None:
        return False
    if model_ref:
        return engine.launch.uses("model_path")
    return bool(engine.model_ref or engine.model_path)


def model_shortfalls(engine: EngineTable, path: Path) -> list[str]:
    """Why an engine cannot load what lies there, a sentence each; blocks for its first bytes."""
    gguf_only = isinstance(engine, EmbeddedTable | LlamaServerTable)
    besides = [Path(named) for name in LAUNCH_FILES if (named := getattr(engine, name, ""))]
    missing = [problem for file in besides for problem in gguf_shortfalls(file)]
    if gguf_only or path.suffix == ".gguf":
        return [*gguf_shortfalls(path), *missing]
    return missing if path.exists() else [f"model {path} does not exist", *missing]


def with_model(table: PoolTable, path: Path, digest: str) -> PoolTable:
    """The table with its model found there; `digest` is empty where none was computed."""
    engine = table.engine
    update = {"model_ref": "", "model_path": str(path)}
    if digest and "model_digest" in type(engine).model_fields:
        update["model_digest"] = digest
    return table.model_copy(update={"engine": engine.model_copy(update=update)})


def stated_digest(engine: EngineTable) -> str:
    """The digest that the configuration asks for, or empty."""
    return str(getattr(engine, "model_digest", ""))


def without_digest(table: PoolTable) -> PoolTable:
    """The table of a pool that loads another folder: what was stated of the former is not true."""
    engine = table.engine
    if not stated_digest(engine):
        return table
    return table.model_copy(update={"engine": engine.model_copy(update={"model_digest": ""})})
