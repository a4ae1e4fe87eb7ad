"""Whether a pool could ever serve a job: every shortfall, as data. LO-201, ORCH-3011, ORCH-3052.

Two families: what follows from a job's `Needs` and is cached for its lane, and what follows from
the size of its keys and values.
"""

from collections.abc import Iterable

from orchestrator_core.core.catalog_model import DigestVerdict, judge_digest
from orchestrator_core.core.decision import Exclusion, ExclusionReason, Shortfall
from orchestrator_core.core.outcome import Reason
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.core.spec import JobSpec, Needs

_FAMILY = {
    ExclusionReason.MODEL: Reason.INCOMPATIBLE_MODEL,
    ExclusionReason.QUANTIZATION: Reason.INCOMPATIBLE_MODEL,
    ExclusionReason.CONTEXT: Reason.INCOMPATIBLE_MODEL,
    ExclusionReason.ENGINE: Reason.INCOMPATIBLE_ENGINE,
    ExclusionReason.EXTENSION: Reason.INCOMPATIBLE_ENGINE,
    ExclusionReason.DETERMINISM: Reason.INCOMPATIBLE_ENGINE,
    ExclusionReason.DEVICE_MASK: Reason.INCOMPATIBLE_DEVICE_MASK,
    ExclusionReason.VRAM_TOTAL: Reason.INCOMPATIBLE_DEVICE_MASK,
    ExclusionReason.COMPUTE_CAP: Reason.INCOMPATIBLE_DEVICE_MASK,
    ExclusionReason.KV_TOTAL: Reason.INCOMPATIBLE_DEVICE_MASK,
    ExclusionReason.DEVICE_SHARE: Reason.INCOMPATIBLE_DEVICE_MASK,
}
# What never changes for one incarnation.
STATIC_REASONS = frozenset(_FAMILY)


def static_shortfalls(needs: Needs, pool: PoolSnapshot) -> tuple[Shortfall, ...]:
    """Returns everything that this incarnation lacks for good; empty means feasible.

    What only a loaded model tells is no shortfall before that: a job can wait for it.
    """
    devices = _device_shortfalls(needs, pool)
    if pool.unknown:
        # The model's name and the devices are configured, the rest is told by the engine.
        wrong = (s for s in _identity_shortfalls(needs, pool) if s.offered)
        return (*wrong, *devices)
    return (*_identity_shortfalls(needs, pool), *_support_shortfalls(needs, pool), *devices)


def kv_needed_bytes(spec: JobSpec, pool: PoolSnapshot) -> int | None:
    """Bytes of keys and values that the job takes on this pool; None when nobody can tell. LO-205.

    The client's estimate counts as it is. Without one, the context that the client requires is
    multiplied by what the pool says of a token, up to what it says of a slot; where it says
    nothing, the model's dimensions in the catalog tell.
    """
    ctx_tokens, per_token = spec.needs.required_ctx, pool.kv_bytes_per_token
    if spec.est_kv_bytes is not None or ctx_tokens is None:
        return spec.est_kv_bytes
    if per_token is None:
        return spec.catalog_kv_bytes
    needed = ctx_tokens * per_token
    return needed if pool.kv_slot_bytes is None else min(needed, pool.kv_slot_bytes)


def kv_shortfalls(spec: JobSpec, pool: PoolSnapshot) -> tuple[Shortfall, ...]:
    """Returns why not even the idle pool could hold the job's keys and values; empty: it could.

    Only what certainly exceeds counts: memory that the pool does not report excludes nothing.
    """
    needed = kv_needed_bytes(spec, pool)
    if needed is None:
        return ()
    if pool.kv_preallocated:
        most = None if pool.kv_slot_bytes is None else pool.slots_total * pool.kv_slot_bytes
        if most is None or needed <= most:
            return ()
        return (Shortfall(ExclusionReason.KV_TOTAL, str(needed), str(most)),)
    total, found = pool.vram_total_bytes, list(_share_shortfalls(needed, pool))
    if total is not None and needed > total:
        found.insert(0, Shortfall(ExclusionReason.KV_TOTAL, str(needed), str(total)))
    return tuple(found)


def lasting_shortfalls(spec: JobSpec, pool: PoolSnapshot) -> tuple[Shortfall, ...]:
    """Returns everything for which this incarnation can never serve the job."""
    return static_shortfalls(spec.needs, pool) + kv_shortfalls(spec, pool)


