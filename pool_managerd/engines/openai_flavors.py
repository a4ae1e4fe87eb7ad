"""What tells OpenAI-compatible servers apart, as data: one row for each. ORCH-3056.

Source, row by row: vLLM's `entrypoints/openai` and its reproducibility page; SGLang's
`entrypoints/openai` and its deterministic inference page; text-generation-inference's `router`;
Ollama's `openai` package; transformers 5.23.0's `cli/serving` and llama.cpp b11549, which were run.
docs/engines.md says the same for people.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from pool_managerd.engines.llama_wire import OPTION_KINDS, SEED_MODULUS
from pool_managerd.engines.port import Finish

FlavorName = Literal["vllm", "sglang", "tgi", "ollama", "transformers", "llama_cpp", "generic"]
Unlimited = Literal["omit", "null", "refuse"]
Determinism = Literal["never", "one_slot", "vouched", "told"]

VALUE = "$value"
"""Stands in a template where the schema or the grammar goes."""

VALUE_TEXT = "$text"
"""Stands where the schema goes as JSON text."""

_INT64 = 2**63
_OPENAI_SAMPLING = frozenset({"temperature", "top_p"})
_ALL_SAMPLING = frozenset({"temperature", "top_p", "top_k", "min_p"})
_PENALTIES = {"presence_penalty": "number", "frequency_penalty": "number"}
_RESPONSE_FORMAT: Mapping[str, object] = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "output", "strict": True, "schema": VALUE},
    }
}
FINISHES: Mapping[str, Finish] = MappingProxyType({
    "stop": Finish.EOS,
    "eos_token": Finish.EOS,
    "stop_sequence": Finish.STOP,
    "length": Finish.LENGTH,
    "tool_calls": Finish.TOOL_CALLS,
    "function_call": Finish.TOOL_CALLS,
    "content_filter": Finish.CONTENT_FILTER,
})  # fmt: skip
"""Finish reasons of all flavors; a reason that is not here is an error."""


@dataclass(frozen=True, slots=True)
class Fact:
    """Where a server says something: a path, and the keys to it. Path "" is the model's entry.

    `older` is where it is asked when there is nothing at `path`.
    """

    path: str
    keys: tuple[str, ...]
    older: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleSigns:
    """Where a server shows how much it works on.

    `gauges` of Prometheus add up to the generations at work; none means that `path` answers like
    llama-server's `/slots`. `counters` move while the engine computes: an idle engine may leave its
    gauges as they were (vLLM #22545, SGLang #26495), but not its counters moving.
    """

    path: str = "/metrics"
    gauges: tuple[str, ...] = ()
    counters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavor:
    """One kind of server.

    Attributes:
        engine: Name in snapshots.
        health: Path that answers 200 once the model is loaded.
        lists_model: `/v1/models` holds the model that is served.
        serves_any_name: There is one model, whatever name is asked for.
        sent_name: The model's name in requests, where it is always the same.
        version, context, slots: Where the server says them; None where it does not.
        slots_exact: `slots` are what runs at once; else only a bound.
        slots_max: More of them than this do not work; 0 means any.
        seed_modulus: Seeds are taken modulo this.
        sampling: Parameters beside seed, stop and max_tokens that are accepted.
        unlimited_text, unlimited_chat: What to send without `max_tokens`: nothing, null, or
            the server's default is so small that the request is refused.
        stops_max: Longest list of stop sequences; 0 means any.
        keeps_stop: The stop sequence is left in the output, where it is cut off here.
        eos_has_text: The chunk that says `eos_token` holds the text of that token, dropped here.
        stop_detail: Field of a choice that holds the stop sequence that was met.
        stream_usage: Counts come only when `stream_options` ask for them.
        ids_field: Request field that asks for token ids; empty: there are none.
        mixed_prompt: The prompt may be a list of text and token ids.
        logprobs: It reports log probabilities of tokens.
        schema_text, schema_chat, grammar: What a constraint adds to the request; None: refused.
        continue_chat: What makes a server go on with the last message; None: it cannot.
        options: Engine options that are passed on, and their types.
        packs_sampling: Sampling goes into a JSON text under `generation_config`.
        extra: Fields of every request; `extra_deterministic` in that profile too.
        overflow, died: Words of errors, in lower case.
        idle: How a cancel is verified; None: closing the connection is believed.
        determinism: Equal seeds give equal bytes never, with one slot, if the operator vouches for
            it, or if the server says so at `deterministic_fact`.
        deterministic_hint: How a server is started for it.
    """

    engine: str
    health: str = "/health"
    lists_model: bool = True
    serves_any_name: bool = False
    sent_name: str = ""
    version: Fact | None = None
    context: Fact | None = None
    slots: Fact | None = None
    slots_exact: bool = True
    slots_max: int = 0
    seed_modulus: int = _INT64
    sampling: frozenset[str] = _OPENAI_SAMPLING
    unlimited_text: Unlimited = "refuse"
    unlimited_chat: Unlimited = "omit"
    stops_max: int = 0
    keeps_stop: bool = False
    stop_detail: str = ""
    eos_has_text: bool = False
    stream_usage: bool = True
    ids_field: str = ""
    mixed_prompt: bool = False
    schema_text: Mapping[str, object] | None = None
    schema_chat: Mapping[str, object] | None = None
    grammar: Mapping[str, object] | None = None
    logprobs: bool = False
    continue_chat: Mapping[str, object] | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    packs_sampling: bool = False
    extra: Mapping[str, object] = field(default_factory=dict)
    extra_deterministic: Mapping[str, object] = field(default_factory=dict)
    overflow: tuple[str, ...] = ("context length",)
    died: tuple[str, ...] = ()
    idle: IdleSigns | None = None
    determinism: Determinism = "never"
    deterministic_fact: Fact | None = None
    deterministic_hint: str = ""


_VLLM = Flavor(
    engine="vllm",
    version=Fact("/version", ("version",)),
    context=Fact("", ("max_model_len",)),
    sampling=_ALL_SAMPLING,
    # Its own default is 16; null means what is left of the context.
    unlimited_text="null",
    stop_detail="stop_reason",
    ids_field="return_token_ids",
    schema_text={"structured_outputs": {"json": VALUE}},
    schema_chat={"structured_outputs": {"json": VALUE}},
    grammar={"structured_outputs": {"grammar": VALUE}},
    logprobs=True,
    continue_chat={"continue_final_message": True, "add_generation_prompt": False},
    options={
        **_PENALTIES,
        "repetition_penalty": "number",
        "min_tokens": "integer",
        "priority": "integer",
        "ignore_eos": "boolean",
        "skip_special_tokens": "boolean",
        "cache_salt": "text",
        "allowed_token_ids": "list",
        "bad_words": "list",
        "stop_token_ids": "list",
    },
    overflow=("context length", "max_model_len", "maximum model length"),
    died=("enginecore encountered an issue", "enginedeaderror"),
    idle=IdleSigns(
        gauges=("vllm:num_requests_running", "vllm:num_requests_waiting"),
        counters=("vllm:generation_tokens_total", "vllm:prompt_tokens_total"),
    ),
    determinism="vouched",
)

_SGLANG = Flavor(
    engine="sglang",
    version=Fact("/server_info", ("version",), older="/get_server_info"),
    context=Fact("", ("max_model_len",)),
    sampling=_ALL_SAMPLING,
    stop_detail="matched_stop",
    ids_field="return_token_ids",
    schema_text={"json_schema": VALUE_TEXT},
    schema_chat=_RESPONSE_FORMAT,
    grammar={"ebnf": VALUE},
    logprobs=True,
    continue_chat={"continue_final_message": True},
    options={
        **_PENALTIES,
        "repetition_penalty": "number",
        "min_tokens": "integer",
        "ignore_eos": "boolean",
        "skip_special_tokens": "boolean",
        "regex": "text",
        "stop_token_ids": "list",
    },
    idle=IdleSigns(
        gauges=("sglang:num_running_reqs", "sglang:num_queue_reqs"),
        counters=("sglang:generation_tokens_total", "sglang:prompt_tokens_total"),
    ),
    determinism="told",
    deterministic_fact=Fact(
        "/server_info", ("enable_deterministic_inference",), older="/get_server_info"
    ),
    deterministic_hint="--enable-deterministic-inference",
)

_TGI = Flavor(
    engine="tgi",
    # Any other name is that of an adapter to load.
    sent_name="tgi",
    version=Fact("/info", ("version",)),
    context=Fact("/info", ("max_total_tokens",)),
    # Beyond these it answers 429; how many run at once depends on their sizes.
    slots=Fact("/info", ("max_concurrent_requests",)),
    slots_exact=False,
    seed_modulus=2**64,
    unlimited_chat="refuse",
    stops_max=4,
    keeps_stop=True,
    eos_has_text=True,
    schema_chat={"response_format": {"type": "json_object", "value": VALUE}},
    options={"frequency_penalty": "number"},
    overflow=("`inputs` tokens + `max_new_tokens` must be", "`inputs` must have less than"),
    idle=IdleSigns(
        gauges=("tgi_batch_current_size", "tgi_queue_size"),
        counters=("tgi_batch_inference_count",),
    ),
)

_OLLAMA = Flavor(
    engine="ollama",
    health="/api/version",
    version=Fact("/api/version", ("version",)),
    seed_modulus=SEED_MODULUS,
    unlimited_chat="refuse",
    schema_chat=_RESPONSE_FORMAT,
    options=_PENALTIES,
    overflow=("context length",),
)

_TRANSFORMERS = Flavor(
    engine="transformers",
    # It lists the cache of the hub, not the folder that it was started with.
    lists_model=False,
    # It computes one after the other, and a seed sets the generator of all.
    slots_max=1,
    sampling=_ALL_SAMPLING,
    unlimited_chat="refuse",
    keeps_stop=True,
    stream_usage=False,
    # Outside of it, top_k and min_p are refused and a temperature is ignored by models that are
    # greedy by default.
    packs_sampling=True,
    options={
        "repetition_penalty": "number",
        "typical_p": "number",
        "min_new_tokens": "integer",
        "no_repeat_ngram_size": "integer",
    },
    determinism="one_slot",
)

_LLAMA_CPP = Flavor(
    engine="llamacpp",
    serves_any_name=True,
    version=Fact("/props", ("build_info",)),
    context=Fact("/props", ("default_generation_settings", "n_ctx")),
    slots=Fact("/props", ("total_slots",)),
    seed_modulus=SEED_MODULUS,
    sampling=_ALL_SAMPLING,
    unlimited_text="omit",
    mixed_prompt=True,
    # `response_format` is ignored on the route for text.
    schema_text={"json_schema": VALUE},
    schema_chat=_RESPONSE_FORMAT,
    grammar={"grammar": VALUE},
    logprobs=True,
    continue_chat={},
    options=OPTION_KINDS,
    # News during the prompt, so that a cancel is noticed there too.
    extra={"return_progress": True},
    extra_deterministic={"cache_prompt": False},
    overflow=("exceed_context_size_error", "context size has been exceeded"),
    idle=IdleSigns(path="/slots"),
    determinism="one_slot",
)

_GENERIC = Flavor(
    engine="openai",
    health="/v1/models",
    unlimited_chat="refuse",
    stops_max=4,
    schema_chat=_RESPONSE_FORMAT,
    options=_PENALTIES,
    overflow=("context length", "context_length_exceeded", "context size"),
)

FLAVORS: Mapping[FlavorName, Flavor] = MappingProxyType({
    "vllm": _VLLM,
    "sglang": _SGLANG,
    "tgi": _TGI,
    "ollama": _OLLAMA,
    "transformers": _TRANSFORMERS,
    "llama_cpp": _LLAMA_CPP,
    "generic": _GENERIC,
})  # fmt: skip
