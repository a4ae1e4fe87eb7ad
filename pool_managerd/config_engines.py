"""Configuration of engines: one table for each kind of adapter."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from pool_managerd.core.model_ref import REF_CHARS_MAX, parse_model_ref
from pool_managerd.engines.openai_flavors import FlavorName
from pool_managerd.engines.triton_profiles import INPUT_FIELDS, OUTPUT_FIELDS

KvType = Literal["f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
Milliseconds = Annotated[int, Field(ge=1, le=86_400_000)]


class Table(BaseModel):
    """A table of the file: frozen, without room for unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EmbeddedEngine(Table):
    """The llama.cpp engine that ships with the product, in a worker process of its own."""

    kind: Literal["embedded"] = Field(description="Selects the embedded llama.cpp engine.")
    model_ref: str = Field(
        default="",
        max_length=REF_CHARS_MAX,
        description="GGUF file: a path, file:, hf: or https:; see models.md.",
    )
    model_path: str = Field(
        default="", description="GGUF file; relative to the configuration file."
    )
    model_id: str = Field(min_length=1, max_length=256, description="Name that jobs ask for.")
    slots: int = Field(default=1, ge=1, le=256, description="Generations at a time.")
    ctx_per_slot: int = Field(
        default=2048, ge=64, le=4_194_304, description="Context of one slot, tokens."
    )
    threads: int = Field(default=1, ge=1, le=1024, description="Threads of computation.")
    deterministic: bool = Field(
        default=False, description="One slot and no prompt cache: equal seeds give equal bytes."
    )
    gpu_layers: int = Field(
        default=0, ge=-1, le=10_000, description="Layers on the GPU; -1 means all."
    )

    kv_type: KvType = Field(
        default="f16",
        description="Type of cached keys and values; fewer bits take less memory, other output.",
    )
    model_digest: str = Field(
        default="",
        pattern=r"^(sha256:[0-9a-f]{64})?$",
        description="Digest that the file must have: sha256: and 64 hex digits.",
    )

    @model_validator(mode="after")
    def _one_model(self) -> "EmbeddedEngine":
        if bool(self.model_ref) == bool(self.model_path):
            raise ValueError("set model_ref, or model_path, and not both")
        if self.model_ref:
            parse_model_ref(self.model_ref)
        return self

    @model_validator(mode="after")
    def _one_slot(self) -> "EmbeddedEngine":
        if self.deterministic and self.slots != 1:
            raise ValueError("deterministic = true needs slots = 1")
        return self


PLACEHOLDERS = frozenset(
    {"port", "port_2", "port_3", "model_path", "model_id", "slots", "devices", "device_count"}
    | {"api_key", "pool_id", "tensor_split", "vram_claim_ratio"}
    | {"ctx_max", "ctx_per_slot", "ctx_total", "gpu_layers", "kv_type"}
)
"""What may stand in braces in a `launch` table."""

_PLACEHOLDER = re.compile(r"\{([a-z_][a-z0-9_]*)\}")


class LaunchTable(Table):
    """A server that the pool manager starts and stops itself. ORCH-3200."""

    command: tuple[Annotated[str, Field(max_length=65_536)], ...] = Field(
        min_length=1,
        max_length=256,
        description="Program and arguments, without a shell; may hold {port}, {model_path} ...",
    )
    env: dict[str, str] = Field(
        default={}, max_length=256, description="Its environment; may hold placeholders."
    )
    pass_env: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], ...] = Field(
        default=(),
        max_length=256,
        description="Variables that it gets from pool-managerd's environment, beside the usual.",
    )
    cwd: str = Field(default="", description="Directory to run in, relative to this file.")
    attach_timeout_ms: Milliseconds = Field(
        default=10_000, description="Longest wait for sense once its port is open."
    )
    stop_grace_ms: Milliseconds = Field(default=10_000, description="From SIGTERM to SIGKILL.")

    @model_validator(mode="after")
    def _known_placeholders(self) -> "LaunchTable":
        unknown = sorted(self.placeholders() - PLACEHOLDERS)
        if unknown:
            known = ", ".join(f"{{{name}}}" for name in sorted(PLACEHOLDERS))
            raise ValueError(f"unknown placeholder {{{unknown[0]}}}; there are: {known}")
        return self

    def placeholders(self) -> frozenset[str]:
        """Names in braces in the command and its environment."""
        texts = (*self.command, *self.env.values())
        return frozenset(name for text in texts for name in _PLACEHOLDER.findall(text))

    def uses(self, placeholder: str) -> bool:
        """True when the command or its environment holds it."""
        return placeholder in self.placeholders()


