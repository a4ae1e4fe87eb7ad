"""Sessions of the core as clients see them."""

from llamaorch.orchestrator.v1 import job_pb2, session_service_pb2
from orchestrator_core.core.session import Session, Spent
from orchestrator_core.core.spec import NO_BUDGETS
from orchestrator_core.core.spending import Balance
from orchestrator_core.wire.views import budgets_to_proto, timestamp


def session_to_proto(
    session: Session, account: Balance, turns_max: int
) -> session_service_pb2.Session:
    """One session as it is now. O(jobs that have not ended)."""
    message = session_service_pb2.Session(
        session_id=session.session_id,
        opened_at=timestamp(session.opened_ms),
        used_at=timestamp(session.used_ms),
        turns=session.turns,
        turns_max=turns_max,
        spent=_amount(session.spent),
        reserved=_amount(account.reserved),
        remaining=budgets_to_proto(account.left),
        job_ids=session.held,
        warm_pool_id=session.pool_id,
        kv_tokens=session.kv_tokens,
    )
    if account.budgets != NO_BUDGETS:
        message.budgets.CopyFrom(budgets_to_proto(account.budgets) or job_pb2.Budgets())
    if account.expires_ms is not None:
        message.expires_at.CopyFrom(timestamp(account.expires_ms))
    return message


def _amount(amount: Spent) -> job_pb2.Budgets:
    return job_pb2.Budgets(
        tokens=amount.tokens, time_ms=amount.time_ms, cost_micros=amount.cost_micros
    )
