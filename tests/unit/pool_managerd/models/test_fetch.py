"""Fetching a file from servers that do not behave. ORCH-3090, ORCH-3080."""

import hashlib
import stat
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pool_managerd.core.outbound import OutboundPolicy, decide_outbound
from pool_managerd.models.fetch import Fetched, FetchError, FetchLimits, FetchRequest, fetch
from pool_managerd.models.partial_file import Appender, Partial
from tests.unit.pool_managerd.models.file_servers import FileServer, serving

LIMITS = FetchLimits(silence_timeout_ms=5_000, retry_wait_ms=1)
POLICY = OutboundPolicy(enabled=True, allow=("127.0.0.1",))


@pytest.fixture
async def server() -> AsyncGenerator[FileServer, None]:
    """A server that behaves until a test says otherwise."""
    async with serving(FileServer()) as running:
        yield running


def sha256(content: bytes) -> str:
    """The digest as it is written here."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


async def get(
    server: FileServer, folder: Path, limits: FetchLimits = LIMITS, **request: str
) -> Fetched:
    """Fetches the server's file to `folder`/m.gguf under the policy."""
    wanted = {"digest": sha256(server.content)} | request

    def progress(done: int, _total: int | None) -> None:
        if done:
            server.got_some.set()

    return await fetch(
        FetchRequest(url=f"{server.url}/m.gguf", target=folder / "m.gguf", **wanted),
        lambda url: decide_outbound(POLICY, url).sentence,
        limits,
        progress,
    )


def files(folder: Path) -> list[str]:
    """What lies there."""
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_file_is_fetched_verified_and_renamed(
    server: FileServer, tmp_path: Path, *, chunked: bool
) -> None:
    """With or without a stated length; nothing else is left."""
    server.chunked = chunked

    found = await get(server, tmp_path / "new")

    assert found == Fetched(sha256(server.content), len(server.content))
    assert (tmp_path / "new" / "m.gguf").read_bytes() == server.content
    assert files(tmp_path / "new") == ["m.gguf"]


async def test_a_cut_transfer_goes_on_where_it_stopped(server: FileServer, tmp_path: Path) -> None:
    """Within one call: the second request asks for the rest of the same file."""
    server.cut_after = 100_000

    await get(server, tmp_path)

    first, second = server.seen
    assert "Range" not in first.headers
    assert second.headers["If-Range"] == server.etag
    assert int(second.headers["Range"].removeprefix("bytes=").removesuffix("-")) > 0
    assert (tmp_path / "m.gguf").read_bytes() == server.content


