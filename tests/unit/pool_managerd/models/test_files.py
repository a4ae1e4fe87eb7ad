"""References to model files as a host resolves them. ORCH-3080, ORCH-3090, ORCH-3091."""

import asyncio
import hashlib
import json
import os
import sys
import threading
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path

import pytest
import structlog

from pool_managerd.clock import SystemClock
from pool_managerd.config.schema import Config
from pool_managerd.engines.file_reads import FileReads
from pool_managerd.engines.port import PreloadError
from pool_managerd.models.files import FoundModel, ModelFiles
from tests.unit.pool_managerd.models.file_servers import FileServer, serving

POOLS = [{"pool_id": "p", "engine": {"kind": "mock"}}]


@pytest.fixture
async def hub() -> AsyncGenerator[FileServer, None]:
    """A stand-in of the Hugging Face Hub: the digest comes with a redirect to the bytes."""
    async with serving(FileServer()) as cdn, serving(FileServer()) as hub:
        hub.redirect = f"{cdn.url}/blob?signature=secret"
        hub.headers = {"X-Linked-Etag": f'"{hashlib.sha256(cdn.content).hexdigest()}"'}
        yield hub


def model_files(tmp_path: Path, hub: FileServer | None = None, **outbound: object) -> ModelFiles:
    """A host that may fetch from 127.0.0.1."""
    table = {"enabled": True, "allow": ["127.0.0.1"], **outbound}
    if hub is not None:
        table["hf_endpoint"] = hub.url
    config = Config.model_validate(
        {
            "pools": POOLS,
            "outbound": table,
            "models": {"directory": str(tmp_path), "cache_directory": str(tmp_path / "cache")},
        }
    )
    return ModelFiles(config, SystemClock())


async def test_a_file_of_the_hub_is_fetched_once(hub: FileServer, tmp_path: Path) -> None:
    """Verified by the digest that the Hub tells; later it is found without a connection."""
    files = model_files(tmp_path, hub)
    first, second = await asyncio.gather(
        files.find("hf:org/repo@v1/dir/m.gguf", "a"), files.find("hf:org/repo@v1/dir/m.gguf", "b")
    )

    assert first == second
    assert first.path == tmp_path / "cache" / "hf" / "org" / "repo" / "v1" / "dir" / "m.gguf"
    assert first.path.read_bytes() == hub.content
    assert [request.path for request in hub.seen] == ["/org/repo/resolve/v1/dir/m.gguf"]
    offline = model_files(tmp_path, hub, enabled=False)
    assert await offline.find("hf:org/repo@v1/dir/m.gguf", "a") == first
    assert await files.digest(first) == f"sha256:{hashlib.sha256(hub.content).hexdigest()}"


async def test_repositories_with_alike_names_have_folders_of_their_own(
    hub: FileServer, tmp_path: Path
) -> None:
    """One is never taken for the other."""
    files = model_files(tmp_path, hub)

    found = {(await files.find(f"hf:{repo}/m.gguf", "p")).path for repo in ("a--b/c", "a/b--c")}

    assert len(found) == len(hub.seen) == 2


async def test_two_processes_do_not_fetch_into_the_same_file(
    hub: FileServer, tmp_path: Path
) -> None:
    """The `fetch` command beside a pool manager: the later one waits and finds the file there."""
    one, other = model_files(tmp_path, hub), model_files(tmp_path, hub)

    first, second = await asyncio.gather(
        one.find("hf:org/repo@v1/m.gguf", "a"), other.find("hf:org/repo@v1/m.gguf", "b")
    )

    assert first == second
    assert first.path.read_bytes() == hub.content
    assert len(hub.seen) == 1


async def test_a_verified_file_is_found_where_nothing_can_be_written(
    hub: FileServer, tmp_path: Path
) -> None:
    """A cache may be shared and read-only."""
    found = await model_files(tmp_path, hub).find("hf:o/r/m.gguf", "p")
    found.path.with_name("m.gguf.lock").unlink()
    found.path.parent.chmod(0o500)

    assert await model_files(tmp_path, hub).find("hf:o/r/m.gguf", "p") == found
    assert not found.path.with_name("m.gguf.lock").exists()


