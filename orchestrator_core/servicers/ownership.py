"""Whose jobs a caller may see, follow and stop: its own, unless it sees all. AUTH-1007.

A job of another client is answered like one that is not known, so that an id tells nothing.
"""

from orchestrator_core.auth.caller import caller, sees
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.errors import RefusalError
from orchestrator_core.runtime import Runtime


def check_own(runtime: Runtime, job_id: str) -> None:
    """Refuses a job that this call's client may not know of. What is known must be certain by now.

    Raises:
        RefusalError: NOT_FOUND.
    """
    who = caller()
    if who.sees_all:
        return
    job = runtime.core.jobs.get(job_id)
    if job is None or not sees(job.spec.identity):
        text = (
            f"no job {job_id!r} of {who.name} is known; it may have ended longer ago than the "
            "retention, or belong to another client"
        )
        raise RefusalError(Refusal(Reason.NOT_FOUND, text, resource=job_id))
