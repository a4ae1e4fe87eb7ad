"""Checks and digests of model files."""

import hashlib
import os
import threading
from pathlib import Path

import pytest

from pool_managerd.engines.gguf_file import digest_in_thread, gguf_digest, gguf_shortfalls

GIVE_UP = threading.Event()


async def test_the_digest_is_the_sha256_of_the_file(tmp_path: Path) -> None:
    """Operators can compare it with what sha256sum says."""
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + b"x" * 9_000_000)

    expected = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert await digest_in_thread(path) == expected == gguf_digest(path, GIVE_UP)


def test_every_missing_or_broken_part_is_named(tmp_path: Path) -> None:
    """A split model needs all its parts, and all that is wrong is said at once."""
    (tmp_path / "m-00001-of-00004.gguf").write_bytes(b"GGUFxxxx")
    (tmp_path / "m-00002-of-00004.gguf").write_bytes(b"<html>")
    (tmp_path / "m-00004-of-00004.gguf").mkdir()

    shortfalls = gguf_shortfalls(tmp_path / "m-00001-of-00004.gguf")

    assert [shortfall.rpartition(".gguf ")[2] for shortfall in shortfalls] == [
        "is not a GGUF file",
        "does not exist",
        "is a directory",
    ]


def test_the_digest_of_a_split_model_covers_all_parts(tmp_path: Path) -> None:
    """A change in any part changes the digest."""
    parts = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for part in parts:
        part.write_bytes(b"GGUF" + part.name.encode())
    before = gguf_digest(parts[0], GIVE_UP)

    parts[1].write_bytes(b"GGUF other")

    assert gguf_digest(parts[0], GIVE_UP) != before


@pytest.mark.timeout(10)
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """A reference to one must not take a thread of the host away for good."""
    os.mkfifo(tmp_path / "m.gguf")

    assert gguf_shortfalls(tmp_path / "m.gguf") == [f"model file {tmp_path}/m.gguf is a pipe"]


def test_a_later_part_is_no_model(tmp_path: Path) -> None:
    """Engines load a split model by its first part, and refuse any other."""
    for number in (1, 2):
        (tmp_path / f"m-0000{number}-of-00002.gguf").write_bytes(b"GGUFxxxx")

    (problem,) = gguf_shortfalls(tmp_path / "m-00002-of-00002.gguf")

    assert problem.endswith("name its first one, m-00001-of-00002.gguf")


def test_a_part_of_none_is_a_file_like_any_other(tmp_path: Path) -> None:
    """A name is no reason to find nothing at all."""
    path = tmp_path / "m-00001-of-00000.gguf"

    assert gguf_shortfalls(path) == [f"model file {path} does not exist"]
