# SPDX-License-Identifier: Apache-2.0
"""The catalog for blocking code: `AsyncCatalog` on the client's event-loop thread."""

from collections.abc import Callable, Iterator, Sequence

from llamaorch_client.catalog import AsyncCatalog
from llamaorch_client.loop_thread import LoopThread
from llamaorch_client.model_catalog import CatalogModel, KeptModel, ModelState, Verification
from llamaorch_client.pages import PAGE_SIZE


class SyncCatalog:
    """The catalog of one orchestrator, with the methods and errors of `AsyncCatalog`."""

    def __init__(self, catalog: AsyncCatalog, caller: Callable[[], LoopThread]) -> None:
        self._catalog = catalog
        self._caller = caller

    def register(self, model: CatalogModel, *, correlation_id: str | None = None) -> KeptModel:
        """Adds a model; returns once that is durable."""
        work = self._catalog.register(model, correlation_id=correlation_id)
        return self._caller().call(work)

    def get(self, name: str, *, correlation_id: str | None = None) -> CatalogModel:
        """Returns a model by its id or an alias."""
        return self._caller().call(self._catalog.get(name, correlation_id=correlation_id))

    def list(
        self,
        states: Sequence[ModelState] = (),
        *,
        page_size: int = PAGE_SIZE,
        correlation_id: str | None = None,
    ) -> Iterator[CatalogModel]:
        """Yields models by id, page by page as they are asked for."""
        caller = self._caller()
        models = self._catalog.list(states, page_size=page_size, correlation_id=correlation_id)

        async def following() -> CatalogModel | None:
            return await anext(models, None)

        while (model := caller.call(following())) is not None:
            yield model

    def update(
        self,
        model: CatalogModel,
        fields: Sequence[str] | None = None,
        *,
        correlation_id: str | None = None,
    ) -> KeptModel:
        """Changes what is stated of a model: these fields of it, None for all."""
        work = self._catalog.update(model, fields, correlation_id=correlation_id)
        return self._caller().call(work)

    def delete(
        self,
        model_id: str,
        *,
        revision: int = 0,
        force: bool = False,
        correlation_id: str | None = None,
    ) -> None:
        """Forgets a model; its jobs run on."""
        work = self._catalog.delete(
            model_id, revision=revision, force=force, correlation_id=correlation_id
        )
        self._caller().call(work)

    def verify(self, name: str, *, correlation_id: str | None = None) -> Verification:
        """Compares a model with what its pools report, and checks its signature."""
        return self._caller().call(self._catalog.verify(name, correlation_id=correlation_id))

    def retire(
        self,
        model_id: str,
        *,
        grace_s: float | None = None,
        replaced_by: str = "",
        revision: int = 0,
        correlation_id: str | None = None,
    ) -> CatalogModel:
        """Lets a model take no more jobs; those that were accepted go on."""
        work = self._catalog.retire(
            model_id,
            grace_s=grace_s,
            replaced_by=replaced_by,
            revision=revision,
            correlation_id=correlation_id,
        )
        return self._caller().call(work)

    def activate(
        self, model_id: str, *, revision: int = 0, correlation_id: str | None = None
    ) -> CatalogModel:
        """Lets a retired model take jobs again."""
        work = self._catalog.activate(model_id, revision=revision, correlation_id=correlation_id)
        return self._caller().call(work)
