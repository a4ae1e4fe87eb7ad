"""The catalog's table, and what it adds to a job at admission. ORCH-3031.

A job names a model by id or alias and leaves unset what the catalog knows. What the job does say
counts where it asks for more, and is refused where it contradicts the catalog. A model that is not
in the catalog is served as if there were none, unless `CoreConfig.catalog_required`.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from orchestrator_core.core.catalog_model import CatalogEntry, FromCatalog, ModelCard, ModelState
from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.guardrails import certain_ctx, ctx_field
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.core.plain_init import plain_init
from orchestrator_core.core.spec import JobSpec, Needs

MODEL_RESOURCE = "llamaorch.orchestrator.v1.CatalogModel"
STATE_WORDS: Final = ("active", "retiring", "retired")
# Kinds of needs of which the resolved form is kept.
RESOLVED_KEPT = 1_024
# Looking for similar names takes some 10 µs for each.
NAMES_COMPARED = 128
NAMES_SHOWN = 3


@plain_init
@dataclass(frozen=True, slots=True)
class Resolved:
    """What jobs with equal needs get from the catalog."""

    needs: Needs
    kv_bytes: int | None
    expected_tokens: int | None
    told: FromCatalog


@dataclass(slots=True, eq=False)
class Catalog:
    """All models of the catalog, by id in order of registration.

    `ids` has the model of every id and alias. `closed` holds the retired ones whose grace is over.
    `resolved` is derived, by needs and whether a job says how much it expects to write.
    """

    entries: dict[str, CatalogEntry] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    closed: dict[str, None] = field(default_factory=dict)
    resolved: dict[tuple[Needs, bool], Resolved] = field(default_factory=dict)

    def find(self, name: str) -> CatalogEntry | None:
        """The model of an id or alias. O(1)."""
        model_id = self.ids.get(name)
        return self.entries[model_id] if model_id is not None else None

    def put(self, entry: CatalogEntry) -> None:
        """Adds a model, or replaces what was known of it. The names must be free."""
        card = entry.card
        self._forget_names(card.model_id)
        self.entries[card.model_id] = entry
        for name in (card.model_id, *card.aliases):
            self.ids[name] = card.model_id

    def remove(self, model_id: str) -> None:
        """Forgets a model, if there is one; it is not closed any more."""
        self._forget_names(model_id)
        self.entries.pop(model_id, None)
        self.closed.pop(model_id, None)

    def _forget_names(self, model_id: str) -> None:
        former = self.entries.get(model_id)
        if former is not None:
            for name in (model_id, *former.card.aliases):
                del self.ids[name]
        self.resolved.clear()

    def taken(self, card: ModelCard) -> tuple[str, str] | None:
        """The first name of a model that belongs to another one, and that model's id."""
        for name in (card.model_id, *card.aliases):
            owner = self.ids.get(name)
            if owner is not None and owner != card.model_id:
                return name, owner
        return None

    def state_word(self, model_id: str) -> str:
        """One of `STATE_WORDS`: a retired model is retiring until its grace is over."""
        if self.entries[model_id].state is ModelState.ACTIVE:
            return "active"
        return "retired" if model_id in self.closed else "retiring"

    def nearest(self, name: str) -> list[str]:
        """Names that look most like one, at most three of those that were compared."""
        first = name[:1].lower()
        alike = [known for known in self.ids if known[:1].lower() == first]
        compared = list(islice(dict.fromkeys((*alike, *self.ids)), NAMES_COMPARED))
        return difflib.get_close_matches(name, compared, NAMES_SHOWN)


def unknown_model(catalog: Catalog, name: str) -> Refusal:
    """The answer for a name that is not in the catalog, or an alias where an id is asked for."""
    model_id = catalog.ids.get(name)
    nearest = catalog.nearest(name) if model_id is None else [model_id]
    hint = f"; did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    if model_id is not None:
        hint = f" under that id: it is an alias of {model_id!r}, which is to be named here"
    return Refusal(
        Reason.MODEL_UNKNOWN,
        f"no model {name!r} is in the catalog{hint}",
        resource=name,
        metadata={"resource_type": MODEL_RESOURCE, "nearest": ", ".join(nearest)},
    )


def retired_model(entry: CatalogEntry, now_ms: int) -> Refusal:
    """The answer for jobs of a model that takes no more of them, or that waited for too long."""
    ago_s = max(0, now_ms - (entry.retired_ms or now_ms)) // 1000
    instead = f": ask for {entry.replaced_by!r} instead" if entry.replaced_by else ""
    told = {"resource_type": MODEL_RESOURCE, "retired_at_ms": str(entry.retired_ms)}
    if entry.replaced_by:
        told["replaced_by"] = entry.replaced_by
    message = f"model {entry.card.model_id!r} was retired {_span(ago_s)} ago{instead}"
    return Refusal(Reason.MODEL_RETIRED, message, resource=entry.card.model_id, metadata=told)


def resolve(catalog: Catalog, spec: JobSpec, config: CoreConfig, now_ms: int) -> JobSpec | Refusal:
    """The job as it is admitted: with what the catalog knows of its model. O(1) for known needs."""
    entry = catalog.find(spec.needs.model_id)
    if entry is None:
        return unknown_model(catalog, spec.needs.model_id) if config.catalog_required else spec
    if entry.state is ModelState.RETIRED:
        return retired_model(entry, now_ms)
    wrong = _contradiction(entry.card, spec, config)
    if wrong is not None:
        return wrong
    key = (spec.needs, spec.expected_tokens is None)
    known = catalog.resolved.get(key)
    if known is None:
        if len(catalog.resolved) >= RESOLVED_KEPT:
            catalog.resolved.clear()
        known = catalog.resolved[key] = _resolved(entry, spec, config)
    return replace(
        spec,
        needs=known.needs,
        expected_tokens=known.expected_tokens if key[1] else spec.expected_tokens,
        catalog_kv_bytes=known.kv_bytes,
        from_catalog=known.told,
    )


