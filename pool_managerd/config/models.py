"""Configuration of model files: where they are, and what may be fetched."""

from typing import Annotated

from pydantic import Field, SecretStr

from pool_managerd.config.table import Live, Milliseconds, Table


class ModelsTable(Table):
    """Where model files are."""

    directory: str = Field(
        default="", description="Folder of relative references; empty: the configuration file's."
    )
    cache_directory: str = Field(
        default="~/.cache/llama-orch/models",
        min_length=1,
        description="Where fetched files go; relative to this file.",
    )


_HostPattern = Annotated[str, Field(pattern=r"^(\*\.)?[A-Za-z0-9.:-]{1,253}$")]


class OutboundTable(Table):
    """What may be fetched from elsewhere. ORCH-3080, ORCH-3206."""

    enabled: Live[bool] = Field(default=False, description="Whether models may be fetched at all.")
    policy: str = Field(
        default="patterns",
        min_length=1,
        max_length=128,
        description="Who decides, if so: `patterns`, by the two lists, or an installed plug-in.",
    )
    allow: Live[tuple[_HostPattern, ...]] = Field(
        default=("huggingface.co", "*.huggingface.co", "*.hf.co"),
        max_length=256,
        description="Hosts to fetch from; `*.` stands for everything below a name.",
    )
    deny: Live[tuple[_HostPattern, ...]] = Field(
        default=(), max_length=256, description="Hosts never to fetch from; goes before `allow`."
    )
    file_bytes_max: Live[int] = Field(
        default=1 << 40, ge=1, le=1 << 50, description="Largest file that is fetched."
    )
    silence_timeout_ms: Live[Milliseconds] = Field(
        default=30_000, description="Longest silence of a server, and longest wait for one."
    )
    fetch_timeout_ms: Live[Milliseconds] = Field(
        default=43_200_000,
        description="Longest fetch of one model, and longest reading of a model file.",
    )
    hf_endpoint: Live[str] = Field(
        default="https://huggingface.co",
        pattern=r"^https?://[^/?#@\s]+/?$",
        description="The Hugging Face Hub, or a mirror of it.",
    )
    hf_token_env: Live[str] = Field(
        default="HF_TOKEN",
        description="Environment variable with the token for gated models; may be unset.",
    )
    hf_token: Live[SecretStr] = Field(
        default=SecretStr(""), exclude=True, repr=False, description="(environment)"
    )
