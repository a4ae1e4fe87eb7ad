"""The `mock` engine: text without a model, and faults on request. ORCH-3058.

It runs in process and ships with the product, for demonstrations and for testing what is built on
llama-orch. Its text is a function of seed, prompt and position alone, so every incarnation of it
produces the same, and a continuation goes on exactly where the original went. A stop sequence works
within one token only; grammars are refused.
"""

import asyncio
import hashlib
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from pool_managerd.core.logprobs import TokenLogprob
from pool_managerd.engines.mock_script import MockScript, script_of
from pool_managerd.engines.port import (
    CancelUnconfirmedError,
    EngineInfo,
    Failed,
    Failure,
    Finish,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Piece,
    PreloadError,
    Usage,
)

_WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "kilo")
_MULTI_BYTE_WORDS = ("é", "ß", "日", "本", "語", "🚀", "😀", "я", "ω", "€")
_VERSION = "1"

Sleep = Callable[[float], Awaitable[None]]
"""Waits for so many seconds; `asyncio.sleep`, or a test's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MockConfig:
    """A mock engine. `ctx_max` is tokens per slot; a prompt counts one token per word.

    `script` is what a generation does unless its request says otherwise. With `preload_shortfalls`
    the start fails and names them.
    """

    model_id: str = "mock"
    slots: int = 1
    ctx_max: int = 4096
    script: MockScript = field(default_factory=MockScript)
    preload_shortfalls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses an engine without room."""
        if min(self.slots, self.ctx_max) < 1:
            raise ValueError("slots and ctx_max must be at least 1")


@dataclass(slots=True)
class _Generation:
    """One generation in progress: `tokens_out` of it are given away already."""

    request: GenerationRequest
    script: MockScript
    tokens_in: int
    tokens_out: int = 0

    def usage(self) -> Usage:
        return Usage(tokens_in=self.tokens_in, tokens_cached=0, tokens_out=self.tokens_out)


