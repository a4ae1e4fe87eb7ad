# SPDX-License-Identifier: Apache-2.0
"""Models of the catalog to the wire and back."""

from llamaorch.orchestrator.v1 import catalog_service_pb2 as pb
from llamaorch.orchestrator.v1 import job_pb2
from llamaorch_client import model_catalog as kinds
from llamaorch_client import wire, wire_request
from llamaorch_client.request import Requirements


def model(message: pb.CatalogModel) -> kinds.CatalogModel:
    """One model."""
    sizes, needed = message.dimensions, message.requirements
    return kinds.CatalogModel(
        model_id=message.model_id,
        aliases=tuple(message.aliases),
        model_ref=message.model_ref,
        digest=message.digest,
        signature=message.signature,
        engines=tuple(message.engines),
        engine_version=message.engine_version,
        sampler_profile_version=message.sampler_profile_version,
        ctx_max=message.ctx_max if message.HasField("ctx_max") else None,
        dimensions=_dimensions(sizes) if message.HasField("dimensions") else None,
        requirements=_requirements(needed) if message.HasField("requirements") else None,
        bytes_per_token=message.bytes_per_token if message.HasField("bytes_per_token") else None,
        expected_tokens=message.expected_tokens if message.HasField("expected_tokens") else None,
        labels=dict(message.labels),
        state=wire.enum(kinds.ModelState, pb.DESCRIPTOR, message.state),
        retired_at=wire.instant(message.retired_at, message.HasField("retired_at")),
        grace_until=wire.instant(message.grace_until, message.HasField("grace_until")),
        closed=message.closed,
        replaced_by=message.replaced_by,
        revision=message.revision,
        created_at=wire.instant(message.created_at, message.HasField("created_at")),
        updated_at=wire.instant(message.updated_at, message.HasField("updated_at")),
    )


def model_to_wire(stated: kinds.CatalogModel) -> pb.CatalogModel:
    """What is stated of a model, and its revision.

    Raises:
        ValueError: a number does not fit its field.
    """
    sizes = stated.dimensions
    return pb.CatalogModel(
        model_id=stated.model_id,
        aliases=stated.aliases,
        model_ref=stated.model_ref,
        digest=stated.digest,
        signature=stated.signature,
        engines=stated.engines,
        engine_version=stated.engine_version,
        sampler_profile_version=stated.sampler_profile_version,
        ctx_max=stated.ctx_max,
        dimensions=None if sizes is None else _dimensions_to_wire(sizes),
        requirements=wire_request.requirements(stated.requirements),
        bytes_per_token=stated.bytes_per_token,
        expected_tokens=stated.expected_tokens,
        labels=dict(stated.labels),
        revision=stated.revision,
    )


def verification(message: pb.VerifyModelResponse) -> kinds.Verification:
    """What was found."""
    return kinds.Verification(
        model_id=message.model_id,
        digest=message.digest,
        pools=tuple(
            kinds.PoolVerdict(
                pool.pool_id,
                pool.engine,
                pool.reported_digest,
                wire.enum(kinds.DigestVerdict, pb.DESCRIPTOR, pool.verdict),
            )
            for pool in message.pools
        ),
        signature=wire.enum(kinds.SignatureVerdict, pb.DESCRIPTOR, message.signature),
        signed_by=message.signed_by,
        verified=message.verified,
        warnings=tuple(message.warnings),
    )


def _dimensions(sizes: pb.ModelDimensions) -> kinds.ModelDimensions:
    return kinds.ModelDimensions(
        layers=sizes.layers,
        kv_heads=sizes.kv_heads,
        key_length=sizes.key_length,
        value_length=sizes.value_length,
        window_layers=sizes.window_layers,
        window_tokens=sizes.window_tokens,
        key_type=sizes.key_type,
        value_type=sizes.value_type,
    )


def _dimensions_to_wire(sizes: kinds.ModelDimensions) -> pb.ModelDimensions:
    return pb.ModelDimensions(
        layers=sizes.layers,
        kv_heads=sizes.kv_heads,
        key_length=sizes.key_length,
        value_length=sizes.value_length,
        window_layers=sizes.window_layers,
        window_tokens=sizes.window_tokens,
        key_type=sizes.key_type,
        value_type=sizes.value_type,
    )


def _requirements(needed: job_pb2.Requirements) -> Requirements:
    return Requirements(
        min_vram_bytes=needed.min_vram_bytes if needed.HasField("min_vram_bytes") else None,
        quantization=needed.quantization,
        min_compute_cap=needed.min_compute_cap,
        required_extensions=tuple(needed.required_extensions),
        device_mask=tuple(needed.device_mask),
    )