def _contradiction(card: ModelCard, spec: JobSpec, config: CoreConfig) -> Refusal | None:
    """Refuses what the catalog says that the model is not."""
    needs = spec.needs
    if needs.engine and card.engines and needs.engine not in card.engines:
        runs = " or ".join(card.engines)
        message = f"model {card.model_id!r} runs on {runs} by the catalog, not on {needs.engine}"
        return Refusal(Reason.INCOMPATIBLE_ENGINE, message, engine=needs.engine)
    if needs.model_digest and card.digest and needs.model_digest != card.digest:
        message = (
            f"model {card.model_id!r} has the digest {card.digest} by the catalog: "
            "leave model_digest out, or ask for the model that has it"
        )
        return Refusal(Reason.INCOMPATIBLE_MODEL, message, engine=needs.engine)
    if needs.quantization and card.quantization and needs.quantization != card.quantization:
        message = (
            f"model {card.model_id!r} is {card.quantization} by the catalog, "
            f"not {needs.quantization}"
        )
        return Refusal(Reason.INCOMPATIBLE_MODEL, message, engine=needs.engine)
    if needs.device_mask and card.device_mask and not {*needs.device_mask} <= {*card.device_mask}:
        allowed = " ".join(card.device_mask)
        message = f"model {card.model_id!r} may use the devices {allowed} alone, by the catalog"
        return Refusal(Reason.INCOMPATIBLE_DEVICE_MASK, message, engine=needs.engine)
    if card.ctx_max is not None and certain_ctx(spec, config.guardrails) > card.ctx_max:
        return _too_long(card.ctx_max, spec, config)
    return None


def _too_long(ctx_max: int, spec: JobSpec, config: CoreConfig) -> Refusal:
    if (spec.needs.required_ctx or 0) > ctx_max:
        field, what = "spec.required_ctx", f"must be at most {ctx_max}, as the catalog says"
    else:
        wrong = ctx_field(spec, ctx_max, config.guardrails)
        field, what = wrong.field, wrong.description
    return Refusal(
        Reason.INCOMPATIBLE_MODEL,
        f"{field} {what}",
        engine=spec.needs.engine,
        metadata={"field": field},
    )


def _resolved(entry: CatalogEntry, spec: JobSpec, config: CoreConfig) -> Resolved:
    card, asked = entry.card, spec.needs
    needs = _needs(card, asked, strict=config.catalog_strict_digest)
    kv_bytes = None
    if card.dimensions is not None and asked.required_ctx is not None:
        kv_bytes = card.dimensions.kv_bytes(asked.required_ctx)
    filled = dict(_differences(asked, needs))
    if kv_bytes is not None:
        filled["est_kv_bytes"] = str(kv_bytes)
    if spec.expected_tokens is None and card.expected_tokens is not None:
        filled["expected_tokens"] = str(card.expected_tokens)
    alias = asked.model_id if asked.model_id != card.model_id else ""
    told = FromCatalog(alias, entry.revision, tuple(sorted(filled.items())))
    return Resolved(needs, kv_bytes, card.expected_tokens, told)


def _needs(card: ModelCard, asked: Needs, *, strict: bool) -> Needs:
    """What the job needs by its own words and the catalog's: the stricter of the two."""
    single = len(card.engines) == 1
    digest = asked.model_digest or (card.digest if strict else "")
    return replace(
        asked,
        model_id=card.model_id,
        engine=asked.engine or (card.engines[0] if single else ""),
        engine_version=asked.engine_version or card.engine_version,
        model_digest=digest,
        sampler_profile_version=asked.sampler_profile_version or card.sampler_profile_version,
        min_vram_bytes=_more(asked.min_vram_bytes, card.min_vram_bytes),
        quantization=asked.quantization or card.quantization,
        min_compute_cap=_newer(asked.min_compute_cap, card.min_compute_cap),
        required_extensions=tuple(sorted({*asked.required_extensions, *card.required_extensions})),
        device_mask=asked.device_mask or card.device_mask,
        engines=() if asked.engine or single else card.engines,
        listed_digest="" if digest else card.digest,
    )


def _differences(asked: Needs, needs: Needs) -> Iterator[tuple[str, str]]:
    """What the catalog added, by the names of fields of a job."""
    for name in ("engine", "engine_version", "sampler_profile_version"):
        if getattr(asked, name) != getattr(needs, name):
            yield name, getattr(needs, name)
    if needs.engines:
        yield "engine", " or ".join(needs.engines)
    if needs.listed_digest or needs.model_digest != asked.model_digest:
        yield "model_digest", needs.listed_digest or needs.model_digest
    if needs.quantization != asked.quantization:
        yield "requirements.quantization", needs.quantization
    if needs.min_vram_bytes != asked.min_vram_bytes:
        yield "requirements.min_vram_bytes", str(needs.min_vram_bytes)
    if needs.min_compute_cap is not None and needs.min_compute_cap != asked.min_compute_cap:
        major, minor = needs.min_compute_cap
        yield "requirements.min_compute_cap", f"{major}.{minor}"
    for name in ("required_extensions", "device_mask"):
        if getattr(asked, name) != getattr(needs, name):
            yield f"requirements.{name}", " ".join(getattr(needs, name))


def _more(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)


def _newer(one: tuple[int, int] | None, other: tuple[int, int] | None) -> tuple[int, int] | None:
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)


def _span(seconds: int) -> str:
    """A span for people, in its largest unit."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