def incompatibility(exclusions: Iterable[Exclusion]) -> Reason:
    """Names the family of what is missing at the pools that come closest to serving the job.

    With no pool at all the answer is INCOMPATIBLE_MODEL. Ties go to the first family in the order
    Model, Engine, DeviceMask.
    """
    families = [{_FAMILY[s.reason] for s in e.shortfalls} for e in exclusions]
    if not families:
        return Reason.INCOMPATIBLE_MODEL
    # A pool that runs another model is further away than one that lacks anything else.
    closest = min(
        families,
        key=lambda f: (Reason.INCOMPATIBLE_MODEL in f, Reason.INCOMPATIBLE_ENGINE in f, len(f)),
    )
    order = (
        Reason.INCOMPATIBLE_MODEL,
        Reason.INCOMPATIBLE_ENGINE,
        Reason.INCOMPATIBLE_DEVICE_MASK,
    )
    return next(reason for reason in order if reason in closest)


def _identity_shortfalls(needs: Needs, pool: PoolSnapshot) -> Iterable[Shortfall]:
    """What a job pins, and a pool of another replica set is not. ORCH-3046."""
    pairs = (
        (ExclusionReason.MODEL, needs.model_id, pool.model_id),
        (ExclusionReason.MODEL, needs.model_digest, pool.model_digest),
        (ExclusionReason.ENGINE, needs.engine, pool.engine),
        (ExclusionReason.ENGINE, needs.engine_version, pool.engine_version),
        (ExclusionReason.ENGINE, needs.sampler_profile_version, pool.sampler_profile_version),
    )
    for reason, required, offered in pairs:
        if required and required != offered:
            yield Shortfall(reason, required, offered)
    if judge_digest(needs.listed_digest, pool.model_digest) is DigestVerdict.MISMATCH:
        yield Shortfall(ExclusionReason.MODEL, needs.listed_digest, pool.model_digest)
    if needs.engines and pool.engine not in needs.engines:
        yield Shortfall(ExclusionReason.ENGINE, " or ".join(needs.engines), pool.engine)


def _support_shortfalls(needs: Needs, pool: PoolSnapshot) -> Iterable[Shortfall]:
    if needs.quantization and needs.quantization not in pool.quantizations:
        yield Shortfall(
            ExclusionReason.QUANTIZATION, needs.quantization, " ".join(pool.quantizations)
        )
    for extension in needs.required_extensions:
        if extension not in pool.extensions:
            yield Shortfall(ExclusionReason.EXTENSION, extension, " ".join(pool.extensions))
    context = max(needs.required_ctx or 0, needs.certain_ctx or 0)
    if context > pool.ctx_max:
        yield Shortfall(ExclusionReason.CONTEXT, str(context), str(pool.ctx_max))
    if needs.deterministic and not pool.deterministic:
        yield Shortfall(ExclusionReason.DETERMINISM, "deterministic", "best effort")


def _device_shortfalls(needs: Needs, pool: PoolSnapshot) -> Iterable[Shortfall]:
    # A pool that does not tell its devices may use any: it is not known to be within the mask.
    inside = bool(pool.device_ids) and set(pool.device_ids) <= set(needs.device_mask)
    if needs.device_mask and not inside:
        yield Shortfall(
            ExclusionReason.DEVICE_MASK, " ".join(needs.device_mask), " ".join(pool.device_ids)
        )
    if needs.min_vram_bytes is not None and needs.min_vram_bytes > (pool.vram_total_bytes or 0):
        offered = "unknown" if pool.vram_total_bytes is None else str(pool.vram_total_bytes)
        yield Shortfall(ExclusionReason.VRAM_TOTAL, str(needs.min_vram_bytes), offered)
    if needs.min_vram_bytes is not None:
        yield from _share_shortfalls(needs.min_vram_bytes, pool)
    required_cap, offered_cap = needs.min_compute_cap, pool.compute_capability
    if required_cap is not None and (offered_cap is None or offered_cap < required_cap):
        yield Shortfall(ExclusionReason.COMPUTE_CAP, _dotted(required_cap), _dotted(offered_cap))


def _share_shortfalls(needed_bytes: int, pool: PoolSnapshot) -> Iterable[Shortfall]:
    """Devices that an explicit tensor split would overfill: the smallest one bounds the whole."""
    whole = sum(pool.tensor_split)
    for device_id, weight, memory in zip(
        pool.device_ids, pool.tensor_split, pool.device_memory_bytes, strict=False
    ):
        share = -(-needed_bytes * weight // whole) if whole else 0
        if memory is not None and share > memory:
            required, offered = f"{share} on {device_id}", str(memory)
            yield Shortfall(ExclusionReason.DEVICE_SHARE, required, offered)


def _dotted(capability: tuple[int, int] | None) -> str:
    return "unknown" if capability is None else f"{capability[0]}.{capability[1]}"