class AttachingEngine(Table):
    """An engine with an address: somebody else's, or with `launch` one that we start.

    `ADDRESS_KEY` is the key of the address, `OWN_ADDRESS` what stands there when we choose it.
    """

    ADDRESS_KEY: ClassVar[str] = "base_url"
    OWN_ADDRESS: ClassVar[str] = "http://127.0.0.1:{port}"

    model_id: str = Field(min_length=1, max_length=256, description="Name that jobs ask for.")
    api_key_env: str = Field(
        default="", description="Environment variable that holds the API key; empty: no key."
    )
    slots: int = Field(default=0, ge=0, le=256, description="Slots to use; 0: all it has.")
    model_ref: str = Field(
        default="",
        max_length=REF_CHARS_MAX,
        description="Model of a `launch` with {model_path}: a path, file:, hf: or https:.",
    )
    model_path: str = Field(
        default="",
        description="The server's model file or folder, if this host can read it; relative to "
        "the configuration file.",
    )
    launch: LaunchTable | None = Field(
        default=None, description="Starts the server; without it, it runs already."
    )
    api_key: SecretStr = Field(
        default=SecretStr(""), exclude=True, repr=False, description="(environment)"
    )

    @model_validator(mode="after")
    def _somewhere(self) -> "AttachingEngine":
        if not getattr(self, self.ADDRESS_KEY) and self.launch is None:
            raise ValueError(f"{self.ADDRESS_KEY} is needed, or a launch table")
        address = getattr(self, self.ADDRESS_KEY)
        if self.launch is not None and address and "{port}" not in address:
            raise ValueError(
                f"{self.ADDRESS_KEY} of a server that is launched must hold {{port}}, which is "
                f"chosen anew for each start; without the key it is {self.OWN_ADDRESS}"
            )
        return self

    @model_validator(mode="after")
    def _one_model(self) -> "AttachingEngine":
        if self.model_ref and self.model_path:
            raise ValueError("set model_ref, or model_path, and not both")
        takes_model = self.launch is not None and self.launch.uses("model_path")
        if self.model_ref and not takes_model:
            raise ValueError("model_ref needs a launch table whose command has {model_path}")
        if takes_model and not (self.model_ref or self.model_path):
            raise ValueError("launch uses {model_path}: set model_ref, or model_path")
        if self.model_ref:
            parse_model_ref(self.model_ref)
        return self


class HttpEngine(AttachingEngine):
    """An engine behind HTTP."""

    base_url: str = Field(
        default="",
        pattern=r"^(https?://.*)?$",
        description="Address, e.g. http://127.0.0.1:8080; with `launch` it may hold {port}.",
    )


class LlamaServerEngine(HttpEngine):
    """A llama.cpp server: one that runs already, or one that the pool manager launches."""

    kind: Literal["llama_server"] = Field(description="Attaches to a llama.cpp server.")
    deterministic: bool = Field(
        default=False, description="Needs a server with one slot; no prompt cache."
    )
    ctx_per_slot: int = Field(
        default=0,
        ge=0,
        le=4_194_304,
        description="With `launch`: context of one slot, tokens; 0: no estimate of its memory.",
    )
    gpu_layers: int = Field(
        default=-1, ge=-1, le=10_000, description="With `launch`: layers on the GPU; -1: all."
    )
    kv_type: KvType = Field(
        default="f16", description="With `launch`: type of cached keys and values."
    )
    model_digest: str = Field(default="", description="Digest of the weights, if known.")
    silence_timeout_ms: Milliseconds = Field(
        default=300_000, description="Longest silence in a stream."
    )

    @model_validator(mode="after")
    def _ours_to_say(self) -> "LlamaServerEngine":
        stated = sorted({"ctx_per_slot", "gpu_layers", "kv_type"} & self.model_fields_set)
        if stated and self.launch is None:
            raise ValueError(f"{stated[0]} is for a server that is launched; this one runs already")
        return self