async def test_what_was_read_is_used_by_a_later_call(server: FileServer, tmp_path: Path) -> None:
    """A restart of the pool manager does not begin a large file anew."""
    server.cut_after = 100_000
    with pytest.raises(FetchError, match=r"broke off: .* are kept for the next try") as caught:
        await get(server, tmp_path, FetchLimits(tries=1))
    assert not caught.value.lasting
    assert files(tmp_path) == ["m.gguf.part", "m.gguf.part.json"]

    await get(server, tmp_path)

    assert "Range" in server.seen[1].headers
    assert files(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize("change", ["another file", "no ranges", "no etag", "weak etag"])
async def test_a_transfer_begins_anew_where_it_cannot_go_on(
    server: FileServer, tmp_path: Path, change: str
) -> None:
    """The pieces of two files are never put together."""
    if change in ("no etag", "weak etag"):
        server.etag = "" if change == "no etag" else 'W/"one"'
    server.cut_after = 100_000
    with pytest.raises(FetchError):
        await get(server, tmp_path, FetchLimits(tries=1))
    if change == "another file":
        server.etag, server.content = '"two"', b"GGUF other" * 50_000
    server.ranges = change != "no ranges"

    await get(server, tmp_path)

    assert (tmp_path / "m.gguf").read_bytes() == server.content


async def test_a_server_that_looks_at_no_if_range_does_not_mix_two_files(
    server: FileServer, tmp_path: Path
) -> None:
    """It sends the rest of another file: what was kept is not put before it."""
    server.cut_after = 100_000
    with pytest.raises(FetchError):
        await get(server, tmp_path, FetchLimits(tries=1))
    server.etag, server.content, server.careless = '"two"', b"GGUF other" * 50_000, True

    found = await get(server, tmp_path)

    assert found.size_bytes == len(server.content)
    assert (tmp_path / "m.gguf").read_bytes() == server.content


async def test_what_is_noted_of_an_address_is_for_nobody_else(
    server: FileServer, tmp_path: Path
) -> None:
    """Its query may hold a signature."""
    server.cut_after = 100_000
    with pytest.raises(FetchError):
        await get(server, tmp_path, FetchLimits(tries=1))

    mode = (tmp_path / "m.gguf.part.json").stat().st_mode

    assert stat.S_IMODE(mode) == 0o600


async def test_a_wrong_digest_leaves_nothing_behind(server: FileServer, tmp_path: Path) -> None:
    """The file never has its name, and the next try does not go on with the wrong bytes."""
    with pytest.raises(FetchError, match=f"has the digest {sha256(server.content)}, not sha256:00"):
        await get(server, tmp_path, digest=f"sha256:{'0' * 64}")

    assert files(tmp_path) == []


async def test_a_file_without_any_digest_is_not_taken(server: FileServer, tmp_path: Path) -> None:
    """Nobody could say that it is the right one."""
    with pytest.raises(FetchError, match="tells no SHA-256 of the file; add #sha256="):
        await get(server, tmp_path, digest="")


async def test_a_redirect_to_a_refused_host_is_refused(server: FileServer, tmp_path: Path) -> None:
    """Each address on the way is judged, and the refused one is never asked."""
    async with serving(FileServer()) as elsewhere:
        server.redirect = elsewhere.url.replace("127.0.0.1", "localhost") + "/m.gguf"

        with pytest.raises(FetchError, match="fetching from localhost is not allowed"):
            await get(server, tmp_path)

        assert not elsewhere.seen
    assert len(server.seen) == 1


async def test_a_redirect_is_followed_without_the_token(server: FileServer, tmp_path: Path) -> None:
    """A token is for the host that was named."""
    async with serving(FileServer()) as elsewhere:
        server.redirect = f"{elsewhere.url}/cdn"

        await get(server, tmp_path, token="secret")  # noqa: S106 - of nobody

        assert server.seen[0].headers["Authorization"] == "Bearer secret"
        assert "Authorization" not in elsewhere.seen[0].headers


async def test_redirects_are_bounded(server: FileServer, tmp_path: Path) -> None:
    """A loop ends."""
    server.status = [302] * 50

    with pytest.raises(FetchError, match="redirects more than 5 times"):
        await get(server, tmp_path)


@pytest.mark.parametrize(
    ("status", "requests", "said"),
    [
        (404, 1, "answered with status 404"),
        (401, 1, "refuses access .* set HF_TOKEN"),
        (503, 3, "answered with status 503"),
    ],
)
async def test_a_refusal_is_named_and_only_passing_ones_are_tried_again(
    server: FileServer, tmp_path: Path, status: int, requests: int, said: str
) -> None:
    """Asking again for what is not there would help nobody."""
    server.status = [status] * 50

    with pytest.raises(FetchError, match=said):
        await get(server, tmp_path, FetchLimits(tries=3, retry_wait_ms=1))

    assert len(server.seen) <= requests


async def test_a_server_that_recovers_is_asked_again(server: FileServer, tmp_path: Path) -> None:
    """One 503 is no reason to give up."""
    server.status = [503]

    await get(server, tmp_path)

    assert len(server.seen) == 2


async def test_a_silent_server_is_given_up(server: FileServer, tmp_path: Path) -> None:
    """What came is kept."""
    server.stall = True

    with pytest.raises(FetchError, match="it sent nothing for too long; 1000 bytes are kept"):
        await get(server, tmp_path, FetchLimits(silence_timeout_ms=100, tries=1))


@pytest.mark.parametrize(
    ("chunked", "said"), [(False, "more than outbound.file_bytes_max"), (True, "sends more than")]
)
async def test_a_file_that_is_too_large_is_refused(
    server: FileServer, tmp_path: Path, *, chunked: bool, said: str
) -> None:
    """By its stated size before a byte is written, else as it comes."""
    server.chunked = chunked

    with pytest.raises(FetchError, match=said):
        await get(server, tmp_path, FetchLimits(file_bytes_max=1_000))

    assert not (tmp_path / "m.gguf").exists()


async def test_a_full_disk_is_named_before_it_is_full(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what is free and what is needed."""
    monkeypatch.setattr("pool_managerd.models.fetch._DISK_RESERVE_BYTES", 1 << 60)

    with pytest.raises(FetchError, match=r"free, .* are needed; free some, or set models\.cache"):
        await get(server, tmp_path)


async def test_a_disk_that_fills_up_ends_a_file_of_unknown_length(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a file is measured as it comes: a terabyte may be allowed, and the disk smaller."""
    server.chunked, server.content = True, bytes(4 << 20)

    def disk_usage(folder: Path) -> SimpleNamespace:
        written = sum(path.stat().st_size for path in folder.glob("*.part"))
        return SimpleNamespace(free=(256 << 20) + (2 << 20) - written)

    monkeypatch.setattr("pool_managerd.models.fetch.shutil.disk_usage", disk_usage)

    with pytest.raises(FetchError, match=r"free, .* are needed; free some, or set models\.cache"):
        await get(server, tmp_path)

    assert (tmp_path / "m.gguf.part").stat().st_size < len(server.content)


async def test_a_redirect_to_no_address_is_named(server: FileServer, tmp_path: Path) -> None:
    """It is the server's mistake, and no crash."""
    server.redirect = "http://[x"

    with pytest.raises(FetchError, match="redirects to what is no address"):
        await get(server, tmp_path)


async def test_progress_is_told(server: FileServer, tmp_path: Path) -> None:
    """From nothing to all, with the total."""
    told: list[tuple[int, int | None]] = []

    await fetch(
        FetchRequest(url=server.url + "/f", target=tmp_path / "f", digest=sha256(server.content)),
        lambda _url: "",
        LIMITS,
        lambda done, total: told.append((done, total)),
    )

    size = len(server.content)
    assert told[0] == (0, size)
    assert told[-1] == (size, size)


def test_what_came_first_stands_first_whichever_thread_is_the_faster(tmp_path: Path) -> None:
    """A fetch that is cancelled starts a thread for the rest, which may overtake the one before."""
    partial = Partial(tmp_path / "m.part", tmp_path / "m.part.json")
    appender = Appender(partial)
    appender.add(bytearray(b"one, "))
    appender.add(bytearray(b"two"))

    appender.close()
    appender.write()

    assert (partial.file.read_bytes(), partial.size) == (b"one, two", 8)