async def test_a_split_file_of_the_hub_comes_with_all_its_parts(tmp_path: Path) -> None:
    """Named by its first part, as everywhere."""
    async with serving(FileServer()) as hub:
        hub.headers = {"X-Linked-Etag": f'"{hashlib.sha256(hub.content).hexdigest()}"'}

        found = await model_files(tmp_path, hub).find("hf:o/r/m-00001-of-00003.gguf", "p")

        assert len(hub.seen) == 3
    assert len(list(found.path.parent.glob("*.gguf"))) == 3
    assert found.verified == ""


async def test_a_file_that_changed_since_is_fetched_again(hub: FileServer, tmp_path: Path) -> None:
    """What was verified is not what lies there now."""
    files = model_files(tmp_path, hub)
    found = await files.find("hf:o/r/m.gguf", "p")
    found.path.write_bytes(b"tampered")

    again = await files.find("hf:o/r/m.gguf", "p")

    assert again.path.read_bytes() == hub.content


async def test_a_digest_other_than_that_of_the_cache_is_refused(
    hub: FileServer, tmp_path: Path
) -> None:
    """A revision that moved, or a mistake: nobody should guess which."""
    files = model_files(tmp_path, hub)
    await files.find("hf:o/r/m.gguf", "p")

    with pytest.raises(PreloadError, match="delete it to fetch it again"):
        await files.find(f"hf:o/r/m.gguf#sha256={'1' * 64}", "p")


async def test_every_decision_is_logged_with_ids_and_without_secrets(
    hub: FileServer, tmp_path: Path
) -> None:
    """ORCH-3080: one line for each address, the redirect's too; of addresses the host alone."""
    files = model_files(tmp_path, hub, deny=["localhost"])

    with structlog.testing.capture_logs() as lines:
        await files.find("hf:o/r/m.gguf", "p")
        with pytest.raises(PreloadError, match=r"add elsewhere to outbound\.allow"):
            await files.find(f"https://elsewhere/m.gguf#sha256={'1' * 64}", "p")

    decisions = [line for line in lines if line["event"] == "outbound_decision"]
    assert [(line["allowed"], line["remote_host"]) for line in decisions] == [
        (True, "127.0.0.1"),
        (True, "127.0.0.1"),
        (False, "elsewhere"),
    ]
    assert len({line["decision_id"] for line in decisions}) == 3
    assert {line["owner"] for line in decisions} == {"p"}
    assert "signature" not in json.dumps(lines)


async def test_progress_is_logged_at_a_bounded_rate(tmp_path: Path) -> None:
    """However many pieces come within an interval."""
    async with serving(FileServer(content=bytes(8 << 20))) as server:
        digest = hashlib.sha256(server.content).hexdigest()

        with structlog.testing.capture_logs() as lines:
            await model_files(tmp_path).find(f"{server.url}/m.gguf#sha256={digest}", "p")

    assert 1 <= len([line for line in lines if line["event"] == "model_fetch"]) <= 3


async def test_a_fetch_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    """What came is kept for the next try."""
    async with serving(FileServer(stall=True)) as server:
        files = model_files(tmp_path, fetch_timeout_ms=100)

        with pytest.raises(PreloadError, match="was not fetched in 100 ms"):
            await files.find(f"{server.url}/m.gguf#sha256={'1' * 64}", "p")

    assert list((tmp_path / "cache").rglob("*.part"))


async def test_a_disk_that_does_not_answer_is_not_waited_for_without_a_bound(
    tmp_path: Path,
) -> None:
    """A pool says so instead of starting for ever."""
    path = tmp_path / "m.gguf"
    os.mkfifo(path)

    with pytest.raises(
        PreloadError, match=r"m\.gguf was not read in outbound\.fetch_timeout_ms = 20"
    ):
        await model_files(tmp_path, fetch_timeout_ms=20).digest(FoundModel(path))

    # Lets go the thread that waits for a writer.
    os.close(os.open(path, os.O_WRONLY))


