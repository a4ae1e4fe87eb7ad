"""The `embedded` engine: llama.cpp (`xllamacpp`) in a worker process. ORCH-3001, ORCH-3054.

The worker opens llama-server's HTTP API on the loopback interface under a random key. It ends with
this process in every case: its standard input closes, and on Linux the kernel kills it.
"""

import asyncio
import contextlib
import ctypes
import functools
import importlib.util
import json
import os
import platform
import re
import secrets
import subprocess
import sys
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pool_managerd.core.kv_size import CacheType
from pool_managerd.core.redaction import masked
from pool_managerd.engines import embedded_worker, exit_news
from pool_managerd.engines.embedded_worker import (
    NO_GPU,
    WorkerReport,
    WorkerSettings,
    batch_tokens,
)
from pool_managerd.engines.engine_log import LOG_LINES, LogSettings
from pool_managerd.engines.environment import OWN_PREFIXES, PREFIXES, passed_on
from pool_managerd.engines.exit_news import LastWords, OpenRequests
from pool_managerd.engines.gguf_file import digest_in_thread, gguf_shortfalls
from pool_managerd.engines.gguf_kv import KvFacts, kv_facts
from pool_managerd.engines.host_memory import OomKills, oom_kills
from pool_managerd.engines.http_client import Endpoint, HttpApiError
from pool_managerd.engines.llama_memory import MemoryLog
from pool_managerd.engines.llama_protocol import LlamaProtocol, ServerFacts
from pool_managerd.engines.llama_wire import extensions, sampler_profile
from pool_managerd.engines.port import (
    Ended,
    EngineInfo,
    Failed,
    Failure,
    GenerationEvent,
    GenerationRequest,
    PreloadError,
)
from pool_managerd.engines.worker_process import WorkerProcess
from pool_managerd.threads import in_thread

_POLL_INTERVAL_S = 0.02
_LOG_SETTLES_S = 0.5
_LOOK_TIMEOUT_S = 30.0
_TOLD_LAST = "compute"
_ERROR_LINE = re.compile(r"([0-9.]+ )?E ")
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedConfig:
    """A model to load into an embedded llama.cpp.

    Attributes:
        model_path: GGUF file, or the first part of a split one.
        model_id: Name that jobs ask for.
        slots: Generations at a time.
        ctx_per_slot: Context of each slot, tokens; prompt and output share it.
        threads: Threads that compute. More than the idle cores makes it slower by far.
        deterministic: Equal seeds give equal bytes; needs one slot, never uses the prompt cache.
        gpu_layers: Layers on the GPU; -1 means all. Needs a build of xllamacpp with GPU support.
        devices: CUDA device ids that the worker may see; empty leaves the choice to the driver.
        tensor_split: Weight of each of `devices` in the split of the layers; empty: by free memory.
        kv_type: Type of cached keys and values, as llama.cpp names it.
        draft_model_path: GGUF file of a small model of the same vocabulary, which drafts tokens.
        model_digest: Digest of the file if it is known already; saves reading the file once.
        load_timeout_ms: Longest wait for the model.
        log: Bounds of what is kept of llama.cpp's log.
    """

    model_path: str | Path
    model_id: str
    slots: int = 1
    ctx_per_slot: int = 2048
    threads: int = 1
    deterministic: bool = False
    gpu_layers: int = 0
    devices: tuple[str, ...] = ()
    tensor_split: tuple[int, ...] = ()
    model_digest: str = ""
    kv_type: str = "f16"
    draft_model_path: str = ""
    load_timeout_ms: int = 600_000
    log: LogSettings = field(default_factory=LogSettings)

    def __post_init__(self) -> None:
        """Refuses what no engine can satisfy."""
        if min(self.slots, self.ctx_per_slot, self.threads, self.load_timeout_ms) < 1:
            raise ValueError("slots, ctx_per_slot, threads, load_timeout_ms must be at least 1")
        if self.deterministic and self.slots != 1:
            raise ValueError("deterministic = true needs slots = 1")
        if self.deterministic and self.draft_model_path:
            raise ValueError("deterministic = true goes without a draft model")


