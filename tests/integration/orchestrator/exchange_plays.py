"""A host and what a client of an Exchange should hear of it."""

from google.rpc import error_details_pb2, status_pb2

from tests.integration.orchestrator.scripted_host import ScriptedHost


def reason(status: status_pb2.Status) -> str:
    """Stable reason of a status."""
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    return str(info.reason)


async def play(host: ScriptedHost, jobs: int, pieces: int) -> None:
    """Runs jobs to their end, side by side: one piece of each in turn."""
    starts = [await host.start() for _ in range(jobs)]
    for start in starts:
        await host.started(start.handle)
    for number in range(pieces):
        for start in starts:
            await host.tokens(start.handle, f"{start.job_id}-{number} ")
    for start in starts:
        await host.finish(start.handle)


def expected(job_id: str, pieces: int) -> str:
    """Output of a job that `play` ran."""
    return "".join(f"{job_id}-{number} " for number in range(pieces))
