"""Settings of the catalog of models. ORCH-3031, ORCH-3037."""

from typing import Annotated, Literal

from pydantic import Field

from orchestrator_core.auth.tokens import NAME_PATTERN
from orchestrator_core.config.table import Live, Table


class TrustedKeyTable(Table):
    """A key whose signatures of digests are trusted."""

    public_key: str = Field(
        # The base64 of an Ed25519 key as RFC 8410 encodes it, 44 bytes that all begin alike.
        pattern=r"^MCowBQYDK2VwAyEA[A-Za-z0-9+/]{43}=$",
        description="Ed25519 key: the line between BEGIN and END PUBLIC KEY of its PEM file.",
    )


class CatalogTable(Table):
    """What is asked of models and digests; the catalog itself is in the journal."""

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
    retire_grace_ms: Live[int] = Field(
        default=3_600_000,
        ge=0,
        le=30 * 86_400_000,
        description="How long pools serve a retired model's accepted jobs, unless it is said.",
    )
    trusted_keys: Live[dict[Annotated[str, Field(pattern=NAME_PATTERN)], TrustedKeyTable]] = Field(
        default={},
        max_length=64,
        description="Keys that sign digests of models, by name. Needs the extra `signatures`.",
    )
