"""The `triton` engine: attaches to a model on a Triton server that somebody else runs. ORCH-3057.

The model must be decoupled, that is, give any number of responses to a request. Other models of the
server, and other clients of this one, are not harmed. Detaching leaves the server as it is.
"""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import asdict, dataclass, field

import grpc

from pool_managerd.engines.attachment import LOOK_INTERVAL_MS, Told, until_replaced
from pool_managerd.engines.failures import invalid, redacted, secrets_of
from pool_managerd.engines.port import (
    CancelUnconfirmedError,
    EngineInfo,
    Failed,
    Failure,
    Finished,
    GenerationEvent,
    GenerationRequest,
    PreloadError,
)
from pool_managerd.engines.triton_binding import Binding, ModelFacts, bind
from pool_managerd.engines.triton_busy import BusyGauge, MetricsError
from pool_managerd.engines.triton_client import (
    StreamBrokenError,
    Target,
    TritonApiError,
    TritonClient,
)
from pool_managerd.engines.triton_errors import failure_of, says_gone
from pool_managerd.engines.triton_inference_service_pb2 import ModelInferRequest
from pool_managerd.engines.triton_profiles import PROFILES
from pool_managerd.engines.triton_tensors import TensorError
from pool_managerd.engines.triton_wire import ResponseReader, infer_request

_POLL_INTERVAL_S = 0.1
_BUSY_INTERVAL_S = 0.01
_QUIET_POLLS_UNANSWERED = 3
_END_TIMEOUT_S = 0.2
_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonConfig:
    """A model on a Triton server.

    Attributes:
        target: The server and its model.
        identity: What tells this server from all others where nobody compared its weights; empty:
            its address.
        model_id: Name that jobs ask for.
        slots: Generations at a time. Triton does not tell what a model can take.
        ctx_max: Context of a slot, tokens. Triton does not tell it either.
        profile: Family of the model: a name of `triton_profiles.PROFILES`.
        tensors: The model's own names of tensors, by field of the profile.
        ignore_seed: Serves a model that takes no seed.
        deterministic: Equal seeds give equal bytes, by the operator's word; needs one slot.
        load: Loads the model, in a server with `--model-control-mode=explicit`.
        load_timeout_ms: Longest wait for the model.
        model_digest: Digest of the weights, when the operator knows it.
        metrics_url: Triton's metrics, which confirm that a cancel has reached the model.
        busy_metric: Gauge of requests at work in them, instead of the profile's.
        cancel_settle_ms: Wait that stands for the confirmation where there is no `metrics_url`.
    """

    target: Target
    model_id: str
    slots: int
    ctx_max: int
    identity: str = ""
    profile: str = "plain"
    tensors: Mapping[str, str] = field(default_factory=dict)
    ignore_seed: bool = False
    deterministic: bool = False
    load: bool = False
    load_timeout_ms: int = 600_000
    model_digest: str = ""
    metrics_url: str = ""
    busy_metric: str = ""
    cancel_settle_ms: int = 200

    def __post_init__(self) -> None:
        """Refuses what no server can satisfy."""
        if min(self.slots, self.ctx_max, self.load_timeout_ms) < 1 or self.cancel_settle_ms < 0:
            raise ValueError("slots, ctx_max and load_timeout_ms must be at least 1")
        if self.profile not in PROFILES:
            raise ValueError(f"profile {self.profile!r} is none of {', '.join(sorted(PROFILES))}")
        if self.deterministic and self.slots != 1:
            raise ValueError("deterministic = true needs slots = 1")
        if self.metrics_url and not (self.busy_metric or PROFILES[self.profile].busy):
            raise ValueError("metrics_url needs busy_metric: this profile knows no gauge")


@dataclass(slots=True)
class _Lease:
    """One slot. `closed`: its generation is over for us, but perhaps not for the model."""

    answered: bool = False
    closed: bool = False


