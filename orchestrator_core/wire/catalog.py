"""Models of the catalog to the core and back. ORCH-3031."""

import re

from google.protobuf.field_mask_pb2 import FieldMask

from llamaorch.orchestrator.v1 import catalog_service_pb2 as pb
from llamaorch.orchestrator.v1 import job_pb2
from orchestrator_core.core.catalog_model import (
    CACHE_TYPES,
    CatalogEntry,
    DigestVerdict,
    Dimensions,
    ModelCard,
    ModelState,
)
from orchestrator_core.core.outcome import FieldViolation, Reason, Refusal
from orchestrator_core.wire.limits import WireLimits, check_labels, check_requirements, compute_cap
from orchestrator_core.wire.views import timestamp
from orchestrator_core.wire.violations import Violations, refusal_of

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# 64 bytes.
_SIGNATURE = re.compile(r"[A-Za-z0-9+/]{86}==")
NAMES_MAX = 16
MODEL_REF_CHARS_MAX = 4_096
LAYERS_MAX = 10_000
LENGTH_MAX = 100_000
TOKENS_MAX = 1_000_000_000
BYTES_PER_TOKEN_MIN, BYTES_PER_TOKEN_MAX = 0.1, 100.0

STATE_TO_WIRE = {
    ModelState.ACTIVE: pb.MODEL_STATE_ACTIVE,
    ModelState.RETIRED: pb.MODEL_STATE_RETIRED,
}
STATE_FROM_WIRE = {value: key for key, value in STATE_TO_WIRE.items()}
DIGEST_VERDICT_TO_WIRE = {
    DigestVerdict.MATCH: pb.DIGEST_VERDICT_MATCH,
    DigestVerdict.MISMATCH: pb.DIGEST_VERDICT_MISMATCH,
    DigestVerdict.UNKNOWN: pb.DIGEST_VERDICT_UNKNOWN,
}
# The server's own words about a model; whoever sends them back means nothing by it.
_TOLD = frozenset(
    (
        "state",
        "retired_at",
        "grace_until",
        "closed",
        "replaced_by",
        "revision",
        "created_at",
        "updated_at",
    )
)
STATED = frozenset(pb.CatalogModel.DESCRIPTOR.fields_by_name) - _TOLD


def parse_card(model: pb.CatalogModel, limits: WireLimits) -> ModelCard | Refusal:
    """Checks what an operator states, or returns INVALID_PARAMS with every bad field."""
    bad = Violations()
    _check_names(model, limits, bad)
    bad.pattern("model.digest", model.digest, _DIGEST, '"sha256:" and 64 hex digits in lower case')
    bad.pattern("model.signature", model.signature, _SIGNATURE, "64 bytes in base64")
    if model.signature and not model.digest:
        bad.add("model.signature", "needs a digest, which is what it signs")
    bad.length("model.model_ref", model.model_ref, MODEL_REF_CHARS_MAX)
    for name in ("ctx_max", "expected_tokens"):
        if model.HasField(name):
            _within(f"model.{name}", getattr(model, name), 1, TOKENS_MAX, bad)
    if model.HasField("bytes_per_token"):
        bad.within(
            "model.bytes_per_token",
            model.bytes_per_token,
            *(BYTES_PER_TOKEN_MIN, BYTES_PER_TOKEN_MAX),
            open_low=False,
        )
    if model.HasField("dimensions"):
        _check_dimensions(model.dimensions, bad)
    check_requirements("model.requirements", model.requirements, limits, bad)
    check_labels("model.labels", model.labels, limits, bad)
    return refusal_of(bad) if bad.total else _card(model)


def entry_to_proto(entry: CatalogEntry, *, closed: bool) -> pb.CatalogModel:
    """A model as it is kept; `closed`: its grace is over."""
    message = pb.CatalogModel(
        state=STATE_TO_WIRE[entry.state],
        closed=closed,
        replaced_by=entry.replaced_by,
        revision=entry.revision,
        created_at=timestamp(entry.created_ms),
        updated_at=timestamp(entry.updated_ms),
    )
    message.MergeFrom(_card_to_proto(entry.card))
    if entry.retired_ms is not None and entry.grace_until_ms is not None:
        message.retired_at.CopyFrom(timestamp(entry.retired_ms))
        message.grace_until.CopyFrom(timestamp(entry.grace_until_ms))
    return message


def masked(card: ModelCard, asked: pb.CatalogModel, mask: FieldMask) -> pb.CatalogModel | Refusal:
    """A model with the fields of a mask taken over from another one; one that is unset empties."""
    changed = _card_to_proto(card)
    for path in mask.paths:
        if path not in STATED or path == "model_id":
            known = ", ".join(sorted(STATED - {"model_id"}))
            text = f"names {path[:64]!r}, and may name {known}"
            wrong = FieldViolation("update_mask", text)
            return Refusal(Reason.INVALID_PARAMS, f"update_mask {text}", violations=(wrong,))
        changed.ClearField(path)  # type: ignore[arg-type]  # a field, as was just looked up
        part = pb.CatalogModel()
        part.CopyFrom(asked)
        for other in STATED - {path} | _TOLD:
            part.ClearField(other)  # type: ignore[arg-type]  # fields of the message
        changed.MergeFrom(part)
    return changed


