"""What every table of settings is made of: its base, and the types that several share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

DAY_MS = 86_400_000
LIMIT_MAX = 10**12

Milliseconds = Annotated[int, Field(ge=1, le=DAY_MS)]


class Table(BaseModel):
    """A table of keys: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)