class MockEngine:
    """One incarnation of the mock engine; satisfies `port.Engine`."""

    def __init__(self, config: MockConfig, sleep: Sleep = asyncio.sleep) -> None:
        self._config = config
        self._sleep = sleep
        self._running = False
        self._open: dict[str, _Generation] = {}
        self._stuck: set[str] = set()
        self._exit_sentence = ""
        self._exited = asyncio.Event()

    async def start(self) -> EngineInfo:
        """See `port.Engine.start`."""
        if self._config.preload_shortfalls:
            raise PreloadError(self._config.preload_shortfalls)
        self._running = not self._exited.is_set()
        digest = hashlib.sha256(f"mock {_VERSION} {self._config.model_id}".encode()).hexdigest()
        return EngineInfo(
            engine="mock",
            engine_version=_VERSION,
            model_id=self._config.model_id,
            model_digest=f"sha256:{digest}",
            sampler_profile_version="mock-1",
            slots_total=self._config.slots,
            ctx_max=self._config.ctx_max,
            deterministic=True,
            extensions=("logprobs", "token_ids"),
        )

    def die(self, sentence: str = "the mock engine died as its script says") -> None:
        """Ends the engine as a crash would: `wait_exit` returns, open generations fail."""
        if self._running:
            self._running = False
            self._exit_sentence = sentence
            self._exited.set()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """See `port.Engine.generate`."""
        generation = self._admit(request)
        if isinstance(generation, Failed):
            yield generation
            return
        self._open[request.request_id] = generation
        try:
            event = await self._next(generation)
            while isinstance(event, Piece):
                yield event
                event = await self._next(generation)
        except (GeneratorExit, asyncio.CancelledError):
            if generation.script.cancel_unconfirmed:
                self._stuck.add(request.request_id)
            raise
        finally:
            del self._open[request.request_id]
        yield event

    def _admit(self, request: GenerationRequest) -> _Generation | Failed:
        if not self._running:
            sentence = self._exit_sentence or "the mock engine is not running"
            return Failed(Failure.ENGINE_DIED, sentence)
        if request.request_id in self._open:
            return Failed(Failure.INVALID_REQUEST, "a generation with this request id is open")
        if len(self._open) + len(self._stuck) >= self._config.slots:
            return Failed(Failure.ENGINE_ERROR, "all slots of the engine are taken")
        return self._read(request)

    def _read(self, request: GenerationRequest) -> _Generation | Failed:
        if request.sampling.grammar is not None or request.sampling.json_schema is not None:
            return Failed(Failure.INVALID_REQUEST, "the mock engine keeps to no grammar or schema")
        script = script_of(request, self._config.script)
        if isinstance(script, Failed):
            return script
        tokens_in = len(_prompt_text(request).split()) + _continued(request)
        if tokens_in > self._config.ctx_max:
            message = f"request ({tokens_in} tokens) exceeds the context ({self._config.ctx_max})"
            return Failed(Failure.CONTEXT_OVERFLOW, message)
        return _Generation(request, script, tokens_in)

    async def _next(self, generation: _Generation) -> GenerationEvent:
        """Waits as the script says, and returns the next event."""
        script, done = generation.script, generation.tokens_out
        if done == script.stall_after_tokens:
            await self._exited.wait()
        if done == script.die_after_tokens:
            self.die()
        if self._running and done == script.fail_after_tokens:
            message = "the mock engine failed as its script says"
            return Failed(Failure(script.failure), message, generation.usage())
        if self._running and (finish := self._finish(generation)):
            return Finished(finish, generation.usage())
        await self._wait(script.token_interval_ms if done else script.first_token_delay_ms)
        if not self._running:
            return Failed(Failure.ENGINE_DIED, self._exit_sentence, generation.usage())
        generation.tokens_out += 1
        return _piece(generation, done)

    def _finish(self, generation: _Generation) -> Finish | None:
        sampling, done = generation.request.sampling, generation.tokens_out
        if done + _continued(generation.request) >= generation.script.token_count:
            return Finish.EOS
        if any(stop in _piece(generation, done).text for stop in sampling.stop):
            return Finish.STOP
        limit = self._config.ctx_max - generation.tokens_in
        if sampling.max_tokens is not None:
            limit = min(limit, sampling.max_tokens)
        return Finish.LENGTH if done >= limit else None

    async def _wait(self, wait_ms: int) -> None:
        """Waits, but not beyond the engine's end. No wait still lets others run."""
        if wait_ms == 0 or not self._running:
            await asyncio.sleep(0)
            return
        pause = asyncio.ensure_future(self._sleep(wait_ms / 1000))
        death = asyncio.ensure_future(self._exited.wait())
        try:
            await asyncio.wait({pause, death}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            pause.cancel()
            death.cancel()
            await asyncio.gather(pause, death, return_exceptions=True)

    async def confirm_idle(self, request_id: str, timeout_ms: int) -> None:
        """See `port.Engine.confirm_idle`."""
        if request_id in self._open or (request_id in self._stuck and self._running):
            raise CancelUnconfirmedError(
                f"the slot is still busy after {timeout_ms} ms, as its script says"
            )

    async def healthy(self) -> bool:
        """See `port.Engine.healthy`."""
        return self._running

    async def wait_exit(self) -> str:
        """See `port.Engine.wait_exit`."""
        await self._exited.wait()
        return self._exit_sentence

    async def stop(self) -> None:
        """See `port.Engine.stop`."""
        self.die("the mock engine was stopped")


def _prompt_text(request: GenerationRequest) -> str:
    if isinstance(request.prompt, str):
        return request.prompt
    return "\n".join(f"{message.role}: {message.content}" for message in request.prompt)


def _continued(request: GenerationRequest) -> int:
    """Tokens that were generated before: each of them is one word."""
    return len(request.continue_token_ids) or len(request.continue_text.split())


def _piece(generation: _Generation, index: int) -> Piece:
    """Returns the token at a position; positions count from the start of the original output."""
    request = generation.request
    position = index + _continued(request)
    key = f"{request.sampling.seed}\0{position}\0{_prompt_text(request)}"
    token = int.from_bytes(hashlib.sha256(key.encode()).digest()[:2])
    words = _MULTI_BYTE_WORDS if generation.script.multi_byte else _WORDS
    number = token % len(words)
    text = f" {words[number]}"
    return Piece(text, (number,), _logprobs(words, number, request.sampling.logprobs))


def _logprobs(words: Sequence[str], number: int, count: int | None) -> tuple[TokenLogprob, ...]:
    """Of a word, and of those that follow it in the list: each half as likely as the one before."""
    if count is None:
        return ()
    likely = [
        (f" {words[(number + place) % len(words)]}".encode(), (place + 1) * math.log(0.5))
        for place in range(max(1, count))
    ]
    return (TokenLogprob(*likely[0], tuple(likely[:count])),)
