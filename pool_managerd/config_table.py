"""What every table of the configuration is."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Milliseconds = Annotated[int, Field(ge=1, le=86_400_000)]


class Table(BaseModel):
    """A table of the file: frozen, without room for unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
