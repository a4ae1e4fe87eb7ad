"""Calls of CatalogService, as tests make them."""

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from llamaorch.orchestrator.v1 import catalog_service_pb2 as pb
from llamaorch.orchestrator.v1 import pool_admin_service_pb2
from tests.integration.orchestrator.calls import (
    details,
)
from tests.integration.orchestrator.conftest import Orchestrator

DIGEST = "sha256:" + "ab" * 32
OTHER_DIGEST = "sha256:" + "cd" * 32


def model(model_id: str = "tiny", **fields: object) -> pb.CatalogModel:
    """A model that says nothing but its id."""
    return pb.CatalogModel(model_id=model_id, **fields)  # type: ignore[arg-type]


async def register(
    orchestrator: Orchestrator, model_id: str = "tiny", **fields: object
) -> pb.RegisterModelResponse:
    """Registers a model."""
    request = pb.RegisterModelRequest(model=model(model_id, **fields))
    return await orchestrator.catalog.RegisterModel(request)


async def retire(
    orchestrator: Orchestrator, model_id: str = "tiny", grace_s: float | None = None, **also: object
) -> pb.CatalogModel:
    """Retires a model."""
    request = pb.SetModelStateRequest(
        model_id=model_id,
        state=pb.MODEL_STATE_RETIRED,
        **also,  # type: ignore[arg-type]
    )
    if grace_s is not None:
        request.grace.FromMilliseconds(round(grace_s * 1000))
    return (await orchestrator.catalog.SetModelState(request)).model


async def activate(orchestrator: Orchestrator, model_id: str = "tiny") -> pb.CatalogModel:
    """Makes a model active again."""
    request = pb.SetModelStateRequest(model_id=model_id, state=pb.MODEL_STATE_ACTIVE)
    return (await orchestrator.catalog.SetModelState(request)).model


async def update(
    orchestrator: Orchestrator, paths: list[str] | None = None, **fields: object
) -> pb.UpdateModelResponse:
    """Changes a model."""
    mask = None if paths is None else FieldMask(paths=paths)
    request = pb.UpdateModelRequest(model=model(**fields), update_mask=mask)  # type: ignore[arg-type]
    return await orchestrator.catalog.UpdateModel(request)


async def listed(orchestrator: Orchestrator, **fields: object) -> pb.ListModelsResponse:
    """One page of the catalog."""
    return await orchestrator.catalog.ListModels(
        pb.ListModelsRequest(**fields)  # type: ignore[arg-type]
    )


async def pool(orchestrator: Orchestrator, pool_id: str = "pool-a") -> pool_admin_service_pb2.Pool:
    """A pool as operators see it."""
    answer = await orchestrator.pools.ListPools(pool_admin_service_pb2.ListPoolsRequest())
    return next(each for each in answer.pools if each.pool_id == pool_id)


async def refused(call: object) -> tuple[grpc.StatusCode, str, str]:
    """Code, reason and message of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    info, _ = details(caught.value)
    return caught.value.code(), info.reason, caught.value.details() or ""