class EmbeddedEngine:
    """One worker process with one model; satisfies `port.Engine`."""

    def __init__(self, config: EmbeddedConfig) -> None:
        self._config = config
        # `-m` changes the worker's directory, so the path must not depend on it.
        self._model_path = Path(config.model_path).absolute()
        self._api_key = secrets.token_urlsafe(32)
        self._worker: WorkerProcess | None = None
        self._protocol: LlamaProtocol | None = None
        self._exit: asyncio.Task[Ended] | None = None
        self._before = OomKills()
        self._serving_since_line: int | None = None
        self._requests = OpenRequests()
        self._stopped = False
        self.memory = MemoryLog()
        self._memory_told = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The worker's process id; None before the start."""
        return self._worker.pid if self._worker else None

    @property
    def log_tail(self) -> tuple[str, ...]:
        """The last lines that llama.cpp logged, oldest first; they may quote a grammar."""
        return self._worker.log.last(LOG_LINES) if self._worker else ()

    async def start(self) -> EngineInfo:
        """Checks everything that can be checked, then loads the model. See `port.Engine.start`."""
        shortfalls = await in_thread(functools.partial(_shortfalls, self._model_path))
        if shortfalls:
            raise PreloadError(shortfalls)
        try:
            async with asyncio.timeout(self._config.load_timeout_ms / 1000):
                digest = self._config.model_digest or await digest_in_thread(self._model_path)
                report = await self._load()
                facts = await self._connect(report.base_url)
                await self._memory_is_told()
                batch = batch_tokens(self._config.slots, self._config.gpu_layers)
                kv_type = CacheType.named(self._config.kv_type)
                kv = await in_thread(
                    functools.partial(
                        kv_facts, self._model_path, facts.ctx_per_slot, batch, kv_type
                    )
                )
        except TimeoutError:
            await self.stop()
            wait_ms = self._config.load_timeout_ms
            raise PreloadError([f"the model was not loaded within {wait_ms} ms"]) from None
        except (OSError, HttpApiError) as error:
            await self.stop()
            raise PreloadError([str(error)]) from error
        except BaseException:
            await self.stop()
            raise
        assert self._worker is not None, "it was loaded"
        self._serving_since_line = self._worker.log.lines_total
        return self._info(digest, report, facts, kv)

    async def _load(self) -> WorkerReport:
        """Starts the worker and waits for its report."""
        self._before = await asyncio.to_thread(oom_kills)
        arguments = ("-m", embedded_worker.__name__)
        env = passed_on(os.environ, prefixes=(*PREFIXES, *OWN_PREFIXES))
        self._worker = await WorkerProcess.spawn(arguments, self._config.log, env=env)
        self._worker.log.on_line = self._on_line
        self._exit = asyncio.create_task(self._watch(self._worker))
        if self._stopped:
            raise PreloadError(["the engine was stopped during its start"])
        answer = await self._worker.ask(json.dumps(asdict(self._settings())).encode())
        report = WorkerReport(**json.loads(answer)) if answer else WorkerReport()
        if not report.base_url:
            raise await self._load_failure(report.error)
        return report

    def _on_line(self, line: str) -> None:
        self.memory.read(line)
        if not self._memory_told.is_set() and self.memory.purpose_bytes(_TOLD_LAST):
            self._memory_told.set()

    async def _memory_is_told(self) -> None:
        """Waits a moment for what the engine logs from a thread of its own, while it answers."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOG_SETTLES_S):
                await self._memory_told.wait()

    def _settings(self) -> WorkerSettings:
        return WorkerSettings(
            model_path=str(self._model_path),
            slots=self._config.slots,
            ctx_per_slot=self._config.ctx_per_slot,
            threads=self._config.threads,
            gpu_layers=self._config.gpu_layers,
            devices=self._config.devices,
            tensor_split=self._config.tensor_split,
            kv_type=self._config.kv_type,
            draft_model_path=_absolute(self._config.draft_model_path),
            api_key=self._api_key,
            parent_pid=os.getpid(),
        )

    async def _connect(self, base_url: str) -> ServerFacts:
        self._protocol = LlamaProtocol(
            Endpoint(base_url=base_url, api_key=self._api_key),
            deterministic=self._config.deterministic,
            drafts=bool(self._config.draft_model_path),
        )
        self._protocol.open()
        await self._protocol.wait_ready(_POLL_INTERVAL_S)
        facts = await self._protocol.facts()
        self._protocol.serve(facts.slots_total, facts.ctx_per_slot)
        return facts

    def _info(
        self, digest: str, report: WorkerReport, facts: ServerFacts, kv: KvFacts | None
    ) -> EngineInfo:
        return EngineInfo(
            engine="llamacpp",
            engine_version=f"xllamacpp-{report.version}",
            model_id=self._config.model_id,
            model_digest=digest,
            sampler_profile_version=sampler_profile(
                deterministic=self._config.deterministic,
                kv_type=self._config.kv_type,
                drafts=bool(self._config.draft_model_path),
            ),
            slots_total=facts.slots_total,
            ctx_max=facts.ctx_per_slot,
            deterministic=self._config.deterministic,
            quantizations=(facts.quantization,) if facts.quantization else (),
            extensions=extensions(drafts=bool(self._config.draft_model_path)),
            kv_preallocated=True,
            kv_bytes_per_token=kv.bytes_per_token if kv else None,
            kv_slot_bytes=kv.slot_bytes if kv else None,
            host_bytes=self.memory.host_bytes,
            device_bytes=self.memory.device_bytes,
        )

    async def _load_failure(self, error: str) -> PreloadError:
        """Ends the worker and adds llama.cpp's last words; only its end makes them complete."""
        assert self._worker is not None, "only a worker can fail to load"
        if error:
            await self._worker.stop()
        ended = await self.wait_exit()
        problem = f"cannot load {self._model_path}: "
        return PreloadError([f"{problem}{error and error + ': '}{ended.message}"], ended.failure)

    async def _watch(self, worker: WorkerProcess) -> Ended:
        """Waits for the worker's end, and judges it by its status and its last words."""
        sentence = await worker.wait_exit()
        await worker.settle(_LOG_SETTLES_S)
        words = LastWords(
            sentence=sentence, status=worker.status, lines=self._tellable(worker),
            before=self._before, secrets=(self._api_key,),
        )  # fmt: skip
        return await exit_news.judged(words)

    def last_words(self) -> str:
        """See `port.Writing.last_words`."""
        lines = self._tellable(self._worker)[-exit_news.LINES_IN_MESSAGES :] if self._worker else ()
        return " | ".join(masked(line, (self._api_key,)) for line in lines)

    def _tellable(self, worker: WorkerProcess) -> tuple[str, ...]:
        """Lines for people: of the load its errors, of later ones those that tell of a failure."""
        if self._serving_since_line is None:
            lines = worker.log.last(LOG_LINES)
            # The first error is the cause, later ones say that something failed because of it.
            errors = tuple(line for line in lines if _ERROR_LINE.match(line))
            return errors[: exit_news.LINES_IN_MESSAGES] or lines
        return self._requests.failures_in(worker.log.since(self._serving_since_line))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """See `port.Engine.generate`."""
        worker, protocol = self._started()
        if worker.ended:
            yield Failed(Failure.ENGINE_DIED, (await self.wait_exit()).message)
            return
        with self._requests.holding(request):
            async with contextlib.aclosing(protocol.generate(request)) as events:
                async for event in events:
                    if isinstance(event, Failed) and event.failure is Failure.ENGINE_DIED:
                        yield await exit_news.with_exit_news(event, self.wait_exit)
                    else:
                        yield event

    async def confirm_idle(self, request_id: str, timeout_ms: int) -> None:
        """Returns also when the worker is gone. See `port.Engine.confirm_idle`."""
        _, protocol = self._started()
        await exit_news.idle_or_gone(protocol.confirm_idle(request_id, timeout_ms), self.wait_exit)

    async def healthy(self) -> bool:
        """See `port.Engine.healthy`."""
        if self._worker is None or self._protocol is None or self._worker.ended:
            return False
        return await self._protocol.healthy()

    async def wait_exit(self) -> Ended:
        """See `port.Engine.wait_exit`."""
        assert self._exit is not None, "start() comes first"
        return await asyncio.shield(self._exit)

    async def stop(self) -> None:
        """Ends the worker: it gets two seconds, then SIGKILL. See `port.Engine.stop`.

        When it is cancelled, SIGKILL comes at once: the pool's next engine needs the memory.
        """
        self._stopped = True
        try:
            if self._protocol is not None:
                await self._protocol.close()
            if self._worker is not None:
                await self._worker.stop()
        finally:
            if self._worker is not None:
                self._worker.kill()

    def _started(self) -> tuple[WorkerProcess, LlamaProtocol]:
        assert self._worker is not None, "start() comes first"
        assert self._protocol is not None, "start() comes first"
        return self._worker, self._protocol


