"""Which job the beginning of an id means, against a naive model."""

import asyncio
from collections.abc import AsyncGenerator

from hypothesis import given
from hypothesis import strategies as st

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch_client import (
    AsyncClient,
    ErrorDetail,
    Job,
    NotFoundError,
    Overview,
    UnavailableError,
    wire,
)
from llamaorch_client.cli import job_ids
from llamaorch_client.cli.failure import UsageError

UUID_CHARS, TYPED_CHARS_MIN = 36, 4
_uuids = st.builds(
    "{}-{}-{}-{}-{}".format,
    st.sampled_from(["019a0c3e", "019a0c3f", "02000000"]),
    *(st.sampled_from(["0000", "7a7a"]) for _ in range(3)),
    st.sampled_from(["000000000001", "000000000002"]),
)
_worlds = st.lists(
    _uuids | st.sampled_from(["cafe", "cafe-2", "job-1", "job-10"]), unique=True, max_size=8
)


class Jobs(AsyncClient):
    """A client whose server knows these jobs."""

    def __init__(self, ids: list[str]) -> None:
        super().__init__("127.0.0.1:1")
        self.ids = ids

    async def list_jobs(
        self, *_: object, limit: int | None = None, **__: object
    ) -> AsyncGenerator[Job, None]:
        """The jobs, one after the other."""
        for job_id in self.ids[:limit]:
            yield wire.job(job_pb2.Job(job_id=job_id))

    async def overview(self, *_: object, **__: object) -> Overview:
        """It does not tell the time."""
        raise UnavailableError(ErrorDetail("away"))

    async def find(self, job_id: str) -> str:
        """The id of a job that there is."""
        if job_id not in self.ids:
            raise NotFoundError(ErrorDetail("no such job", "NOT_FOUND"))
        return job_id


@given(ids=_worlds, other=_uuids | st.just("job-1"), data=st.data())
def test_it_means_the_only_job_that_begins_or_ends_so(
    ids: list[str], other: str, data: st.DataObject
) -> None:
    """Or none: for any jobs, and any beginning or end of an id, in capitals too."""
    whole = data.draw(st.sampled_from([*ids, other]))
    length = data.draw(st.integers(1, len(whole)))
    typed = data.draw(st.sampled_from([whole[:length], whole[-length:]]))
    written = data.draw(st.sampled_from([typed, typed.upper()]))
    hexadecimal = set(typed) <= set("0123456789abcdef-")
    begin = [
        job_id
        for job_id in ids
        if typed in (job_id[: len(typed)], job_id[-len(typed) :])
        and len(job_id) == UUID_CHARS
        and hexadecimal
    ]
    expected = begin[0] if len(begin) == 1 and len(typed) >= TYPED_CHARS_MIN else None
    if written in ids:
        expected = written
    jobs = Jobs(ids)

    try:
        found = asyncio.run(job_ids.by_id(jobs.find, written, jobs, None))
    except (UsageError, NotFoundError):
        found = None

    assert found == expected
