"""The port between the pool manager and an inference engine.

An `Engine` is one incarnation of one engine process (or one attachment to a foreign one) that
serves one model with a fixed number of slots. The pool manager owns the slots: it never has more
than `EngineInfo.slots_total` generations open, because engines queue silently beyond that.

Life: `start()` once, any number of `generate()`, `stop()` once (idempotent). A dead engine is not
revived: the supervisor makes a new one. ORCH-3001, ORCH-3002.
"""

import enum
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from pool_managerd.core.logprobs import TokenLogprob
from pool_managerd.core.tellable import (
    BYTES_MAX,
    TELLABLE_SLOTS_MAX,
    TELLABLE_TEXT_CHARS_MAX,
    plain_text,
)

COUNT_32_MAX = (1 << 32) - 1


class EngineError(Exception):
    """Base of what an engine adapter raises.

    EngineError
    ├── PreloadError        start() cannot succeed; names every shortfall
    ├── CancelUnconfirmedError   a closed generation still holds its slot
    └── StuckProcessError   stop() cannot end the process (`worker_process`)
    """


class PreloadError(EngineError):
    """The engine cannot be made ready. `shortfalls` names each missing thing, for people.

    `failure` tells memory that ran out (ORCH-3039) from everything else, which is ENGINE_ERROR.
    `passing`: nothing was started here, and what is missing elsewhere may come by itself.
    """

    def __init__(
        self,
        shortfalls: Sequence[str],
        failure: "Failure | None" = None,
        *,
        passing: bool = False,
    ) -> None:
        """Joins the shortfalls into the message."""
        super().__init__("; ".join(shortfalls))
        self.passing = passing
        self.shortfalls = tuple(shortfalls)
        self.failure = failure or Failure.ENGINE_ERROR


class CancelUnconfirmedError(EngineError):
    """The engine did not free the slot of a closed generation in time."""


class Finish(enum.Enum):
    """Why a generation stopped regularly."""

    EOS = "eos"
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


class Failure(enum.Enum):
    """How a generation failed."""

    ENGINE_DIED = "engine_died"
    ENGINE_ERROR = "engine_error"
    INVALID_REQUEST = "invalid_request"
    CONTEXT_OVERFLOW = "context_overflow"
    DEVICE_OUT_OF_MEMORY = "device_out_of_memory"
    HOST_OUT_OF_MEMORY = "host_out_of_memory"


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a started engine serves. `ctx_max` is tokens per slot.

    `deterministic`: equal seeds give equal bytes, on every such pool of a replica set. ORCH-3050.
    `kv_preallocated`: keys and values of all slots got their memory as the model was loaded.
    `kv_bytes_per_token` and `kv_slot_bytes` are what a token of context takes at most, and a slot
    in all; None where the engine's cache is not known.
    `host_bytes` and `device_bytes` are what it says that it took of the host's memory and of each
    device, in the order in which it was shown them; None and empty where it does not say.
    """

    engine: str
    engine_version: str
    model_id: str
    model_digest: str
    sampler_profile_version: str
    slots_total: int
    ctx_max: int
    deterministic: bool = False
    quantizations: tuple[str, ...] = ()
    extensions: tuple[str, ...] = ()
    kv_preallocated: bool = False
    kv_bytes_per_token: int | None = None
    kv_slot_bytes: int | None = None
    host_bytes: int | None = None
    device_bytes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what no snapshot could tell. Raises `PreloadError`."""
        odd = [
            f"{name} of {value}"
            for name, most in (("slots_total", TELLABLE_SLOTS_MAX), ("ctx_max", COUNT_32_MAX))
            if not 0 <= (value := getattr(self, name)) <= most
        ]
        odd += [
            f"{name} of {value}, with {self.slots_total} slots"
            for name in ("kv_bytes_per_token", "kv_slot_bytes")
            if (value := getattr(self, name) or 0) * self.slots_total > BYTES_MAX
        ]
        odd += _odd_texts([(name, getattr(self, name)) for name in _TEXTS])
        odd += _odd_texts([("quantization", text) for text in self.quantizations])
        if odd:
            raise PreloadError([f"the engine tells {', '.join(odd)}"])


_TEXTS = ("engine", "engine_version", "model_id", "model_digest", "sampler_profile_version")


