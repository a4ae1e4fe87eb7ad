"""Settings of the catalog of models."""

from typing import Annotated, Literal

from pydantic import Field

from orchestrator_core.auth.tokens import NAME_PATTERN
from orchestrator_core.config_table import Live, Table

# The base64 of an Ed25519 key as RFC 8410 encodes it, 44 bytes that all begin alike.
PublicKey = Annotated[str, Field(pattern=r"^MCowBQYDK2VwAyEA[A-Za-z0-9+/]{43}=$")]


class CatalogTable(Table):
    """The catalog of models, which itself is in the journal. ORCH-3031, ORCH-3037."""

    required: Live[bool] = Field(
        default=False, description="Refuse jobs of models that are not in the catalog."
    )
    unknown_digest: Live[Literal["allow", "refuse"]] = Field(
        default="allow",
        description="Whether a pool that reports no digest serves a model that has one in the "
        "catalog. One that reports another never does.",
    )
    models_max: Live[int] = Field(
        default=1_000, ge=1, le=100_000, description="Models that the catalog may have."
    )
    retire_grace_ms: int = Field(
        default=3_600_000,
        ge=0,
        le=30 * 86_400_000,
        description="How long pools serve a retired model's accepted jobs, unless it is said.",
    )
    trusted_keys: dict[Annotated[str, Field(pattern=NAME_PATTERN)], PublicKey] = Field(
        default={},
        max_length=64,
        description="Ed25519 keys that sign digests of models: the line between BEGIN and END "
        "PUBLIC KEY of its PEM file. Needs the extra `signatures`.",
    )
