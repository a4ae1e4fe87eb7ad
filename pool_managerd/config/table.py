"""What every table of the configuration is."""

from typing import Annotated, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")
LIVE: Final = "changes without a restart"
HIDDEN: Final = "shown by its first characters"

Milliseconds = Annotated[int, Field(ge=1, le=86_400_000)]

# Of a table of tables it is said where it stands, and holds for all below.
Live = Annotated[T, LIVE]
Hidden = Annotated[T, HIDDEN]


class Table(BaseModel):
    """A table of the file: frozen, without room for unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
