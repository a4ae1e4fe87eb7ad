"""Logs of engines: bounded in memory and on disk."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from pool_managerd.engines import engine_log
from pool_managerd.engines.engine_log import EngineLog, LogSettings, LogTail


async def pumped(settings: LogSettings, *parts: bytes) -> EngineLog:
    """A log that has read all parts, and is closed."""
    log, stream = EngineLog(settings), asyncio.StreamReader()
    for part in parts:
        stream.feed_data(part)
    stream.feed_eof()
    await log.pump(stream, read_bytes=64)
    await log.close()
    return log


async def test_files_are_rotated_and_old_ones_forgotten(tmp_path: Path) -> None:
    """However much an engine writes, `files` old files and one new one remain."""
    path = tmp_path / "logs" / "p.log"
    settings = LogSettings(path=path, file_bytes=1_000, files=2)

    await pumped(settings, *(f"line {n:04}\n".encode() for n in range(1_000)))

    names = sorted(file.name for file in path.parent.iterdir())
    assert names == ["p.log", "p.log.1", "p.log.2"]
    assert all(file.stat().st_size <= 1_000 for file in path.parent.iterdir())
    assert path.read_text().endswith("line 0999\n")


async def test_the_file_ends_with_the_process_though_nobody_closes_the_log(tmp_path: Path) -> None:
    """A stop that is cut short must not leave a task and an open file behind for each engine."""
    log, stream = EngineLog(LogSettings(path=tmp_path / "p.log")), asyncio.StreamReader()
    stream.feed_data(b"last words\n")
    stream.feed_eof()

    await log.pump(stream)

    async with asyncio.timeout(20):
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
    assert (tmp_path / "p.log").read_text() == "last words\n"


async def test_nobody_else_reads_a_log(tmp_path: Path) -> None:
    """Its lines may quote requests: the folder, the file and those put aside are private."""
    path = tmp_path / "logs" / "p.log"

    await pumped(LogSettings(path=path, file_bytes=1_000, files=2), b"line\n" * 1_000)

    modes = [file.stat().st_mode & 0o777 for file in (path.parent, *path.parent.iterdir())]
    assert modes == [0o700, 0o600, 0o600, 0o600]


async def test_a_link_in_place_of_a_log_is_not_followed(tmp_path: Path) -> None:
    """Whoever may write to the folder must not choose the file that is written."""
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "p.log").symlink_to(tmp_path / "precious")

    log = await pumped(LogSettings(path=tmp_path / "p.log"), b"line\n")

    assert (tmp_path / "precious").read_text() == "kept"
    assert "is not written" in log.tail.last(1)[0]


async def test_a_directory_that_cannot_be_written_is_named_and_harms_nothing(
    tmp_path: Path,
) -> None:
    """The tail in memory works on, and says what is wrong."""
    (tmp_path / "file").write_text("")

    log = await pumped(LogSettings(path=tmp_path / "file" / "p.log"), b"a\nb\n")

    lines = log.tail.last(5)
    assert {"a", "b"} < set(lines)
    assert any("file of this log is not written" in line for line in lines)


def test_lines_since_a_mark_are_those_that_came_later() -> None:
    """Also when the ring has forgotten some of them, and when the last line is not complete."""
    tail = LogTail(lines=3)
    tail.feed(b"a\nb\n")
    mark = tail.lines_total
    tail.feed(b"c\nd")
    first = tail.since(mark)
    tail.feed(b"\ne\nf\ng\n")

    assert first == ("c", "d")
    assert tail.since(mark) == ("e", "f", "g")
    assert tail.since(tail.lines_total) == ()


def test_every_line_is_told_as_it_ends() -> None:
    """Whoever reads figures from a log gets each line once, however it arrives."""
    tail, heard = LogTail(lines=1), list[str]()
    tail.on_line = heard.append

    tail.feed(b"a\nb")
    tail.feed(b"c\n")

    assert heard == ["a", "bc"]


def test_a_log_without_a_bound_is_refused() -> None:
    """A ring of no lines holds no last words."""
    with pytest.raises(ValueError, match="at least 1"):
        LogSettings(lines=0)


def test_a_character_in_two_pieces_stays_one() -> None:
    """Whatever the reader's pieces are; bytes that are no text are replaced."""
    tail, data = LogTail(), "Größe: 5 €\n𝄞\n".encode()

    lines = [line for byte in data for line in tail.feed(bytes([byte]))]

    assert lines == ["Größe: 5 €", "𝄞"]
    assert tail.feed(b"\xe2\n\xff\n") == ["\ufffd", "\ufffd"]