class OpenAiEngine(HttpEngine):
    """A server that speaks OpenAI's API: one that runs already, or one that is launched."""

    kind: Literal["openai"] = Field(description="Attaches to a server that speaks OpenAI's API.")
    flavor: FlavorName = Field(description="What kind of server it is; see engines.md.")
    served_model: str = Field(
        default="", max_length=1024, description="The server's name of the model; empty: the same."
    )
    slots: int = Field(
        default=0, ge=0, le=4096, description="Generations at a time; 0: what the server says."
    )
    ctx_max: int = Field(
        default=0, ge=0, le=4_194_304, description="Context, tokens; 0: what the server says."
    )
    deterministic: bool = Field(
        default=False, description="Equal seeds give equal bytes; see engines.md for each flavor."
    )
    engine_version: str = Field(
        default="", max_length=128, description="Where the server does not tell its version."
    )
    model_digest: str = Field(default="", description="Digest of the weights, if known.")
    silence_timeout_ms: Milliseconds = Field(
        default=300_000, description="Longest silence in a stream."
    )


class OllamaEngine(HttpEngine):
    """A model of an Ollama server: one that runs already, or one that is launched."""

    kind: Literal["ollama"] = Field(description="Attaches to Ollama's native API.")
    base_url: str = Field(
        default="",
        pattern=r"^(https?://.*)?$",
        description="Address; empty: http://127.0.0.1:11434; with `launch` it may hold {port}.",
    )
    ollama_model: str = Field(
        default="", max_length=1024, description="Ollama's name of the model; empty: the same."
    )
    slots: int = Field(
        default=1, ge=1, le=256, description="Generations at a time; OLLAMA_NUM_PARALLEL allows it."
    )
    ctx_max: int = Field(
        default=4096, ge=64, le=4_194_304, description="Context of a generation, tokens (num_ctx)."
    )
    keep_alive: str = Field(
        default="-1",
        pattern=r"^-?[0-9]+(ms|[smh])?$",
        description="How long the model stays loaded, e.g. 10m; -1: for good.",
    )
    silence_timeout_ms: Milliseconds = Field(
        default=300_000, description="Longest silence in a stream."
    )

    @model_validator(mode="before")
    @classmethod
    def _usual_port(cls, table: object) -> object:
        if isinstance(table, dict) and not table.get("base_url") and not table.get("launch"):
            return {**table, "base_url": "http://127.0.0.1:11434"}
        return table


class MockScriptTable(Table):
    """What the mock engine does with one generation, unless the request says otherwise."""

    token_count: int = Field(default=16, ge=0, le=10_000_000, description="Tokens until EOS.")
    first_token_delay_ms: int = Field(
        default=0, ge=0, le=86_400_000, description="Wait before the first token."
    )
    token_interval_ms: int = Field(
        default=0, ge=0, le=86_400_000, description="Wait before each later token."
    )
    multi_byte: bool = Field(default=False, description="Characters of two to four bytes.")
    fail_after_tokens: int = Field(default=-1, ge=-1, description="Fails then; -1: never.")
    failure: Literal[
        "engine_died",
        "engine_error",
        "invalid_request",
        "context_overflow",
        "device_out_of_memory",
        "host_out_of_memory",
    ] = Field(default="engine_error", description="How it fails.")
    stall_after_tokens: int = Field(default=-1, ge=-1, description="Goes silent then; -1: never.")
    die_after_tokens: int = Field(default=-1, ge=-1, description="The engine dies; -1: never.")
    cancel_unconfirmed: bool = Field(
        default=False, description="A cancelled generation keeps its slot."
    )


