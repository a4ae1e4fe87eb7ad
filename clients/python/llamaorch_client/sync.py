# SPDX-License-Identifier: Apache-2.0
"""The blocking client: `AsyncClient` on one private event-loop thread."""

from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Self, TypeVar, Unpack

from llamaorch_client.aio import AsyncClient, JobFilter
from llamaorch_client.configuration import ConfigReload, Configuration
from llamaorch_client.events import Event, Result, ResumePoint
from llamaorch_client.loop_thread import LoopThread
from llamaorch_client.model import Explanation, Job, OutboundDecision, Overview, Receipt, Session
from llamaorch_client.model_fleet import Capabilities, Pool, Reloaded
from llamaorch_client.options import ClientOptions
from llamaorch_client.request import JobFields, JobRequest
from llamaorch_client.stream import JobStream
from llamaorch_client.sync_artifacts import SyncArtifacts
from llamaorch_client.sync_catalog import SyncCatalog

T = TypeVar("T")


class SyncJobStream(Iterator[Event]):
    """The events of one job, as a blocking iterator; see `JobStream`."""

    def __init__(self, loop: LoopThread, stream: JobStream) -> None:
        self._loop = loop
        self._stream = stream

    @property
    def job_id(self) -> str:
        """Id of the job; empty until a job given with `run` is accepted."""
        return self._stream.job_id

    @property
    def receipt(self) -> Receipt | None:
        """Receipt of a job given with `run`, once accepted."""
        return self._stream.receipt

    @property
    def attempt(self) -> int:
        """Attempt of the last output."""
        return self._stream.attempt

    @property
    def text_offset(self) -> int:
        """UTF-8 bytes of verified output so far."""
        return self._stream.text_offset

    @property
    def resumes(self) -> int:
        """How often the stream was resumed after a break."""
        return self._stream.resumes

    def start(self) -> Receipt | None:
        """Gives the job if `run` made this stream and nothing was read yet; returns the receipt."""
        return self._loop.call(self._stream.start())

    def result(self) -> Result:
        """Reads to the end and returns the whole text."""
        return self._loop.call(self._stream.result())

    def close(self) -> None:
        """Stops following; the job runs on. Once the client is closed there is nothing to stop."""
        if not self._loop.stopped:
            self._loop.call(self._stream.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        event = self._loop.call(_next_or_none(self._stream))
        if event is None:
            raise StopIteration
        return event


class Client:
    """A blocking client of one orchestrator; use it as a context manager.

    Methods, arguments and errors are those of `AsyncClient`. Safe to share between threads, not
    between processes.
    """

    def __init__(self, target: str, *, options: ClientOptions | None = None) -> None:
        self._client = AsyncClient(target, options=options)
        self._thread: LoopThread | None = None
        self.artifacts = SyncArtifacts(self._client.artifacts, self._open)

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise RuntimeError("this client is already open")
        thread = LoopThread()
        try:
            thread.call(self._client.__aenter__())
        except BaseException:
            # Nobody closes what could not be opened.
            thread.stop()
            raise
        self._thread = thread
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def catalog(self) -> SyncCatalog:
        """The catalog of models."""
        return SyncCatalog(self._client.catalog, self._open)

    @property
    def target(self) -> str:
        """Address of the server."""
        return self._client.target

    def close(self) -> None:
        """Closes the connection and ends the thread; jobs run on. Closing twice is fine."""
        thread, self._thread = self._thread, None
        if thread is None or thread.forked:
            # After a fork it is the parent's.
            return
        try:
            thread.call(self._client.close())
        finally:
            thread.stop()

    def enqueue(
        self,
        request: JobRequest | None = None,
        *,
        correlation_id: str | None = None,
        **fields: Unpack[JobFields],
    ) -> Receipt:
        """Gives a job and returns once the server has made it durable."""
        return self._open().call(
            self._client.enqueue(request, correlation_id=correlation_id, **fields)
        )

    def stream(
        self,
        job_id: str,
        resume_from: ResumePoint | None = None,
        observer: bool = False,
        *,
        failures_as_events: bool = False,
        correlation_id: str | None = None,
    ) -> SyncJobStream:
        """Follows a job through any break to its outcome (LO-301)."""

        async def make() -> JobStream:
            return self._client.stream(
                job_id,
                resume_from,
                observer,
                failures_as_events=failures_as_events,
                correlation_id=correlation_id,
            )

        thread = self._open()
        return SyncJobStream(thread, thread.call(make()))

    def run(
        self,
        request: JobRequest | None = None,
        *,
        failures_as_events: bool = False,
        correlation_id: str | None = None,
        **fields: Unpack[JobFields],
    ) -> SyncJobStream:
        """Gives a job and follows it."""

        async def make() -> JobStream:
            return self._client.run(
                request,
                failures_as_events=failures_as_events,
                correlation_id=correlation_id,
                **fields,
            )

        thread = self._open()
        return SyncJobStream(thread, thread.call(make()))

    def cancel(self, job_id: str, *, correlation_id: str | None = None) -> Job:
        """Cancels a job and returns its true state."""
        return self._open().call(self._client.cancel(job_id, correlation_id=correlation_id))

    def get_job(self, job_id: str, *, correlation_id: str | None = None) -> Job:
        """Returns one job."""
        return self._open().call(self._client.get_job(job_id, correlation_id=correlation_id))

    def list_jobs(
        self,
        where: JobFilter | None = None,
        *,
        limit: int | None = None,
        correlation_id: str | None = None,
    ) -> Iterator[Job]:
        """Yields jobs, newest first, page by page as they are asked for."""
        thread = self._open()
        jobs = self._client.list_jobs(where, limit=limit, correlation_id=correlation_id)
        while (job := thread.call(_next_or_none(jobs))) is not None:
            yield job

    def list_sessions(self, *, correlation_id: str | None = None) -> Iterator[Session]:
        """Yields the caller's sessions by id, page by page as they are asked for."""
        thread = self._open()
        sessions = self._client.list_sessions(correlation_id=correlation_id)
        while (session := thread.call(_next_or_none(sessions))) is not None:
            yield session

    def get_session(self, session_id: str, *, correlation_id: str | None = None) -> Session:
        """Returns one session."""
        return self._open().call(
            self._client.get_session(session_id, correlation_id=correlation_id)
        )

    def delete_session(self, session_id: str, *, correlation_id: str | None = None) -> None:
        """Forgets a session; its jobs run on."""
        self._open().call(self._client.delete_session(session_id, correlation_id=correlation_id))

    def explain(self, job_id: str, *, correlation_id: str | None = None) -> Explanation:
        """Returns why a job runs where it runs, or why it waits."""
        return self._open().call(self._client.explain(job_id, correlation_id=correlation_id))

    def capabilities(self, *, correlation_id: str | None = None) -> Capabilities:
        """Returns what the server can do."""
        return self._open().call(self._client.capabilities(correlation_id=correlation_id))

    def check_outbound(
        self,
        url: str,
        *,
        job_id: str = "",
        session_id: str = "",
        tool: str = "",
        correlation_id: str | None = None,
    ) -> OutboundDecision:
        """Asks whether a tool may connect to an address; nothing is connected to."""
        return self._open().call(
            self._client.check_outbound(
                url, job_id=job_id, session_id=session_id, tool=tool, correlation_id=correlation_id
            )
        )

    def config(self, *, correlation_id: str | None = None) -> Configuration:
        """Returns the configuration in force; secrets are cut short."""
        return self._open().call(self._client.config(correlation_id=correlation_id))

    def reload_config(
        self, *, dry_run: bool = False, correlation_id: str | None = None
    ) -> ConfigReload:
        """Reads the configuration again, and puts in force what needs no restart."""
        return self._open().call(
            self._client.reload_config(dry_run=dry_run, correlation_id=correlation_id)
        )

    def overview(self, rows: int = 0, *, correlation_id: str | None = None) -> Overview:
        """Returns what happens on the server now; lists of `rows` jobs, 0 for the server's own."""
        return self._open().call(self._client.overview(rows, correlation_id=correlation_id))

    def pools(self, *, correlation_id: str | None = None) -> tuple[Pool, ...]:
        """Returns all pools that the orchestrator knows, sorted by id."""
        return self._open().call(self._client.pools(correlation_id=correlation_id))

    def drain_pool(
        self, pool_id: str, *, timeout_s: float | None = None, correlation_id: str | None = None
    ) -> Pool:
        """Lets a pool take no more work; what runs there has `timeout_s` at most to end."""
        return self._open().call(
            self._client.drain_pool(pool_id, timeout_s=timeout_s, correlation_id=correlation_id)
        )

    def undrain_pool(self, pool_id: str, *, correlation_id: str | None = None) -> Pool:
        """Lets a drained pool take work again."""
        return self._open().call(self._client.undrain_pool(pool_id, correlation_id=correlation_id))

    def reload_pool(
        self,
        pool_id: str,
        model_ref: str = "",
        *,
        timeout_s: float | None = None,
        correlation_id: str | None = None,
    ) -> Reloaded:
        """Loads a pool's model anew, or another one; returns once that is over."""
        call = self._client.reload_pool(
            pool_id, model_ref, timeout_s=timeout_s, correlation_id=correlation_id
        )
        return self._open().call(call)

    def health(self, *, correlation_id: str | None = None) -> str:
        """Returns the server's health as grpc.health.v1 names it."""
        return self._open().call(self._client.health(correlation_id=correlation_id))

    def _open(self) -> LoopThread:
        if self._thread is None:
            raise RuntimeError("this client is not open: use `with Client(...) as client`")
        return self._thread


async def _next_or_none(items: AsyncIterator[T]) -> T | None:
    # StopAsyncIteration cannot leave a task, so the end travels as None.
    return await anext(items, None)
