# SPDX-License-Identifier: Apache-2.0
"""Calls of the catalog: `AsyncClient.catalog`, and `Client.catalog` for blocking code."""

from collections.abc import AsyncGenerator, Callable, Sequence

from google.protobuf.field_mask_pb2 import FieldMask

from llamaorch.orchestrator.v1 import catalog_service_pb2 as pb
from llamaorch_client import wire_catalog
from llamaorch_client.model_catalog import CatalogModel, KeptModel, ModelState, Verification
from llamaorch_client.pages import PAGE_SIZE, Pages
from llamaorch_client.transport import Transport


class AsyncCatalog:
    """The catalog of one orchestrator. Arguments and errors are as those of `AsyncClient`.

    Changes take a token of an administrator where the server asks for tokens.
    """

    def __init__(self, transport: Callable[[], Transport]) -> None:
        self._transport = transport

    async def register(
        self, model: CatalogModel, *, correlation_id: str | None = None
    ) -> KeptModel:
        """Adds a model; returns once that is durable (ORCH-3031).

        Raises:
            DuplicateError: a name is taken, by this model with other words or by another one.
        """
        transport = self._transport()
        request = pb.RegisterModelRequest(model=wire_catalog.model_to_wire(model))
        answer = await transport.unary(
            transport.catalog.RegisterModel, request, correlation_id=correlation_id
        )
        message = answer.message
        return KeptModel(wire_catalog.model(message.model), tuple(message.warnings))

    async def get(self, name: str, *, correlation_id: str | None = None) -> CatalogModel:
        """Returns a model by its id or an alias. Raises `NotFoundError`."""
        transport = self._transport()
        answer = await transport.unary(
            transport.catalog.GetModel,
            pb.GetModelRequest(model_id=name),
            correlation_id=correlation_id,
        )
        return wire_catalog.model(answer.message.model)

    async def list(
        self,
        states: Sequence[ModelState] = (),
        *,
        page_size: int = PAGE_SIZE,
        correlation_id: str | None = None,
    ) -> AsyncGenerator[CatalogModel, None]:
        """Yields models by id, page by page as they are asked for."""
        transport, pages = self._transport(), Pages("models")
        wanted = [pb.ModelState.Value(f"MODEL_STATE_{state.value}") for state in states]
        while pages.more:
            request = pb.ListModelsRequest(
                page_size=page_size, page_token=pages.token, states=wanted
            )
            answer = await transport.unary(
                transport.catalog.ListModels, request, correlation_id=correlation_id
            )
            for message in answer.message.models:
                yield wire_catalog.model(message)
            pages.turn(answer.message.next_page_token)

    async def update(
        self,
        model: CatalogModel,
        fields: Sequence[str] | None = None,
        *,
        correlation_id: str | None = None,
    ) -> KeptModel:
        """Changes what is stated of a model: these fields of it, None for all (HME-031).

        Raises:
            CatalogError: REVISION_CONFLICT, where `model.revision` is set and not the present one;
                also when an attempt whose answer was lost has made the change.
        """
        transport = self._transport()
        request = pb.UpdateModelRequest(model=wire_catalog.model_to_wire(model))
        if fields is not None:
            request.update_mask.CopyFrom(FieldMask(paths=fields))
        answer = await transport.unary(
            transport.catalog.UpdateModel, request, correlation_id=correlation_id
        )
        message = answer.message
        return KeptModel(wire_catalog.model(message.model), tuple(message.warnings))

    async def delete(
        self,
        model_id: str,
        *,
        revision: int = 0,
        force: bool = False,
        correlation_id: str | None = None,
    ) -> None:
        """Forgets a model; its jobs run on.

        Raises:
            CatalogError: MODEL_IN_USE without `force`, while it is ACTIVE and jobs of it are live.
            NotFoundError: there is none, or an attempt whose answer was lost has deleted it.
        """
        transport = self._transport()
        await transport.unary(
            transport.catalog.DeleteModel,
            pb.DeleteModelRequest(model_id=model_id, revision=revision, force=force),
            correlation_id=correlation_id,
        )

    async def verify(self, name: str, *, correlation_id: str | None = None) -> Verification:
        """Compares a model with what its pools report, and checks its signature (ORCH-3037)."""
        transport = self._transport()
        answer = await transport.unary(
            transport.catalog.VerifyModel,
            pb.VerifyModelRequest(model_id=name),
            correlation_id=correlation_id,
        )
        return wire_catalog.verification(answer.message)

    async def retire(
        self,
        model_id: str,
        *,
        grace_s: float | None = None,
        replaced_by: str = "",
        revision: int = 0,
        correlation_id: str | None = None,
    ) -> CatalogModel:
        """Lets a model take no more jobs; those that were accepted go on.

        After `grace_s`, None for the server's default, its pools take no more work, and what waits
        for it fails with MODEL_RETIRED.
        """
        request = pb.SetModelStateRequest(
            model_id=model_id,
            state=pb.MODEL_STATE_RETIRED,
            revision=revision,
            replaced_by=replaced_by,
        )
        if grace_s is not None:
            request.grace.FromMilliseconds(round(grace_s * 1000))
        return await self._set_state(request, correlation_id)

    async def activate(
        self, model_id: str, *, revision: int = 0, correlation_id: str | None = None
    ) -> CatalogModel:
        """Lets a retired model take jobs again."""
        request = pb.SetModelStateRequest(
            model_id=model_id, state=pb.MODEL_STATE_ACTIVE, revision=revision
        )
        return await self._set_state(request, correlation_id)

    async def _set_state(
        self, request: pb.SetModelStateRequest, correlation_id: str | None
    ) -> CatalogModel:
        transport = self._transport()
        answer = await transport.unary(
            transport.catalog.SetModelState, request, correlation_id=correlation_id
        )
        return wire_catalog.model(answer.message.model)
