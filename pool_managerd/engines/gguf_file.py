"""Checks and digests of GGUF files."""

import hashlib
import threading
from functools import partial
from pathlib import Path

from pool_managerd.core.model_ref import part_names
from pool_managerd.engines.file_reads import FileReads

_MAGIC = b"GGUF"
_CHUNK_BYTES = 4 * 1024 * 1024


def gguf_shards(path: Path) -> tuple[Path, ...]:
    """Returns a model's files: the file, or all parts of a `NAME-00001-of-000NN.gguf`."""
    return tuple(path.with_name(name) for name in part_names(path.name))


def gguf_shortfalls(path: Path) -> list[str]:
    """Names every reason why these files cannot be loaded; empty when none is seen. ORCH-3003."""
    first = part_names(path.name)[0]
    if path.name != first:
        return [f"model file {path} is a later part of a model: name its first one, {first}"]
    return [reason for shard in gguf_shards(path) if (reason := _shortfall(shard))]


def _shortfall(path: Path) -> str:
    if path.is_fifo():
        # Nobody may ever write to it, and the thread that opens it could not be ended.
        return f"model file {path} is a pipe"
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except FileNotFoundError:
        return f"model file {path} does not exist"
    except IsADirectoryError:
        return f"model file {path} is a directory"
    except OSError as error:
        return f"model file {path} cannot be read: {error.strerror}"
    return "" if magic == _MAGIC else f"model file {path} is not a GGUF file"


def gguf_digest(path: Path, give_up: threading.Event) -> str:
    """Returns "sha256:" and the digest of the file, or of all its parts one after the other.

    Reads everything: about a second per gigabyte where the disk keeps up. Setting `give_up` ends it
    early; the answer is then meaningless.

    Raises:
        OSError: when a file cannot be read.
    """
    digest = hashlib.sha256()
    for shard in gguf_shards(path):
        with shard.open("rb") as file:
            while not give_up.is_set() and (chunk := file.read(_CHUNK_BYTES)):
                digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


async def digest_in_thread(path: Path, reads: FileReads | None = None) -> str:
    """Returns `gguf_digest` without blocking the event loop; a cancel ends the reading as well.

    It is one of the `reads`, where they are given.

    Raises:
        OSError: when a file cannot be read.
    """
    give_up = threading.Event()
    try:
        return await (reads or FileReads()).run(path, partial(gguf_digest, path, give_up))
    finally:
        give_up.set()