def _odd_texts(texts: Sequence[tuple[str, str]]) -> list[str]:
    """Of each text that no snapshot could tell what is wrong with it."""
    unreadable = [
        f"a text that is no Unicode as its {name}"
        for name, text in texts
        if text != plain_text(text)
    ]
    too_long = [
        f"{name} of {len(text)} characters, above {TELLABLE_TEXT_CHARS_MAX}"
        for name, text in texts
        if len(text) > TELLABLE_TEXT_CHARS_MAX
    ]
    return unreadable + too_long


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation; the engine applies its own template."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Parameters of generation; None leaves the engine's default. `seed` is always set.

    With `logprobs` each token comes with its log probability, beside so many of the likeliest.
    """

    seed: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    json_schema: str | None = None
    grammar: str | None = None
    engine_options: Mapping[str, object] = field(default_factory=dict)
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One generation.

    `prompt` is raw text, or a conversation to which the engine applies its template.
    `continue_text` follows the prompt and was generated before (failover policy CONTINUE): of a
    conversation it is the beginning of the assistant's answer. Where `continue_token_ids` are not
    empty they are the tokens of that text, and better: text may be cut into other tokens.
    `traceparent` is passed on to the engine as an HTTP header.
    With `keep` an engine may hand its pieces there the moment they come, instead of yielding them:
    cheaper by all the layers that they would pass through.
    """

    request_id: str
    prompt: str | tuple[ChatMessage, ...]
    sampling: SamplingParams
    continue_token_ids: tuple[int, ...] = ()
    traceparent: str = ""
    continue_text: str = ""
    keep: "Keep | None" = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a generation took by the engine's count; None where it does not say. Times in ms."""

    tokens_in: int | None = None
    tokens_cached: int | None = None
    tokens_out: int | None = None
    prefill_time_ms: int | None = None
    decode_time_ms: int | None = None


class Piece(NamedTuple):
    """Generated text, whole characters only. `token_ids` is empty when the engine reports none.

    `logprobs` are those of its tokens, where they were asked for. A tuple, because there is one for
    each token: it is made in a fraction of the time.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


Keep = Callable[[Piece], None]
"""Takes a piece."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The generation ended regularly. Nothing follows."""

    finish: Finish
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class Failed:
    """The generation failed. Nothing follows. `message` holds no prompt, output or secret."""

    failure: Failure
    message: str
    usage: Usage = Usage()


GenerationEvent = Piece | Finished | Failed


@dataclass(frozen=True, slots=True)
class Ended:
    """How an engine's process ended: ENGINE_DIED, or the memory that ran out. ORCH-3039.

    `message` is a sentence for people, without prompt, output or secret.
    """

    failure: Failure
    message: str


class Engine(Protocol):
    """One incarnation of an engine."""

    async def start(self) -> EngineInfo:
        """Starts the process or attaches to it, and returns once the model is loaded and answers.

        Raises:
            PreloadError: naming every shortfall.
        """
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Yields pieces as the engine emits them, then exactly one `Finished` or `Failed`.

        Pieces may go to `request.keep` instead, where there is one.

        Problems during generation are `Failed` events, never exceptions. A stream that stops
        without a proper end is `Failed(ENGINE_DIED)`. `aclose()` cancels; after it returns, call
        `confirm_idle`.
        """
        ...

    async def confirm_idle(self, request_id: str, timeout_ms: int) -> None:
        """Returns once the engine no longer works on the closed generation `request_id`.

        Raises:
            CancelUnconfirmedError: when the engine still works on it after `timeout_ms`.
        """
        ...

    async def healthy(self) -> bool:
        """Tells whether the engine answers its health check; the caller bounds it. Never raises."""
        ...

    async def wait_exit(self) -> str | Ended:
        """Returns how the process ended, once it has; of a foreign one, that another replaced it.

        A sentence alone, for people, is an end of unknown cause.
        """
        ...

    async def stop(self) -> None:
        """Ends the process and all it started, or detaches. Idempotent; waits until it is gone.

        When it is cancelled, the process is killed; another call then waits until it is gone.
        """
        ...


@runtime_checkable
class Writing(Engine, Protocol):
    """An engine whose log is read here."""

    def last_words(self) -> str:
        """The last lines that it wrote and that may be shown, without secrets; may be empty."""
        ...
