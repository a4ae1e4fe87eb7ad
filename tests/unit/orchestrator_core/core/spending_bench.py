"""A bench whose jobs belong to sessions with budgets."""

from typing import Any

from orchestrator_core.core.config import Guardrails, Price
from orchestrator_core.core.effects import Effect, ReplyAccepted
from orchestrator_core.core.events import AttemptStarted
from orchestrator_core.core.outcome import Usage
from orchestrator_core.core.records import SessionRecord
from orchestrator_core.core.session import Session
from orchestrator_core.core.spec import Budgets
from tests.unit.orchestrator_core.core.bench import Bench, only, wide

# With this many bytes a prompt has ten tokens, by estimate and for certain.
RAILS = Guardrails(token_bytes_max=4, price=Price(1_000, 2_000))
TEN = {"prompt_bytes": 40, "session_id": "s"}


def bench(**config: Any) -> Bench:
    """One pool with room for eight and a context of 1,000 tokens."""
    return Bench(wide(ctx_max=1_000), guardrails=RAILS, **config)


def left(effects: list[Effect]) -> Budgets | None:
    """What the receipt says is left."""
    (reply,) = only(effects, ReplyAccepted)
    return reply.receipt.remaining


def session(bench: Bench, name: str = "s") -> Session:
    """A session that lives."""
    found = bench.core.session("", name)
    assert found is not None
    return found


def run(bench: Bench, job_id: str, tokens_in: int = 10, tokens_out: int = 5, **spec: Any) -> None:
    """A job of the session starts and ends well."""
    bench.enqueue(job_id, **TEN | spec)
    bench.step(AttemptStarted(job_id, 1))
    bench.end(job_id, usage=Usage(tokens_in, tokens_out))


def written(effects: list[Effect]) -> SessionRecord:
    """The latest record of the one session."""
    return only(effects, SessionRecord)[-1]
