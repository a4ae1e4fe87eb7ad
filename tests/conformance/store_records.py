"""Minimal records of a journal."""

from dataclasses import replace

from orchestrator_core.core.catalog_model import (
    CatalogEntry,
    Dimensions,
    ModelCard,
    ModelState,
)
from orchestrator_core.core.decision import Decision
from orchestrator_core.core.outcome import Finish, Outcome, Usage
from orchestrator_core.core.records import (
    AcceptRecord,
    CatalogChange,
    CatalogRecord,
    DispatchRecord,
    PoolDrainRecord,
    SessionRecord,
    TerminalRecord,
)
from orchestrator_core.core.session import Hold, Spent
from orchestrator_core.core.spec import Budgets, JobSpec, Needs
from orchestrator_core.core.states import JobState


def accept(number: int, *, job_id: str = "", accepted_ms: int = 1) -> AcceptRecord:
    """An accept with arrival number `number`."""
    spec = JobSpec(job_id or f"job-{number}", Needs("model"), payload=b"prompt \x00\xff")
    return AcceptRecord(spec, number, accepted_ms, 1, None, None)


def over(record: AcceptRecord) -> AcceptRecord:
    """What is kept of an accept whose job has ended: all but the prompt."""
    return replace(record, spec=replace(record.spec, payload=b""))


def dispatch(job_id: str, attempt: int = 1, sent_ms: int = 2) -> DispatchRecord:
    """A dispatch of one attempt."""
    decision = Decision(job_id, attempt, 1, "pool", "score", (), 0, (), 0, 0)
    return DispatchRecord(
        job_id, attempt, "pool", "replica", "host", sent_ms, decision, ("e", "v", "d", "s")
    )


def terminal(job_id: str, *, ended_ms: int = 3, finish: Finish = Finish.EOS) -> TerminalRecord:
    """A regular end."""
    outcome = Outcome(finish=finish, text_bytes=4, text_digest=2**64 - 1)
    return TerminalRecord(job_id, JobState.FINISHED, outcome, Usage(tokens_out=2), ended_ms)


def drain(pool_id: str = "p", *, since_ms: int = 3, over: bool = False) -> PoolDrainRecord:
    """A drain of a pool for a second."""
    return PoolDrainRecord(pool_id, since_ms, since_ms + 1_000, over)


def model(model_id: str = "m", *, revision: int = 1, over: bool = False) -> CatalogRecord:
    """A model of the catalog that says everything, changed in the millisecond of its revision."""
    card = ModelCard(
        model_id,
        aliases=("x", "ü"),
        digest="sha256:0",
        engines=("llama.cpp",),
        ctx_max=2**31,
        dimensions=Dimensions(32, 8, 128, 128, 16, 4_096, "q8_0", "f16"),
        min_vram_bytes=2**40,
        min_compute_cap=(8, 10),
        bytes_per_token=3.7,
        labels=(("team", "a"),),
    )
    entry = CatalogEntry(card, ModelState.RETIRED, revision, 1, revision, 2, 2**62, "other")
    return CatalogRecord(entry, CatalogChange.RETIRED, over)


def session(session_id: str = "s", *, turns: int = 1, used_ms: int = 3) -> SessionRecord:
    """A session with a job that has not ended."""
    return SessionRecord(
        identity="client",
        session_id=session_id,
        opened_ms=1,
        used_ms=used_ms,
        budgets=Budgets(tokens=2**63),
        turns=turns,
        spent=Spent(1, 2, 3),
        held=(("job-1", Hold(1, 2, 3, 4)),),
        pool_id="pool",
        replica_id="replica",
        kv_tokens=5,
    )
