"""What every table of settings is made of: its base, and the types that several share."""

from typing import Annotated, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field

DAY_MS = 86_400_000
LIMIT_MAX = 10**12

T = TypeVar("T")
LIVE: Final = "changes without a restart"
HIDDEN: Final = "shown by its first characters"

Milliseconds = Annotated[int, Field(ge=1, le=DAY_MS)]

# Of a table of tables it is said where it stands, and holds for all below.
Live = Annotated[T, LIVE]
Hidden = Annotated[T, HIDDEN]


class Table(BaseModel):
    """A table of keys: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)