def _check_names(model: pb.CatalogModel, limits: WireLimits, bad: Violations) -> None:
    if not model.model_id:
        bad.add("model.model_id", "is required: the name under which pools serve the model")
    _check_name("model.model_id", model.model_id, limits, bad)
    for field, names in (("aliases", model.aliases), ("engines", model.engines)):
        if not bad.count(f"model.{field}", len(names), NAMES_MAX):
            continue
        for index, name in enumerate(names):
            if not name:
                bad.add(f"model.{field}[{index}]", "must not be empty")
            _check_name(f"model.{field}[{index}]", name, limits, bad)
    if model.model_id in model.aliases or len(set(model.aliases)) < len(model.aliases):
        bad.add("model.aliases", "names the same twice, or the model itself")
    for name in ("engine_version", "sampler_profile_version"):
        bad.length(f"model.{name}", getattr(model, name), limits.name_chars_max)


def _check_name(field: str, name: str, limits: WireLimits, bad: Violations) -> None:
    bad.length(field, name, limits.name_chars_max)
    if not name.isprintable() or name != name.strip():
        bad.add(field, "must be printable, without spaces around it")


def _check_dimensions(sizes: pb.ModelDimensions, bad: Violations) -> None:
    path = "model.dimensions"
    _within(f"{path}.layers", sizes.layers, 1, LAYERS_MAX, bad)
    _within(f"{path}.kv_heads", sizes.kv_heads, 1, LENGTH_MAX, bad)
    for name in ("key_length", "value_length"):
        _within(f"{path}.{name}", getattr(sizes, name), 0, LENGTH_MAX, bad)
    _within(f"{path}.window_layers", sizes.window_layers, 0, min(sizes.layers, LAYERS_MAX), bad)
    _within(f"{path}.window_tokens", sizes.window_tokens, 0, TOKENS_MAX, bad)
    if sizes.window_layers and not sizes.window_tokens:
        bad.add(f"{path}.window_tokens", "is required where layers have a window")
    for name in ("key_type", "value_type"):
        if (getattr(sizes, name) or "f16") not in CACHE_TYPES:
            bad.add(f"{path}.{name}", f"must be one of {', '.join(CACHE_TYPES)}")


def _within(field: str, value: int, low: int, high: int, bad: Violations) -> None:
    if not low <= value <= high:
        bad.add(field, f"must be from {low} to {high}, is {value}")


def _card(model: pb.CatalogModel) -> ModelCard:
    asked = model.requirements
    return ModelCard(
        model_id=model.model_id,
        aliases=tuple(model.aliases),
        model_ref=model.model_ref,
        digest=model.digest,
        signature=model.signature,
        engines=tuple(dict.fromkeys(model.engines)),
        engine_version=model.engine_version,
        sampler_profile_version=model.sampler_profile_version,
        quantization=asked.quantization,
        ctx_max=model.ctx_max if model.HasField("ctx_max") else None,
        dimensions=_dimensions(model.dimensions) if model.HasField("dimensions") else None,
        min_vram_bytes=asked.min_vram_bytes if asked.HasField("min_vram_bytes") else None,
        min_compute_cap=compute_cap(asked.min_compute_cap),
        required_extensions=tuple(sorted(set(asked.required_extensions))),
        device_mask=tuple(sorted(set(asked.device_mask))),
        bytes_per_token=model.bytes_per_token if model.HasField("bytes_per_token") else None,
        expected_tokens=model.expected_tokens if model.HasField("expected_tokens") else None,
        labels=tuple(sorted(model.labels.items())),
    )


def _dimensions(sizes: pb.ModelDimensions) -> Dimensions:
    return Dimensions(
        layers=sizes.layers,
        kv_heads=sizes.kv_heads,
        key_length=sizes.key_length,
        value_length=sizes.value_length,
        window_layers=sizes.window_layers,
        window_tokens=sizes.window_tokens,
        key_type=sizes.key_type or "f16",
        value_type=sizes.value_type or "f16",
    )


def _card_to_proto(card: ModelCard) -> pb.CatalogModel:
    message = pb.CatalogModel(
        model_id=card.model_id,
        aliases=card.aliases,
        model_ref=card.model_ref,
        digest=card.digest,
        signature=card.signature,
        engines=card.engines,
        engine_version=card.engine_version,
        sampler_profile_version=card.sampler_profile_version,
        ctx_max=card.ctx_max,
        bytes_per_token=card.bytes_per_token,
        expected_tokens=card.expected_tokens,
        labels=dict(card.labels),
    )
    if card.dimensions is not None:
        message.dimensions.CopyFrom(_dimensions_to_proto(card.dimensions))
    needed = _requirements_to_proto(card)
    if needed.ByteSize():
        message.requirements.CopyFrom(needed)
    return message


def _dimensions_to_proto(sizes: Dimensions) -> pb.ModelDimensions:
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


def _requirements_to_proto(card: ModelCard) -> job_pb2.Requirements:
    cap = card.min_compute_cap
    return job_pb2.Requirements(
        min_vram_bytes=card.min_vram_bytes,
        quantization=card.quantization,
        min_compute_cap="" if cap is None else f"{cap[0]}.{cap[1]}",
        required_extensions=card.required_extensions,
        device_mask=card.device_mask,
    )
