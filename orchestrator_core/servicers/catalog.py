"""CatalogService: the models that jobs may name. ORCH-3031, ORCH-3037, HME-031."""

from collections.abc import Callable

import grpc

from llamaorch.orchestrator.v1 import catalog_service_pb2 as pb
from orchestrator_core.config.catalog import CatalogTable
from orchestrator_core.core.catalog import unknown_model
from orchestrator_core.core.catalog_model import CatalogEntry, ModelCard, ModelState
from orchestrator_core.core.events import ModelDeleted, ModelPut, ModelStateSet
from orchestrator_core.core.outcome import FieldViolation, Reason, Refusal
from orchestrator_core.errors import RefusalError
from orchestrator_core.runtime import Runtime
from orchestrator_core.servicers import rpc
from orchestrator_core.servicers.model_findings import Findings, find
from orchestrator_core.servicers.orchestrator import PAGE_DEFAULT, PAGE_MAX
from orchestrator_core.servicers.paging import fitting, name_after
from orchestrator_core.servicers.signatures import Signatures, SignatureVerdict
from orchestrator_core.telemetry.telemetry import Telemetry
from orchestrator_core.wire.catalog import (
    DIGEST_VERDICT_TO_WIRE,
    STATE_FROM_WIRE,
    STATE_TO_WIRE,
    entry_to_proto,
    masked,
    parse_card,
)
from orchestrator_core.wire.limits import WireLimits

SERVICE = "llamaorch.orchestrator.v1.CatalogService"
GRACE_MS_MAX = 30 * 86_400_000
NAME_CHARS_MAX = 256

_SIGNATURE_TO_WIRE = {
    SignatureVerdict.VERIFIED: pb.SIGNATURE_VERDICT_VERIFIED,
    SignatureVerdict.MISSING: pb.SIGNATURE_VERDICT_MISSING,
    SignatureVerdict.UNCHECKED: pb.SIGNATURE_VERDICT_UNCHECKED,
    SignatureVerdict.INVALID: pb.SIGNATURE_VERDICT_INVALID,
}


