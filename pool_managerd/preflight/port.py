"""What a pool asks before and after its engine starts."""

from dataclasses import dataclass
from typing import Protocol

from pool_managerd.config.schema import PoolTable
from pool_managerd.engines.port import EngineInfo


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the engine is started with.

    The pool's table with its model found, and a reference for engines that choose their model
    themselves.
    """

    table: PoolTable
    model_ref: str


class Preflight(Protocol):
    """What a pool asks before and after its engine starts."""

    async def model(self, table: PoolTable, model_ref: str) -> Prepared:
        """Finds the model, fetching it if need be; may take hours.

        Raises:
            PreloadError: naming what is missing.
        """
        ...

    async def memory(self, table: PoolTable) -> None:
        """Waits for memory and claims it.

        Raises:
            PreloadError: naming every memory that is too small.
        """
        ...

    async def loaded(self, table: PoolTable, info: EngineInfo) -> None:
        """Notes what a started engine took; may wait for a reading of its devices."""
        ...

    def gone(self, pool_id: str) -> None:
        """Notes that the pool's engine has ended. Idempotent."""
        ...

    def doing(self, pool_id: str) -> str:
        """What a pool that starts waits for, for people; empty when it is its engine."""
        ...


class NoPreflight:
    """Judges nothing: for hosts whose engines take no memory, as in simulations."""

    async def model(self, table: PoolTable, model_ref: str) -> Prepared:
        """Leaves everything as it is."""
        return Prepared(table, model_ref)

    async def memory(self, table: PoolTable) -> None:
        """Finds that everything fits."""

    async def loaded(self, table: PoolTable, info: EngineInfo) -> None:
        """Notes nothing."""

    def gone(self, pool_id: str) -> None:
        """Notes nothing."""

    def doing(self, pool_id: str) -> str:
        """Nothing is waited for."""
        return ""
