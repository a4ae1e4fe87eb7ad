"""A simulated engine behind the real engine port: made-up text, in virtual time, with faults.

In the deterministic profile the text is a function of prompt and seed, as the profile promises; in
any other it differs from incarnation to incarnation.
"""

import asyncio
import hashlib
import random
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from faults import history as h
from faults.simulation.recorder import Recorder
from faults.simulation.virtual_time import Process
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

_WORDS = ("al", "bravo ", "ché ", "d", "é", "日本", "🚀 ", "hotel", " ", "kilo\n")


@dataclass(frozen=True, slots=True)
class Kind:
    """What a pool's engines are like. Chances are those of one start or one generation."""

    host: str
    pool: str
    slots: int
    deterministic: bool
    token_ms: float
    start_ms: float
    preload_fails: float = 0.0
    fails: float = 0.0
    stalls: float = 0.0
    unconfirmed: float = 0.0


def text_of(prompt: str, seed: int, tokens: int, salt: str = "", after: str = "") -> list[str]:
    """The pieces that a generation yields; `salt` is empty in the deterministic profile.

    Each follows from all text before it, so what continues `after` is what would have come.
    """
    pieces = []
    text = hashlib.sha256(f"{salt}\0{seed}\0{prompt}\0{after}".encode())
    for _ in range(tokens):
        piece = _WORDS[text.digest()[0] % len(_WORDS)]
        text.update(piece.encode())
        pieces.append(piece)
    return pieces


class SimulatedEngine:
    """One incarnation; satisfies `port.Engine`. `healed` turns all faults off."""

    def __init__(
        self,
        kind: Kind,
        process: Process,
        recorder: Recorder,
        chance: random.Random,
        on_end: "OnEnd",
    ) -> None:
        self._kind = kind
        self._process = process
        self._recorder = recorder
        self._chance = chance
        self._on_end = on_end
        self._salt = "" if kind.deterministic else str(chance.random())
        self._exited = asyncio.Event()
        self._open: dict[str, tuple[str, int]] = {}
        self._stuck: set[str] = set()
        self.replica_id = ""
        self.healed = False

    @property
    def running(self) -> bool:
        """True while it can generate."""
        return not self._exited.is_set()

    @property
    def busy(self) -> bool:
        """True while it works on anything."""
        return bool(self._open)

    def die(self) -> None:
        """Ends the engine as a crash would."""
        if not self._exited.is_set():
            self._exited.set()
            kind = self._kind
            replica = self.replica_id
            self._recorder.record(
                self._process, h.ReplicaGone, host=kind.host, pool=kind.pool, replica=replica
            )

    async def start(self) -> EngineInfo:
        """See `port.Engine.start`."""
        kind = self._kind
        await asyncio.sleep(kind.start_ms * (0.5 + self._chance.random()) / 1000)
        if self._bad(kind.preload_fails):
            raise PreloadError(["no room (injected)"])
        return EngineInfo(
            engine="simulated",
            engine_version="1",
            model_id="m",
            model_digest="sha256:m",
            sampler_profile_version="1",
            slots_total=kind.slots,
            ctx_max=4096,
            deterministic=kind.deterministic,
        )

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """See `port.Engine.generate`."""
        if self._exited.is_set():
            yield Failed(Failure.ENGINE_DIED, "the engine is gone")
            return
        job_id, _, number = request.request_id.rpartition("#")
        self._open[request.request_id] = (job_id, int(number))
        pieces = self._pieces(request)
        text = "".join((request.continue_text, *pieces))
        self._tell(h.AttemptBegan, job_id, int(number), slots_total=self._kind.slots, text=text)
        over = False
        try:
            async for event in self._events(pieces):
                over = not isinstance(event, Piece)
                yield event
        except (GeneratorExit, asyncio.CancelledError):
            if not over and self._bad(self._kind.unconfirmed):
                self._stuck.add(request.request_id)
            raise
        finally:
            if request.request_id not in self._stuck:
                self._close(request.request_id)

    def _pieces(self, request: GenerationRequest) -> list[str]:
        prompt = request.prompt if isinstance(request.prompt, str) else ""
        sampling, after = request.sampling, request.continue_text
        return text_of(prompt, sampling.seed, sampling.max_tokens or 1, self._salt, after)

    async def _events(self, pieces: list[str]) -> AsyncGenerator[GenerationEvent, None]:
        fault_at = self._chance.randrange(len(pieces))
        fault = self._chance.random()
        usage = Usage(tokens_in=3, tokens_out=len(pieces))
        for position, piece in enumerate(pieces):
            if position == fault_at and not self.healed:
                if fault < self._kind.fails:
                    yield Failed(Failure.ENGINE_ERROR, "an error (injected)")
                    return
                if fault < self._kind.fails + self._kind.stalls:
                    await self._exited.wait()
            await self._pause(self._kind.token_ms * (0.2 + 1.6 * self._chance.random()))
            if self._exited.is_set():
                yield Failed(Failure.ENGINE_DIED, "the engine died (injected)")
                return
            yield Piece(piece)
        yield Finished(Finish.EOS, usage)

    async def _pause(self, span_ms: float) -> None:
        try:
            async with asyncio.timeout(span_ms / 1000):
                await self._exited.wait()
        except TimeoutError:
            pass

    async def confirm_idle(self, request_id: str, timeout_ms: int) -> None:
        """See `port.Engine.confirm_idle`."""
        await asyncio.sleep(0.001)
        if request_id in self._stuck and not self._exited.is_set():
            await asyncio.sleep(timeout_ms / 1000)
            raise CancelUnconfirmedError("still busy (injected)")

    async def healthy(self) -> bool:
        """See `port.Engine.healthy`."""
        return not self._exited.is_set()

    async def wait_exit(self) -> str:
        """See `port.Engine.wait_exit`."""
        await self._exited.wait()
        return "the engine died (injected)"

    async def stop(self) -> None:
        """See `port.Engine.stop`."""
        self.die()

    def _bad(self, chance: float) -> bool:
        return self._chance.random() < chance and not self.healed

    def _close(self, request_id: str) -> None:
        job = self._open.pop(request_id, None)
        if job is not None:
            self._tell(h.AttemptEnded, *job)
            self._on_end(self)

    def _tell(self, event: type, job_id: str, attempt: int, **more: int | str) -> None:
        kind = self._kind
        self._recorder.record(
            self._process,
            event,
            host=kind.host,
            pool=kind.pool,
            replica=self.replica_id,
            job_id=job_id,
            attempt=attempt,
            **more,
        )


OnEnd = Callable[[SimulatedEngine], None]
"""Called when an engine works on an attempt no more."""
