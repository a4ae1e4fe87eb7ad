"""Fetches a file over HTTP: asked of the policy, resumed, bounded, verified, renamed. ORCH-3090.

What was read so far is kept beside the target as `NAME.part`, with what the server said of it in
`NAME.part.json`: a later try goes on from there (Range, If-Range with the ETag), and begins anew
when the server has another file or does not do ranges. Redirects are followed one by one, each
asked of the policy first. The file appears under its name only when its digest is the expected one.
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial as bound
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import aiohttp

from pool_managerd.core.fit import human_bytes
from pool_managerd.models.partial_file import Appender, Partial
from pool_managerd.threads import in_thread, started

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REDIRECTS_MAX = 5
_CHUNK_BYTES = 1 << 20
_DISK_RESERVE_BYTES = 256 << 20
_CLOSE_TIMEOUT_S = 2.0
_OK, _PARTIAL, _RANGE_UNSATISFIABLE = 200, 206, 416
_GATED = frozenset({401, 403})
_PASSING, _SERVER_ERRORS = frozenset({408, 429}), 500
Admit = Callable[[str], str]
"""Judges an address: an empty string allows it, a sentence says why not."""
Progress = Callable[[int, int | None], None]
"""Bytes so far, and in all where that is known. Called for every piece that was written."""


class FetchError(Exception):
    """The file could not be fetched; the message says why and what to change.

    `lasting`: trying again without a change will not help.
    """

    def __init__(self, message: str, *, lasting: bool = True) -> None:
        super().__init__(message)
        self.lasting = lasting


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """Bounds of one fetch.

    `silence_timeout_ms` without a byte, or for a connection; at most `file_bytes_max` in all;
    `tries` connections, each of which must bring something unless it is the first.
    """

    silence_timeout_ms: int = 30_000
    file_bytes_max: int = 1 << 40
    tries: int = 5
    retry_wait_ms: int = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchRequest:
    """What to fetch, whereto, and the digest that it must have ("sha256:..."; empty: the server's).

    `token` is sent to the host of `url` alone, never to where it redirects.
    """

    url: str
    target: Path
    digest: str = ""
    token: str = ""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that is complete and verified."""

    digest: str
    size_bytes: int


async def fetch(
    request: FetchRequest, admit: Admit, limits: FetchLimits, progress: Progress
) -> Fetched:
    """Fetches a file; what was read is kept when it fails, and used by the next call.

    Two calls for one target at a time are a misuse.

    Raises:
        FetchError: saying why.
        OSError: when the target cannot be written.
    """
    await in_thread(bound(request.target.parent.mkdir, parents=True, exist_ok=True))
    name = request.target.name
    partial = Partial(
        request.target.with_name(f"{name}.part"), request.target.with_name(f"{name}.part.json")
    )
    await in_thread(bound(partial.load, request.url))
    timeout = aiohttp.ClientTimeout(
        total=None,
        sock_connect=limits.silence_timeout_ms / 1000,
        sock_read=limits.silence_timeout_ms / 1000,
    )
    # No cookies, no proxy and no password file from the environment: the configuration says it all.
    async with aiohttp.ClientSession(
        timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    ) as session:
        await _with_tries(session, request, partial, _Judge(admit, limits, progress))
    return await _finish(request, partial)


@dataclass(frozen=True, slots=True)
class _Judge:
    admit: Admit
    limits: FetchLimits
    progress: Progress


async def _with_tries(
    session: aiohttp.ClientSession, request: FetchRequest, partial: Partial, judge: _Judge
) -> None:
    for number in range(judge.limits.tries):
        before = partial.size
        try:
            await _once(session, request, partial, judge)
        except (aiohttp.ClientError, TimeoutError, FetchError) as error:
            if isinstance(error, FetchError) and error.lasting:
                raise
            stuck = number > 0 and partial.size <= before
            if stuck or number + 1 == judge.limits.tries:
                raise FetchError(_broken(request.url, error, partial), lasting=False) from error
            await asyncio.sleep(judge.limits.retry_wait_ms / 1000)
        else:
            return


def _broken(url: str, error: Exception, partial: Partial) -> str:
    why = "it sent nothing for too long" if isinstance(error, TimeoutError) else str(error)
    kept = f"; {human_bytes(partial.size)} are kept for the next try" if partial.size else ""
    return f"fetching from {_host(url)} broke off: {why or type(error).__name__}{kept}"


async def _once(
    session: aiohttp.ClientSession, request: FetchRequest, partial: Partial, judge: _Judge
) -> None:
    """One connection: reads to the end, or raises."""
    if partial.total is not None and partial.size == partial.total:
        return
    async with _opened(session, request, partial, judge) as answer:
        if answer.status == _RANGE_UNSATISFIABLE:
            await in_thread(partial.discard)
            raise FetchError("the server's file is shorter than what was kept", lasting=False)
        if answer.status not in (_OK, _PARTIAL):
            raise _refused(request.url, answer.status)
        if answer.status == _OK:
            await in_thread(partial.begin_anew)
            partial.etag = answer.headers.get("ETag", "")
            partial.total = answer.content_length
        elif problem := _range_problem(answer, partial):
            await in_thread(partial.discard)
            raise FetchError(problem, lasting=False)
        else:
            partial.total = _total_of(answer)
        await in_thread(bound(_check_room, partial, judge.limits, request.url))
        await in_thread(bound(partial.save, request.url))
        await _read(answer, request, partial, judge)


@contextlib.asynccontextmanager
async def _opened(
    session: aiohttp.ClientSession, request: FetchRequest, partial: Partial, judge: _Judge
) -> AsyncGenerator[aiohttp.ClientResponse, None]:
    """The answer at the end of all redirects; each address is asked of the policy."""
    url = request.url
    for _ in range(_REDIRECTS_MAX + 1):
        refusal = judge.admit(url)
        if refusal:
            raise FetchError(refusal)
        headers = {"Accept-Encoding": "identity", "User-Agent": "llama-orch"}
        if partial.size and partial.etag and not partial.etag.startswith("W/"):
            headers |= {"Range": f"bytes={partial.size}-", "If-Range": partial.etag}
        if request.token and _host(url) == _host(request.url):
            headers["Authorization"] = f"Bearer {request.token}"
        async with session.get(url, headers=headers, allow_redirects=False) as answer:
            _note_digest(answer, partial)
            if answer.status not in _REDIRECTS:
                yield answer
                return
            url = _redirected(url, answer.headers.get("Location", ""))
    raise FetchError(f"{_host(request.url)} redirects more than {_REDIRECTS_MAX} times")


def _redirected(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise FetchError(f"{_host(url)} redirects to what is no address") from error


def _note_digest(answer: aiohttp.ClientResponse, partial: Partial) -> None:
    """Hugging Face tells the SHA-256 of a large file as the ETag of what it redirects to."""
    linked = answer.headers.get("X-Linked-Etag", "").strip('"')
    if len(linked) == 64 and all(digit in "0123456789abcdef" for digit in linked):  # noqa: PLR2004 - hex digits of SHA-256
        partial.digest = f"sha256:{linked}"


def _refused(url: str, status: int) -> FetchError:
    if status in _GATED:
        return FetchError(
            f"{_host(url)} refuses access (status {status}); set HF_TOKEN for gated models"
        )
    passing = status in _PASSING or status >= _SERVER_ERRORS
    return FetchError(f"{_host(url)} answered with status {status}", lasting=not passing)


def _range_problem(answer: aiohttp.ClientResponse, partial: Partial) -> str:
    """Why a part of a file does not go on where the kept one ends; empty where it does."""
    begin = answer.headers.get("Content-Range", "").partition("/")[0]
    if not begin.startswith(f"bytes {partial.size}-") or _total_of(answer) is None:
        return "the server answered with another range"
    # Some look at no If-Range.
    if answer.headers.get("ETag", partial.etag) != partial.etag:
        return "the server has another file than the one that was kept"
    return ""


def _total_of(answer: aiohttp.ClientResponse) -> int | None:
    total = answer.headers.get("Content-Range", "").partition("/")[2]
    return int(total) if total.isascii() and total.isdecimal() and len(total) < 20 else None  # noqa: PLR2004 - digits of 64 bits


def _check_room(partial: Partial, limits: FetchLimits, url: str) -> None:
    """Refuses a file that is too large, or would leave too little room for others on the disk.

    Of one whose length the server does not tell, what was written so far must leave it.
    """
    if partial.total is not None and partial.total > limits.file_bytes_max:
        raise FetchError(
            f"the file at {_host(url)} has {human_bytes(partial.total)}, more than "
            f"outbound.file_bytes_max = {limits.file_bytes_max}"
        )
    free = shutil.disk_usage(partial.file.parent).free
    rest = 0 if partial.total is None else partial.total - partial.size
    needed = rest + _DISK_RESERVE_BYTES
    if needed > free:
        raise FetchError(
            f"{partial.file.parent} has {human_bytes(free)} free, {human_bytes(needed)} are "
            "needed; free some, or set models.cache_directory to another disk"
        )


def _check_size(size: int, limits: FetchLimits, url: str) -> None:
    if size > limits.file_bytes_max:
        raise FetchError(
            f"{_host(url)} sends more than outbound.file_bytes_max = {limits.file_bytes_max}"
        )


async def _read(
    answer: aiohttp.ClientResponse, request: FetchRequest, partial: Partial, judge: _Judge
) -> None:
    size = partial.size
    judge.progress(size, partial.total)
    unwritten, file = bytearray(), Appender(partial)
    try:
        async for data in answer.content.iter_any():
            size += len(data)
            _check_size(size, judge.limits, request.url)
            unwritten += data
            if len(unwritten) >= _CHUNK_BYTES:
                file.add(unwritten)
                unwritten = bytearray()
                await in_thread(file.write)
                if partial.total is None:
                    await in_thread(bound(_check_room, partial, judge.limits, request.url))
            judge.progress(size, partial.total)
    except BaseException:
        # What came before a break or a cancel is kept; it is less than a chunk. A disk that hangs
        # is not waited for.
        file.add(unwritten)
        await asyncio.wait([started(file.close)], timeout=_CLOSE_TIMEOUT_S)
        raise
    file.add(unwritten)
    await in_thread(file.close)
    if partial.total is not None and size != partial.total:
        raise FetchError(f"{size} of {partial.total} bytes came", lasting=False)
    partial.total = size


async def _finish(request: FetchRequest, partial: Partial) -> Fetched:
    """Verifies what was read and gives it its name."""
    expected = request.digest or partial.digest
    if not expected:
        raise FetchError(
            f"{_host(request.url)} tells no SHA-256 of the file; add #sha256= and its digest"
        )
    found = await in_thread(bound(_sealed, partial.file))
    size = partial.size
    if found != expected:
        await in_thread(partial.discard)
        raise FetchError(
            f"the file from {_host(request.url)} has the digest {found}, not {expected}; it was "
            "deleted"
        )
    await in_thread(bound(partial.rename, request.target))
    return Fetched(found, size)


def _sealed(path: Path) -> str:
    """The digest of a file that is on the disk for good. Blocks."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return f"sha256:{digest}"


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]
