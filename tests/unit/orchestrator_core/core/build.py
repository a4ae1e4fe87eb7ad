"""Builders of specs and snapshots: every test names only what it is about."""

from typing import Any

from orchestrator_core.core.job import Job
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.core.spec import JobSpec, Needs, Priority

MODEL = "m"


def spec(job_id: str = "a", *, batch: bool = False, model: str = MODEL, **fields: Any) -> JobSpec:
    """A valid job; `needs` may be given whole or left to the model alone."""
    fields.setdefault("needs", Needs(model_id=model))
    fields.setdefault("digest", f"digest of {job_id}")
    fields.setdefault("priority", Priority.BATCH if batch else Priority.INTERACTIVE)
    return JobSpec(job_id=job_id, **fields)


def job(seq: int, *, batch: bool = False, model: str = MODEL, **fields: Any) -> Job:
    """A waiting job with an arrival number."""
    return Job(spec=spec(f"j{seq}", batch=batch, model=model, **fields), seq=seq, accepted_ms=0)


def snapshot(pool_id: str = "p", **fields: Any) -> PoolSnapshot:
    """A ready pool of one host with one free slot."""
    defaults: dict[str, Any] = {
        "replica_id": f"{pool_id}#1",
        "host_id": "h",
        "version": 1,
        "model_id": MODEL,
        "engine": "llama.cpp",
    }
    return PoolSnapshot(pool_id=pool_id, **{**defaults, **fields})


def pool(pool_id: str = "p", as_of_ms: int = 0, **fields: Any) -> Pool:
    """A connected pool whose snapshot was applied at `as_of_ms`."""
    first = snapshot(pool_id, **fields)
    made = Pool(first, as_of_ms)
    made.apply(first, as_of_ms)
    return made