class CatalogServicer:
    """Translates between the wire and the catalog of the core.

    What a signature is worth is decided here: the core takes the operator's word.
    """

    def __init__(
        self, runtime: Runtime, telemetry: Telemetry, table: CatalogTable, signatures: Signatures
    ) -> None:
        self._runtime = runtime
        self._telemetry = telemetry
        self._signatures = signatures
        self._grace_ms = table.retire_grace_ms
        self._limits = WireLimits()

    def reconfigure(self, table: CatalogTable, signatures: Signatures) -> None:
        """Other settings from now on; graces that have begun stay as they are."""
        self._signatures = signatures
        self._grace_ms = table.retire_grace_ms

    def handlers(self) -> grpc.GenericRpcHandler:
        """All methods of the service."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "RegisterModel": rpc.unary(self.register_model, pb.RegisterModelRequest),
                "GetModel": rpc.unary(self.get_model, pb.GetModelRequest),
                "ListModels": rpc.unary(self.list_models, pb.ListModelsRequest),
                "UpdateModel": rpc.unary(self.update_model, pb.UpdateModelRequest),
                "DeleteModel": rpc.unary(self.delete_model, pb.DeleteModelRequest),
                "VerifyModel": rpc.unary(self.verify_model, pb.VerifyModelRequest),
                "SetModelState": rpc.unary(self.set_model_state, pb.SetModelStateRequest),
            },
        )

    async def register_model(
        self, request: pb.RegisterModelRequest, _: rpc.Context
    ) -> pb.RegisterModelResponse:
        """Adds a model; answers once that is durable."""
        card = self._card(request.model)
        found = await self._put(card.model_id, lambda to: ModelPut(card, 0, to))
        return pb.RegisterModelResponse(model=self._view(found.entry), warnings=self._warned(found))

    async def get_model(self, request: pb.GetModelRequest, _: rpc.Context) -> pb.GetModelResponse:
        """Returns one model, once what is told of it is durable."""
        await self._runtime.catalog_settled()
        return pb.GetModelResponse(model=self._view(self._entry(request.model_id)))

    async def list_models(
        self, request: pb.ListModelsRequest, _: rpc.Context
    ) -> pb.ListModelsResponse:
        """Lists models by id. O(models)."""
        after = name_after(request.page_token)
        await self._runtime.catalog_settled()
        size = min(request.page_size or PAGE_DEFAULT, PAGE_MAX)
        states = set(request.states)
        following = sorted(
            model_id
            for model_id, entry in self._runtime.core.catalog.entries.items()
            if model_id > after and (not states or STATE_TO_WIRE[entry.state] in states)
        )
        listed = fitting(self._view(self._entry(model_id)) for model_id in following[:size])
        more = len(following) > len(listed)
        return pb.ListModelsResponse(
            models=listed, next_page_token=following[len(listed) - 1] if more else ""
        )

    async def update_model(
        self, request: pb.UpdateModelRequest, _: rpc.Context
    ) -> pb.UpdateModelResponse:
        """Changes a model; answers once that is durable, and holds for the next job. HME-031."""
        asked = request.model

        def change(reply_to: int) -> ModelPut:
            # Made in the step that applies it, so that nobody's change in between is undone.
            entry = self._runtime.core.catalog.entries.get(asked.model_id)
            if entry is None:
                raise RefusalError(unknown_model(self._runtime.core.catalog, asked.model_id))
            stated: pb.CatalogModel | Refusal = asked
            if request.HasField("update_mask"):
                stated = masked(entry.card, asked, request.update_mask)
            if isinstance(stated, Refusal):
                raise RefusalError(stated)
            return ModelPut(self._card(stated), asked.revision or entry.revision, reply_to)

        found = await self._put(asked.model_id, change)
        return pb.UpdateModelResponse(model=self._view(found.entry), warnings=self._warned(found))

    async def delete_model(
        self, request: pb.DeleteModelRequest, _: rpc.Context
    ) -> pb.DeleteModelResponse:
        """Forgets a model; answers once that is durable."""
        asked = request
        await self._runtime.change_model(
            asked.model_id,
            lambda to: ModelDeleted(asked.model_id, asked.revision, asked.force, to),
        )
        return pb.DeleteModelResponse()

    async def verify_model(
        self, request: pb.VerifyModelRequest, _: rpc.Context
    ) -> pb.VerifyModelResponse:
        """Compares a model with what its pools report. ORCH-3037."""
        await self._runtime.catalog_settled()
        found = self._found(self._entry(request.model_id))
        self._telemetry.model_verified(
            found.entry.card.model_id,
            [(pool.engine, pool.verdict) for pool in found.pools],
            found.verified,
            self._runtime.clock.now_ms(),
        )
        return pb.VerifyModelResponse(
            model_id=found.entry.card.model_id,
            digest=found.entry.card.digest,
            pools=[
                pb.PoolVerdict(
                    pool_id=pool.pool_id,
                    engine=pool.engine,
                    reported_digest=pool.reported,
                    verdict=DIGEST_VERDICT_TO_WIRE[pool.verdict],
                )
                for pool in found.pools
            ],
            signature=_SIGNATURE_TO_WIRE[found.signature.verdict],
            signed_by=found.signature.signed_by,
            verified=found.verified,
            warnings=self._warned(found),
        )

    async def set_model_state(
        self, request: pb.SetModelStateRequest, _: rpc.Context
    ) -> pb.SetModelStateResponse:
        """Retires a model, or makes it active; answers once that is durable."""
        asked, state = request, STATE_FROM_WIRE.get(request.state)
        if state is None:
            raise _invalid("state", "must be ACTIVE or RETIRED")
        grace_ms = self._grace_of(request, state)
        entry = await self._runtime.change_model(
            asked.model_id,
            lambda to: ModelStateSet(
                asked.model_id, state, asked.revision, grace_ms, asked.replaced_by, to
            ),
        )
        assert entry is not None, "it was changed"
        return pb.SetModelStateResponse(model=self._view(entry))

    def _grace_of(self, request: pb.SetModelStateRequest, state: ModelState) -> int:
        if state is ModelState.ACTIVE and (request.HasField("grace") or request.replaced_by):
            raise _invalid("grace", "and replaced_by are for RETIRED: leave them out")
        if len(request.replaced_by) > NAME_CHARS_MAX:
            raise _invalid("replaced_by", f"may have {NAME_CHARS_MAX} characters")
        instead = self._runtime.core.catalog.find(request.replaced_by)
        if instead is not None and instead.card.model_id == request.model_id:
            raise _invalid("replaced_by", "names the model itself")
        if not request.HasField("grace"):
            return self._grace_ms
        grace_ms = request.grace.ToMilliseconds()
        if not 0 <= grace_ms <= GRACE_MS_MAX:
            raise _invalid("grace", "must be from 0 to 30 days")
        return grace_ms

    def _card(self, model: pb.CatalogModel) -> ModelCard:
        """What an operator states. Raises `RefusalError` naming every bad field."""
        card = parse_card(model, self._limits)
        if isinstance(card, Refusal):
            raise RefusalError(card)
        checked = self._signatures.check(card.digest, card.signature)
        if checked.verdict is SignatureVerdict.INVALID:
            raise _invalid("model.signature", "was made by no key of catalog.trusted_keys")
        return card

    def _entry(self, name: str) -> CatalogEntry:
        catalog = self._runtime.core.catalog
        entry = catalog.find(name)
        if entry is None:
            raise RefusalError(unknown_model(catalog, name))
        return entry

    async def _put(self, model_id: str, event: Callable[[int], ModelPut]) -> Findings:
        """Adds or changes a model; what is found of it as that left it."""
        entry = await self._runtime.change_model(model_id, event)
        assert entry is not None, "it was put"
        return self._found(entry)

    def _found(self, entry: CatalogEntry) -> Findings:
        return find(entry, self._runtime.core.pools, self._signatures)

    def _warned(self, found: Findings) -> list[str]:
        """The warnings for whoever asked; the signature is counted and logged."""
        card = found.entry.card
        self._telemetry.signature_checked(card.model_id, found.signature.verdict.value)
        return list(found.warnings())

    def _view(self, entry: CatalogEntry) -> pb.CatalogModel:
        closed = entry.card.model_id in self._runtime.core.catalog.closed
        return entry_to_proto(entry, closed=closed)


def _invalid(field: str, what: str) -> RefusalError:
    wrong = FieldViolation(field, what)
    return RefusalError(Refusal(Reason.INVALID_PARAMS, f"{field} {what}", violations=(wrong,)))