async def test_retries_of_what_hangs_do_not_gather_threads(tmp_path: Path) -> None:
    """The first reader is waited for by the next; whatever lies elsewhere is read meanwhile."""
    hangs, reads = threading.Event(), FileReads()
    begun: list[int] = []

    def hang(number: int) -> int:
        begun.append(number)
        hangs.wait()
        return number

    for number in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await reads.run(tmp_path, partial(hang, number))
    begun_while_it_hangs = [*begun]
    elsewhere = await reads.run(tmp_path / "m", lambda: 7)
    hangs.set()

    assert (begun_while_it_hangs, elsewhere) == ([0], 7)
    assert await reads.run(tmp_path, partial(hang, 3)) == 3
    assert begun == [0, 3]


_ENDS_THOUGH_A_READ_HANGS = """
import asyncio, sys, threading
from pathlib import Path
from pool_managerd.engines.gguf_file import digest_in_thread

async def main():
    try:
        async with asyncio.timeout(0.02):
            await digest_in_thread(Path(sys.argv[1]))
    except TimeoutError:
        print("given up, ended without it:", threading.active_count() == 2)

asyncio.run(main())
"""


async def test_a_read_that_hangs_does_not_keep_the_process(tmp_path: Path) -> None:
    """A host is stopped though a disk or a server of files never answers."""
    os.mkfifo(path := tmp_path / "m.gguf")

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _ENDS_THOUGH_A_READ_HANGS, str(path), stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(60):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert (process.returncode, said) == (0, b"given up, ended without it: True\n")


async def test_relative_references_start_at_the_models_directory(tmp_path: Path) -> None:
    """Not at wherever the process was started."""
    files = model_files(tmp_path)

    assert (await files.find("sub/m.gguf", "p")).path == tmp_path / "sub" / "m.gguf"
    assert (await files.find("file:/abs/m.gguf", "p")).path == Path("/abs/m.gguf")


async def test_a_home_directory_that_is_not_known_is_named(tmp_path: Path) -> None:
    """A reference of somebody else's making is no reason to crash."""
    with pytest.raises(PreloadError, match="home directory"):
        await model_files(tmp_path).find("~nobody-of-this-name/m.gguf", "p")


async def run_command(*arguments: str) -> tuple[int | None, str, str]:
    """Exit code, standard output and standard error of pool-managerd."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "pool_managerd",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_the_command_fetches_and_says_where(tmp_path: Path) -> None:
    """`pool-managerd fetch REF` prints the path and the digest, or the reason."""
    config = tmp_path / "c.toml"
    config.write_text(
        f'[models]\ncache_directory = "{tmp_path / "cache"}"\n'
        '[outbound]\nenabled = true\nallow = ["127.0.0.1"]\n'
        '[[pools]]\npool_id = "p"\nengine = { kind = "mock" }\n'
    )
    async with serving(FileServer()) as server:
        digest = hashlib.sha256(server.content).hexdigest()
        ref = f"{server.url}/m.gguf#sha256={digest}"

        code, out, _ = await run_command("--config", str(config), "fetch", ref)
        refused, _, err = await run_command("--config", str(config), "fetch", "oci:x")

    assert (code, refused) == (0, 1)
    assert out == f"{tmp_path}/cache/sha256/{digest}/m.gguf sha256:{digest}\n"
    assert "models cannot be fetched from oci: yet" in err


async def test_a_disk_that_takes_no_more_is_named(tmp_path: Path) -> None:
    """It fills up while the file comes: here the process may write no larger file."""
    config, cache = tmp_path / "c.toml", tmp_path / "cache"
    config.write_text(
        f'[models]\ncache_directory = "{cache}"\n'
        '[outbound]\nenabled = true\nallow = ["127.0.0.1"]\n'
        '[[pools]]\npool_id = "p"\nengine = { kind = "mock" }\n'
    )
    async with serving(FileServer()) as server:
        ref = f"{server.url}/m.gguf#sha256={hashlib.sha256(server.content).hexdigest()}"
        command = [sys.executable, "-m", "pool_managerd", "--config", str(config), "fetch", ref]
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", 'ulimit -f 1; exec "$@"', "sh", *command),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        _, err = await process.communicate()

    assert process.returncode == 1
    last = err.decode().splitlines()[-1]
    assert last == (
        f"pool-managerd: {cache} cannot be written: File too large; free some room, or set "
        "models.cache_directory to another disk"
    )
    assert "Traceback" not in err.decode()
