"""Jobs by the beginning of their ids: what `stream`, `cancel` and `explain` take for which job."""

from typing import Any

import grpc
import pytest

from llamaorch.orchestrator.v1 import job_pb2, orchestrator_service_pb2
from llamaorch_client.cli import job_ids
from tests.integration.clients import scripted_server as wire
from tests.integration.clients.llorch import within
from tests.integration.clients.scripted_server import Failure, Reply, ScriptedServer

MADE = (
    "019a0c3e-9d7a-7c2b-8f00-000000000001",
    "019a0c3e-9d7b-7c2b-8f00-000000000002",
    "019a0c3f-0000-7c2b-8f00-000000000003",
    "02000000-0000-7c2b-8f00-000000000004",
)
CHOSEN = ("cafe", "job-10")


def serve(server: ScriptedServer, *ids: str, page: int = 2) -> list[str]:
    """A server that knows these jobs, the newest first; what was done to which."""
    done: list[str] = []

    def about(answer: Any) -> Any:
        def reply(request: Any) -> Reply:
            if request.job_id not in ids:
                text = f"no job {request.job_id!r} is known"
                return Failure(grpc.StatusCode.NOT_FOUND, "NOT_FOUND", text)
            done.append(request.job_id)
            return answer(job=wire.job(request.job_id, job_pb2.JOB_STATE_CANCELLED))

        return reply

    def listed(request: Any) -> Reply:
        first = int(request.page_token or 0)
        last = first + min(page, request.page_size)
        return orchestrator_service_pb2.ListJobsResponse(
            jobs=[wire.job(job_id) for job_id in ids[first:last]],
            next_page_token=str(last) if last < len(ids) else "",
        )

    server.on("Cancel", about(orchestrator_service_pb2.CancelResponse))
    server.on("ExplainJob", about(orchestrator_service_pb2.ExplainJobResponse))
    server.on("GetJob", about(orchestrator_service_pb2.GetJobResponse))
    server.on("ListJobs", listed)
    return done


async def test_a_whole_id_is_taken_at_its_word(server: ScriptedServer) -> None:
    """Nothing is listed: not for one that is there, nor for one that is not."""
    done = serve(server, *MADE, *CHOSEN)

    known = await within(server.address, "cancel", MADE[1])
    named = await within(server.address, "cancel", "cafe")
    gone = await within(server.address, "cancel", "029a0c3e-9d7a-7c2b-8f00-000000000001")

    assert (known.code, named.code, gone.code) == (0, 0, 2)
    assert done == [MADE[1], "cafe"]
    assert not server.made("ListJobs")


@pytest.mark.parametrize("typed", [MADE[1].upper(), "019A0C3E-9D7B"])
async def test_an_id_may_be_typed_in_capitals(server: ScriptedServer, typed: str) -> None:
    """As RFC 9562 has it; names that clients chose are another matter."""
    done = serve(server, *MADE, *CHOSEN)

    said = await within(server.address, "cancel", typed)
    name = await within(server.address, "cancel", "CAFE")

    assert (said.code, name.code, done) == (0, 2, [MADE[1]])
    assert "no job 'CAFE' is known" in name.stderr


async def test_an_empty_id_is_refused_at_once(server: ScriptedServer) -> None:
    """What an unset variable of a script leaves."""
    said = [await within(server.address, name, "") for name in ("cancel", "stream", "drain")]

    assert [each.code for each in said] == [2, 2, 2]
    assert said[0].stderr == (
        "llorch cancel: JOB: is empty: give an id; see `llorch cancel --help`\n"
    )
    assert not server.calls


@pytest.mark.parametrize("command", ["cancel", "explain"])
async def test_the_beginning_of_one_id_is_enough(server: ScriptedServer, command: str) -> None:
    """The job is told by its whole id."""
    done = serve(server, *MADE, *CHOSEN)

    said = await within(server.address, command, "019a0c3e-9d7b")

    assert (said.code, done) == (0, [MADE[1]])
    assert MADE[1] in said.stdout
    # A server that picks them out sends nothing else.
    assert {call.request.id_part for call in server.made("ListJobs")} == {"019a0c3e-9d7b"}


async def test_stream_follows_by_the_whole_id(server: ScriptedServer) -> None:
    """The stream itself knows no beginnings."""
    serve(server, *MADE)
    server.on("StreamTokens", [[wire.tokens("", ["hi"]), wire.end("hi")]])

    said = await within(server.address, "stream", "0200")

    assert (said.code, said.stdout.strip()) == (0, "hi")
    assert server.made("StreamTokens")[0].request.job_id == MADE[3]


async def test_the_beginning_of_several_ids_is_refused_with_the_newest(
    server: ScriptedServer,
) -> None:
    """What to type more of is shown; nothing is done."""
    done = serve(server, *MADE)

    said = await within(server.address, "cancel", "019a")

    assert (said.code, done) == (2, [])
    several = "llorch: the ids of several jobs begin or end with 019a: "
    assert said.stderr.startswith(f"{several}{MADE[0]} (running, given 0 ms ago), ")
    assert said.stderr.endswith("; type more of the one meant\n")
    assert "and more" not in said.stderr


async def test_few_characters_mean_nothing(server: ScriptedServer) -> None:
    """A slip of the hand cancels no job, not even the only one."""
    done = serve(server, MADE[3])

    said = await within(server.address, "cancel", "020")

    assert (said.code, done) == (2, [])
    assert said.stderr == "llorch: 020 is too short: type 4 characters of an id\n"


async def test_an_id_that_a_client_chose_is_a_name(server: ScriptedServer) -> None:
    """`job-1`, long forgotten, is not `job-10`; nor is `caf` the beginning of `cafe`."""
    done = serve(server, *CHOSEN, "cafe-2")

    said = await within(server.address, "cancel", "job-1")
    hex_ = await within(server.address, "cancel", "cafe-")
    nothing = await within(server.address, "cancel", "x")

    assert (said.code, hex_.code, nothing.code, done) == (2, 2, 2, [])
    assert "no job 'job-1' is known; these begin so, and are to be given whole: job-10" in (
        said.stderr
    )
    assert "whole: cafe-2;" in hex_.stderr
    assert nothing.stderr == (
        "llorch: not found: no job 'x' is known; `llorch jobs` lists what the server knows\n"
    )


async def test_among_too_many_jobs_no_beginning_counts(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that nobody looked at may have such an id too."""
    monkeypatch.setattr(job_ids, "LOOKED_AT_MAX", 3)
    done = serve(server, *MADE)

    many = await within(server.address, "cancel", "019a0c3e-9d7a")
    done_then = list(done)
    serve(server, *MADE[:3])
    few = await within(server.address, "cancel", "019a0c3e-9d7a")

    assert (many.code, done_then) == (2, [])
    assert "there are over 3 jobs" in many.stderr
    assert f"if {MADE[0]} (running" in many.stderr
    assert few.code == 0
