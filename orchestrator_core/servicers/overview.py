"""What happens now, in short: for displays that look once a second.

Its cost grows with the rows that are shown and with the jobs that run, not with those that wait or
are remembered.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from orchestrator_core.core.job import Job
from orchestrator_core.core.outcome import Reason
from orchestrator_core.core.spec import Priority
from orchestrator_core.errors import RefusalError
from orchestrator_core.runtime import Runtime
from orchestrator_core.servicers.job_views import job_view
from orchestrator_core.servicers.paging import PAGE_BYTES_MAX, fitting
from orchestrator_core.wire.decisions import decision_in_short
from orchestrator_core.wire.enums import PRIORITY_TO_WIRE
from orchestrator_core.wire.views import job_to_proto, timestamp

ROWS_DEFAULT = 20
ROWS_MAX = 200
# Among so many jobs at an end of each list those of one client are looked for.
LOOK_MAX = 2_000
# Of an answer, for each of its four lists of jobs: clients may have labelled theirs at length.
LIST_BYTES_MAX = PAGE_BYTES_MAX // 4

Sees = Callable[[str], bool]


async def overview(
    runtime: Runtime, rows_max: int, sees: Sees | None = None
) -> pb.GetOverviewResponse:
    """The state at this instant. What it says of ended jobs is durable. O(rows).

    With `sees`, rows show only jobs of owners that it allows, among the first `LOOK_MAX` of each
    list; totals count all.
    """
    rows = min(rows_max or ROWS_DEFAULT, ROWS_MAX)
    while True:
        told = _now(runtime, rows, sees)
        ended_ids = [job.job_id for job in told.ended]
        try:
            await runtime.settled()
        except RefusalError as error:
            if error.refusal.reason is not Reason.STORE_UNAVAILABLE:
                raise
            # What is not durable may be taken back, so nobody is told of it.
            del told.ended[:]
            told.store_unavailable = True
            return told
        if not any(_lives(runtime, job_id) for job_id in ended_ids):
            return told


def _lives(runtime: Runtime, job_id: str) -> bool:
    job = runtime.core.jobs.get(job_id)
    return job is not None and job.live


def _now(runtime: Runtime, rows: int, sees: Sees | None) -> pb.GetOverviewResponse:
    core = runtime.core
    attempts = (core.jobs.get(job_id) for job_id, _ in core.attempts)
    live = [job for job in attempts if job is not None and job.live]
    running = list(_seen(live, sees, len(live)))
    ended = list(_seen(core.ended_last(_looked(rows, sees)), sees, rows))
    decided = [decision for job in (*running, *ended) for decision in job.decisions[-1:]]
    decided.sort(key=lambda decision: (-decision.decided_ms, decision.job_id))
    return pb.GetOverviewResponse(
        queues=[_queue(runtime, priority, rows, sees) for priority in Priority],
        queue_capacity=core.config.queue_capacity,
        running=_listed(runtime, running[:rows]),
        running_total=len(live),
        decisions=map(decision_in_short, decided[:rows]),
        ended=_listed(runtime, ended),
        ended_total=core.ended_total,
        draining=core.draining,
        observed_at=timestamp(runtime.clock.now_ms()),
    )


def _queue(runtime: Runtime, priority: Priority, rows: int, sees: Sees | None) -> pb.QueueView:
    core = runtime.core
    first = islice(core.waiting(priority), _looked(rows, sees))
    view = pb.QueueView(
        priority=PRIORITY_TO_WIRE[priority],
        waiting=core.queue_depth(priority),
        next=_listed(runtime, _seen(first, sees, rows)),
    )
    last = core.last_waiting(priority)
    if last is not None:
        start_ms = core.forecast(last).start_ms
        if start_ms is not None:
            view.last_predicted_start_ms = max(0, start_ms)
    return view


def _looked(rows: int, sees: Sees | None) -> int:
    return rows if sees is None else LOOK_MAX


def _seen(jobs: Iterable[Job], sees: Sees | None, rows: int) -> Iterator[Job]:
    return islice((job for job in jobs if sees is None or sees(job.spec.identity)), rows)


def _listed(runtime: Runtime, jobs: Iterable[Job]) -> list[job_pb2.Job]:
    return fitting((job_to_proto(job_view(runtime, job)) for job in jobs), LIST_BYTES_MAX)
