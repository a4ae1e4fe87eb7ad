"""Configuration of engines that are llama.cpp: the embedded one, and its server."""

from typing import Literal

from pydantic import Field, model_validator

from pool_managerd.config.launch import HttpTable, LaunchTable
from pool_managerd.config.table import Milliseconds, Table
from pool_managerd.core.model_ref import REF_CHARS_MAX, parse_model_ref

KvType = Literal["f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


class EmbeddedTable(Table):
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
    draft_model_path: str = Field(
        default="", description="GGUF file of a small model of the same vocabulary: drafts tokens."
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
    def _one_model(self) -> "EmbeddedTable":
        if bool(self.model_ref) == bool(self.model_path):
            raise ValueError("set model_ref, or model_path, and not both")
        if self.model_ref:
            parse_model_ref(self.model_ref)
        return self

    @model_validator(mode="after")
    def _one_slot(self) -> "EmbeddedTable":
        if self.deterministic and self.slots != 1:
            raise ValueError("deterministic = true needs slots = 1")
        if self.deterministic and self.draft_model_path:
            raise ValueError(NO_DRAFT)
        return self


class LlamaCppSettings(Table):
    """What a llama.cpp server is launched with, and what its memory is judged by."""

    gpu_layers: int = Field(
        default=-1, ge=-1, le=10_000, description="With `launch`: layers on the GPU; -1: all."
    )
    kv_type: KvType = Field(
        default="f16", description="With `launch`: type of cached keys and values."
    )
    mmproj_path: str = Field(
        default="",
        description="With `launch`: GGUF file of a projector, for {mmproj_path}; counts as memory.",
    )
    draft_model_path: str = Field(
        default="",
        description="With `launch`: GGUF file that drafts tokens, for {draft_model_path}.",
    )


LAUNCH_FILES = ("mmproj_path", "draft_model_path")
"""Settings that name files which a launched llama.cpp loads besides its model."""

NO_DRAFT = "deterministic = true goes without draft_model_path: drafts change the last bits"


def check_launch_files(engine: LlamaCppSettings, launch: LaunchTable | None) -> None:
    """Refuses a file that the command does not take: its memory would be counted for nothing."""
    for name in LAUNCH_FILES:
        if getattr(engine, name) and launch is not None and not launch.uses(name):
            raise ValueError(f"{name} is set, but the command of launch has no {{{name}}}")


class LlamaServerTable(HttpTable, LlamaCppSettings):
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
    model_digest: str = Field(
        default="", max_length=256, description="Digest of the weights, if known."
    )
    silence_timeout_ms: Milliseconds = Field(
        default=300_000, description="Longest silence in a stream."
    )

    @property
    def llama_cpp(self) -> bool:
        """It is one."""
        return True

    @property
    def slot_tokens(self) -> int:
        """Context of a slot that it is launched with; 0 where that is not stated."""
        return self.ctx_per_slot

    @model_validator(mode="after")
    def _ours_to_say(self) -> "LlamaServerTable":
        stated = sorted({"ctx_per_slot", *LlamaCppSettings.model_fields} & self.model_fields_set)
        if stated and self.launch is None:
            raise ValueError(f"{stated[0]} is for a server that is launched; this one runs already")
        check_launch_files(self, self.launch)
        if self.deterministic and self.draft_model_path:
            raise ValueError(NO_DRAFT)
        return self
