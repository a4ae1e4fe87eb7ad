"""Sentences for people about ends of jobs and changes of the configuration. ORCH-3300."""

from orchestrator_core.config.live import ReloadReport
from orchestrator_core.core.effects import JobEnded
from orchestrator_core.core.states import JobState

KEYS_SHOWN = 8


def reloaded(report: ReloadReport) -> str:
    """What became of a reload, and what is still to be done."""
    if report.problems:
        rest = "; ".join(report.problems)
        return f"The configuration stays as it was: {report.file} cannot be used: {rest}"
    count, waiting = len(report.applied), [each.key for each in report.waiting]
    done = f"{count} setting{'s' * (count != 1)} changed" if count else "nothing changed"
    shown = ", ".join(waiting[:KEYS_SHOWN]) + (", ..." if len(waiting) > KEYS_SHOWN else "")
    rest = f"; restart orchestratord for {shown}" if waiting else ""
    return f"The configuration was read again from {report.file}: {done}{rest}."


def ending(effect: JobEnded) -> str:
    """How a job ended."""
    job_id, error = effect.job_id, effect.outcome.error
    reason = error.reason.value if error else ""
    match effect.state:
        case JobState.FINISHED:
            return f"Job {job_id} finished with {effect.usage.tokens_out} tokens."
        case JobState.CANCELLED:
            return f"Job {job_id} was cancelled ({effect.why})."
        case JobState.EXPIRED:
            return f"Job {job_id} ran out of time: {reason}."
        case JobState.DROPPED:
            return f"Job {job_id} gave its place in the full queue to a newer job."
        case _:
            return f"Job {job_id} failed: {reason}."