def test_colours_and_control_characters_are_no_part_of_a_line() -> None:
    """Lines are quoted in details and shown on terminals, which must not obey an engine."""
    tail = LogTail()

    lines = tail.feed(
        b"\x1b[1;36m(EngineCore)\x1b[0;0m ERROR: no\tkernel\r\n"
        b"\x1b]0;a title\x07title \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\n"
        b"\x00\x08bell\x07 \x1b(B \xe2\x80\xaereversed \x1b[2J\n"
    )

    assert lines == ["(EngineCore) ERROR: no kernel", "title link", "  bell    reversed"]
    assert all(line.isprintable() for line in tail.last(3))


async def test_a_log_is_written_again_once_the_disk_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk costs the lines of that time, which are counted, and not those of all weeks."""
    monkeypatch.setattr(engine_log, "RETRY_S", 0.01)
    folder = tmp_path / "logs"
    folder.write_text("in the way")
    log, stream = EngineLog(LogSettings(path=folder / "p.log")), asyncio.StreamReader()
    refused = asyncio.Event()
    log.tail.on_line = lambda line: refused.set() if "is not written" in line else None
    pump = asyncio.create_task(log.pump(stream))
    stream.feed_data(b"lost 1\nlost 2\n")
    async with asyncio.timeout(60):
        await refused.wait()
    folder.unlink()

    stream.feed_data(b"kept\n")
    stream.feed_eof()
    await pump
    await log.close()

    assert (folder / "p.log").read_text().splitlines() == [
        "[2 lines were dropped: the disk did not take them]",
        "kept",
    ]
    assert sum("is not written" in line for line in log.tail.last(9)) == 1


async def test_disks_that_hang_keep_no_other_work_from_its_thread(tmp_path: Path) -> None:
    """Other pools start engines and read the configuration meanwhile. A pipe stands for the disk.

    More logs than an executor has threads, none of which anybody reads.
    """
    paths = [tmp_path / f"{number}.log" for number in range(40)]
    for path in paths:
        os.mkfifo(path)
    logs = [EngineLog(LogSettings(path=path)) for path in paths]
    streams = [asyncio.StreamReader() for _ in logs]
    pumps = [asyncio.create_task(log.pump(s)) for log, s in zip(logs, streams, strict=True)]
    for stream in streams:
        stream.feed_data(b"line\n")
    for _ in range(10):
        # Turns of the event loop, in which each begins to write.
        await asyncio.sleep(0)

    try:
        async with asyncio.timeout(10):
            answer = await asyncio.to_thread(lambda: 7)
    finally:
        # Lets go the threads that wait for a reader.
        readers = [os.open(path, os.O_RDONLY | os.O_NONBLOCK) for path in paths]
        for stream in streams:
            stream.feed_eof()
        await asyncio.gather(*pumps)
        await asyncio.gather(*(log.close() for log in logs))
        for reader in readers:
            os.close(reader)

    assert answer == 7


def open_at(descriptor: int) -> list[int]:
    """Descriptors of this process that are of the same file."""
    there = [int(it.name) for it in Path("/proc/self/fd").iterdir() if it.exists()]
    return [it for it in there if os.path.samestat(os.fstat(it), os.fstat(descriptor))]


async def test_a_file_that_opens_after_its_log_was_given_up_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop waits for a disk for a short while only, and leaves no open file behind either."""
    monkeypatch.setattr(engine_log, "_CLOSE_TIMEOUT_S", 0.01)
    path = tmp_path / "p.log"
    os.mkfifo(path)
    log, stream = EngineLog(LogSettings(path=path)), asyncio.StreamReader()
    stream.feed_data(b"line\n")
    stream.feed_eof()
    await log.pump(stream)
    await log.close()

    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        for thread in threading.enumerate():
            if thread.name == "patient":
                await asyncio.to_thread(thread.join, 20)
        opened = open_at(reader)
    finally:
        os.close(reader)

    assert opened == [reader]