def _absolute(path: str) -> str:
    return str(Path(path).absolute()) if path else ""


def _shortfalls(model_path: Path) -> list[str]:
    """Names everything that keeps the worker from loading the model. Blocks. ORCH-3003."""
    return gguf_shortfalls(model_path) + embedded_shortfalls()


def embedded_shortfalls() -> list[str]:
    """Names everything that this host lacks, whatever the model. Blocks shortly."""
    shortfalls = []
    if importlib.util.find_spec("xllamacpp") is None:
        shortfalls.append("the Python package xllamacpp is not installed")
    if platform.machine() in {"x86_64", "AMD64"} and not _has_avx2():
        shortfalls.append("this processor has no AVX2, which xllamacpp needs")
    if sys.platform == "linux" and not _has_library("libgomp.so.1"):
        shortfalls.append("the library libgomp.so.1 is missing: install libgomp1")
    return shortfalls


def gpu_shortfalls(gpu_layers: int) -> list[str]:
    """What a start with so many layers on a GPU would say. Blocks while a process looks."""
    return [] if not gpu_layers or _engine_sees_gpu() else [NO_GPU]


@functools.cache
def _engine_sees_gpu() -> bool:
    """Asks the engine in a process of its own; one that does not answer is left to the start."""
    code = "from pool_managerd.engines.embedded_worker import sees_gpu; exit(not sees_gpu())"
    try:
        looked = subprocess.run(  # noqa: S603 - this program itself
            [sys.executable, "-c", code], capture_output=True, timeout=_LOOK_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return True
    return looked.returncode == 0


def _has_avx2() -> bool:
    """Reads the flags of Linux; elsewhere the answer is left to the load itself."""
    try:
        return " avx2 " in _CPUINFO.read_text().replace("\n", " ")
    except OSError:
        return True


def _has_library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