class MockEngine(Table):
    """An engine without a model, for tests and demonstrations."""

    kind: Literal["mock"] = Field(description="Selects the mock engine.")
    model_id: str = Field(
        default="mock", min_length=1, max_length=256, description="Name that jobs ask for."
    )
    slots: int = Field(default=1, ge=1, le=4096, description="Generations at a time.")
    ctx_max: int = Field(default=4096, ge=1, le=4_194_304, description="Context of a slot, tokens.")
    preload_shortfalls: tuple[str, ...] = Field(
        default=(), max_length=16, description="The start fails and names them."
    )
    script: MockScriptTable = Field(default=MockScriptTable(), description="One generation.")


class TritonEngine(AttachingEngine):
    """A model on a Triton server: one that runs already, or one that is launched."""

    ADDRESS_KEY: ClassVar[str] = "address"
    OWN_ADDRESS: ClassVar[str] = "127.0.0.1:{port}"

    kind: Literal["triton"] = Field(description="Attaches to a model on a Triton server.")
    address: str = Field(
        default="",
        pattern=r"^([^/\s]+:(\d+|\{port\}))?$",
        description="Its gRPC endpoint, e.g. 127.0.0.1:8001; with `launch` it may hold {port}.",
    )
    model: str = Field(min_length=1, max_length=256, description="Name in the model repository.")
    model_version: str = Field(default="", description="Version; empty: the server's choice.")
    slots: int = Field(ge=1, le=4096, description="Generations at a time; Triton tells no limit.")
    ctx_max: int = Field(
        ge=1, le=16_777_216, description="Context of a slot, tokens; Triton does not tell it."
    )
    profile: Literal["plain", "vllm", "tensorrt_llm"] = Field(
        default="plain", description="Family of the model: names and use of its tensors."
    )
    tensors: dict[str, str] = Field(
        default={}, max_length=18, description="Names of tensors that differ, by field."
    )
    ignore_seed: bool = Field(default=False, description="Serves a model that takes no seed.")
    deterministic: bool = Field(
        default=False, description="Equal seeds give equal bytes, by your word; needs one slot."
    )
    load: bool = Field(
        default=False, description="Loads the model, on a server with explicit model control."
    )
    model_digest: str = Field(default="", description="Digest of the weights, if known.")
    metrics_url: str = Field(
        default="",
        pattern=r"^(https?://.+)?$",
        description="Triton's metrics: they confirm cancels.",
    )
    busy_metric: str = Field(
        default="", description="Gauge of requests at work, if not the profile's."
    )
    cancel_settle_ms: int = Field(
        default=200, ge=0, le=60_000, description="Wait after a cancel without metrics_url."
    )
    silence_timeout_ms: Milliseconds = Field(
        default=300_000, description="Longest silence in a stream."
    )
    tls: bool = Field(default=False, description="Speaks TLS; trusts gRPC's list of authorities.")
    api_key_name: str = Field(
        default="",
        pattern=r"^[a-z0-9_.-]*$",
        description="Metadata that carries it, e.g. triton-grpc-protocol-infer-key.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "TritonEngine":
        if self.deterministic and self.slots != 1:
            raise ValueError("deterministic = true needs slots = 1")
        if self.api_key_env and not self.api_key_name:
            raise ValueError("api_key_env needs api_key_name")
        if self.metrics_url and self.profile == "plain" and not self.busy_metric:
            raise ValueError("metrics_url needs busy_metric with profile plain")
        unknown = sorted(self.tensors.keys() - {*INPUT_FIELDS, *OUTPUT_FIELDS})
        if unknown:
            raise ValueError(f"tensors.{unknown[0]}: no such field")
        return self


EngineTable = Annotated[
    EmbeddedEngine | LlamaServerEngine | OpenAiEngine | OllamaEngine | MockEngine | TritonEngine,
    Field(discriminator="kind"),
]