class TritonEngine:
    """One attachment to one model of a Triton server; satisfies `port.Engine`."""

    def __init__(self, config: TritonConfig) -> None:
        self._config = config
        self._client = TritonClient(config.target)
        self._profile = PROFILES[config.profile]
        self._binding: Binding | None = None
        self._leases: dict[str, _Lease] = {}
        self._told: Told = {}
        self._gone = False
        self._gauge: BusyGauge | None = None
        if config.metrics_url:
            self._gauge = BusyGauge(
                config.metrics_url, config.target.model, self._profile, config.busy_metric
            )

    async def start(self) -> EngineInfo:
        """Waits until the model serves. See `port.Engine.start`."""
        self._client.open()
        try:
            version = await self._serving()
            facts = await self._client.facts()
            self._binding = await self._fitted(facts)
        except TritonApiError as error:
            await self.stop()
            passing = error.code in _AWAY and "restricted" not in str(error)
            raise PreloadError([self._explanation(error)], passing=passing) from error
        except BaseException:
            await self.stop()
            raise
        config = self._config
        self._told = {"version": version or None}
        return EngineInfo(
            engine="triton",
            engine_version=version or "unknown",
            model_id=config.model_id,
            model_digest=config.model_digest or _unverified_digest(config, facts),
            sampler_profile_version=f"triton-{self._profile.name}-1",
            slots_total=config.slots,
            ctx_max=config.ctx_max,
            deterministic=config.deterministic,
            extensions=self._binding.extensions,
        )

    async def _serving(self) -> str:
        """Returns the server's version once the model serves, loading it if configured so."""
        version = await self._client.server_version()
        wait_ms = self._config.load_timeout_ms
        try:
            async with asyncio.timeout(wait_ms / 1000):
                if self._config.load and not await self._client.ready():
                    await self._load(wait_ms)
                while not await self._client.ready():
                    await self._refuse_unless_loading()
                    await asyncio.sleep(_POLL_INTERVAL_S)
        except TimeoutError:
            model = self._config.target.model
            raise PreloadError([f"model {model} is not ready after {wait_ms} ms"]) from None
        return version

    async def _load(self, wait_ms: int) -> None:
        try:
            await self._client.load(wait_ms)
        except TritonApiError as error:
            target = self._config.target
            raise PreloadError(
                [f"{target.address} does not load {target.model}: {error}"]
            ) from error

    async def _refuse_unless_loading(self) -> None:
        state, reason = await self._client.state()
        if state in {"LOADING", "READY"}:
            return
        model = self._config.target.model
        what = f"is {state.lower()} ({reason or 'no reason given'})" if state else "is not there"
        hint = "" if self._config.load else "; a server in explicit mode loads it with load = true"
        raise PreloadError([f"{self._config.target.address}: model {model} {what}{hint}"])

    async def _fitted(self, facts: ModelFacts) -> Binding:
        config = self._config
        binding, shortfalls = bind(
            self._profile, facts, config.tensors, ignore_seed=config.ignore_seed
        )
        if self._gauge is not None:
            try:
                await self._gauge.read()
            except MetricsError as error:
                shortfalls.append(str(error))
        if shortfalls:
            raise PreloadError(shortfalls)
        return binding

    def _explanation(self, error: TritonApiError) -> str:
        address = self._config.target.address
        match error.code:
            case grpc.StatusCode.UNAVAILABLE if "restricted" in str(error):
                # Triton says so when --grpc-restricted-protocol wants another key, or a key at all.
                return f"{address} refuses the API key: {error}"
            case grpc.StatusCode.UNAVAILABLE:
                return f"{address} does not accept connections"
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return f"{address} does not answer"
            case grpc.StatusCode.UNIMPLEMENTED:
                return f"{address} does not answer like a Triton server's gRPC endpoint"
            case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
                return f"{address} refuses the API key"
            case _:
                return f"{address}: {error}"

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """See `port.Engine.generate`."""
        binding = self._binding
        if binding is None:
            yield Failed(Failure.ENGINE_DIED, "not connected to the server")
            return
        refusal = self._refusal(request)
        if refusal is not None:
            yield refusal
            return
        message = infer_request(request, binding, self._config.ctx_max)
        if isinstance(message, Failed):
            yield redacted(message, secrets_of(request))
            return
        lease = self._leases[request.request_id] = _Lease()
        reader = ResponseReader(request, binding)
        try:
            async with contextlib.aclosing(self._events(request, message, reader, lease)) as events:
                async for event in events:
                    if isinstance(event, Finished | Failed):
                        lease.closed = True
                    yield (
                        redacted(event, secrets_of(request)) if isinstance(event, Failed) else event
                    )
        finally:
            lease.closed = True

    def _refusal(self, request: GenerationRequest) -> Failed | None:
        if request.request_id in self._leases:
            return invalid("a generation with this request id is open")
        if len(self._leases) >= self._config.slots:
            return Failed(Failure.ENGINE_ERROR, "all slots of the engine are taken")
        return None

    async def _events(
        self,
        request: GenerationRequest,
        message: ModelInferRequest,
        reader: ResponseReader,
        lease: _Lease,
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Streams until the first end. A stream that breaks leaves the slot to `confirm_idle`."""
        try:
            stream = self._client.infer(message, request.traceparent)
            async with contextlib.aclosing(stream) as responses:
                async for response in responses:
                    lease.answered = True
                    for event in reader.read(response):
                        if isinstance(event, Finished | Failed):
                            self._leases.pop(request.request_id, None)
                            await self._ended(event, responses)
                            yield event
                            return
                        yield event
            reason = "the engine closed the stream before its end"
        except TensorError as error:
            self._leases.pop(request.request_id, None)
            yield Failed(Failure.ENGINE_ERROR, str(error), reader.usage)
            return
        except TritonApiError as error:
            failed = failure_of(str(error), error.code, reader.usage)
            self._gone |= says_gone(str(error))
            if self._gone or failed.failure is not Failure.ENGINE_DIED:
                self._leases.pop(request.request_id, None)
            yield failed
            return
        except StreamBrokenError as error:
            reason = str(error)
        except TimeoutError:
            reason = f"the engine was silent for {self._config.target.silence_timeout_ms} ms"
        yield Failed(Failure.ENGINE_DIED, reason, reader.usage)

    async def _ended(
        self, event: Finished | Failed, responses: AsyncGenerator[object, None]
    ) -> None:
        """Lets the server end the stream, and notes when the model is gone for good.

        A stream that is cancelled after an error makes Triton 2.51 log an internal error. A model
        whose process died counts as ready there for ever, and is not started again.
        """
        self._gone |= isinstance(event, Failed) and says_gone(event.message)
        with contextlib.suppress(TimeoutError, TritonApiError, StreamBrokenError):
            async with asyncio.timeout(_END_TIMEOUT_S):
                await anext(responses, None)

    async def confirm_idle(self, request_id: str, timeout_ms: int) -> None:
        """Returns once the model has let a closed generation go, as far as that can be known.

        With `metrics_url`: once the model works on no more requests than are open here. Without it
        nobody tells, and `cancel_settle_ms` stands for the confirmation.

        Raises:
            CancelUnconfirmedError: when the model still works after `timeout_ms`.
        """
        lease = self._leases.get(request_id)
        if lease is None:
            return
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                if self._gauge is None:
                    await asyncio.sleep(self._config.cancel_settle_ms / 1000)
                else:
                    await self._wait_until_idle(self._gauge, lease)
        except TimeoutError:
            raise CancelUnconfirmedError(
                f"the model still works on a cancelled request after {timeout_ms} ms"
            ) from None
        self._leases.pop(request_id, None)

    async def _wait_until_idle(self, gauge: BusyGauge, lease: _Lease) -> None:
        # A request that was closed before the model answered may still be on its way to it.
        polls_needed = 1 if lease.answered else _QUIET_POLLS_UNANSWERED
        quiet_polls = 0
        while True:
            quiet_polls = quiet_polls + 1 if await self._is_quiet(gauge) else 0
            if quiet_polls == polls_needed:
                return
            await asyncio.sleep(_BUSY_INTERVAL_S)

    async def _is_quiet(self, gauge: BusyGauge) -> bool:
        try:
            busy = await gauge.read()
        except MetricsError:
            return False
        return busy <= sum(not lease.closed for lease in self._leases.values())

    async def healthy(self) -> bool:
        """See `port.Engine.healthy`. A model that said that it is gone stays unhealthy."""
        return not self._gone and await self._client.ready()

    async def wait_exit(self) -> str:
        """Returns once the server is another one; nobody here watches a foreign process."""

        async def look() -> Told:
            return {"version": await self._client.server_version() or None}

        return await until_replaced(look, self._told, LOOK_INTERVAL_MS)

    async def stop(self) -> None:
        """Detaches; the server goes on. See `port.Engine.stop`."""
        self._binding = None
        await self._client.close()
        if self._gauge is not None:
            await self._gauge.close()


def _unverified_digest(config: TritonConfig, facts: ModelFacts) -> str:
    """Stands in for the digest of weights that cannot be read: "unverified:" and 64 hex digits.

    It covers which server it is, so two servers whose weights nobody compared are never taken for
    replicas of each other, and what the server says about its model, so a changed model shows.
    """
    identity = config.identity or config.target.address
    described = json.dumps([identity, config.target.model, asdict(facts)], sort_keys=True)
    return f"unverified:{hashlib.sha256(described.encode()).hexdigest()}"
