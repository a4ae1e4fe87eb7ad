"""Configuration of engines: one table for each kind of adapter."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from pool_managerd.config.launch import AttachingTable, HttpTable, whole_url
from pool_managerd.config.llama import (
    NO_DRAFT,
    EmbeddedTable,
    LlamaCppSettings,
    LlamaServerTable,
    check_launch_files,
)
from pool_managerd.config.table import Milliseconds, Table
from pool_managerd.engines.openai_flavors import FlavorName
from pool_managerd.engines.triton_profiles import INPUT_FIELDS, OUTPUT_FIELDS


class OpenAiTable(HttpTable, LlamaCppSettings):
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
    model_digest: str = Field(
        default="", max_length=256, description="Digest of the weights, if known."
    )
    silence_timeout_ms: Milliseconds = Field(
        default=300_000, description="Longest silence in a stream."
    )

    @property
    def llama_cpp(self) -> bool:
        """It is a llama.cpp server."""
        return self.flavor == "llama_cpp"

    @property
    def slot_tokens(self) -> int:
        """Context of a slot that it is launched with; 0 where that is not stated."""
        return self.ctx_max

    @model_validator(mode="after")
    def _llama_cpp_alone(self) -> "OpenAiTable":
        stated = sorted(LlamaCppSettings.model_fields.keys() & self.model_fields_set)
        if stated and (self.launch is None or not self.llama_cpp):
            raise ValueError(f'{stated[0]} is for flavor = "llama_cpp" with a launch table')
        check_launch_files(self, self.launch)
        if self.deterministic and self.draft_model_path:
            raise ValueError(NO_DRAFT)
        return self


class OllamaTable(HttpTable):
    """A model of an Ollama server: one that runs already, or one that is launched."""

    kind: Literal["ollama"] = Field(description="Attaches to Ollama's native API.")
    base_url: Annotated[str, AfterValidator(whole_url)] = Field(
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


class MockTable(Table):
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


class TritonTable(AttachingTable):
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
    model_digest: str = Field(
        default="", max_length=256, description="Digest of the weights, if known."
    )
    metrics_url: Annotated[str, AfterValidator(whole_url)] = Field(
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
    def _fits_together(self) -> "TritonTable":
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
    EmbeddedTable | LlamaServerTable | OpenAiTable | OllamaTable | MockTable | TritonTable,
    Field(discriminator="kind"),
]
