"""What terminals, pipes, full disks and odd locales make of the command's output."""

import errno
import io
import json
import os
import re
import threading

import pytest

from llamaorch_client import TokenLogprob
from llamaorch_client.cli.output import Output, OutputError, printable

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
TURNED = "\u202egpj.exe\u202c"


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        """It is one."""
        return True


class Full(io.StringIO):
    """What does not take what is written."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def write(self, text: str) -> int:
        """Refuses."""
        raise OSError(self._number, os.strerror(self._number))


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a person's shell has it."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_what_turns_a_line_around_is_not_shown() -> None:
    """The name of a model cannot read as another one; words of languages that do are whole."""
    screen = Screen()

    Output(False, screen, io.StringIO()).token_text(TURNED + " שלום")

    assert screen.getvalue() == "gpj.exe שלום"
    assert printable("a\u2066b\u2069\u200d") == "ab\u200d"


def test_json_holds_nothing_that_a_terminal_obeys() -> None:
    """C1 controls and DEL are control sequences to some; the values are the same."""
    out, value = io.StringIO(), {"text": f"\x9b31m\x7f{TURNED}", "ü": "ok"}

    Output(True, out, io.StringIO()).record(value)

    assert json.loads(out.getvalue()) == value
    assert all(character.isprintable() for character in out.getvalue().rstrip("\n"))
    assert "ü" in out.getvalue()


def test_json_is_json_where_a_number_has_no_value() -> None:
    """Engines tell of tokens that cannot be with a logarithm of minus infinity."""
    out = io.StringIO()

    Output(True, out, io.StringIO()).record(TokenLogprob("a", float("-inf"), ()))

    def refused(word: str) -> object:
        raise AssertionError(word)

    assert json.loads(out.getvalue(), parse_constant=refused)["logprob"] is None


def test_colours_for_a_pipe_do_not_make_it_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CI sets it everywhere: the output stays as it is, and no line rewrites itself."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    stdout, stderr = io.StringIO(), io.StringIO()
    out = Output(False, stdout, stderr)

    out.progress("running")
    out.token_text("a\x1b[31m")
    out.say("done", "green")

    assert stdout.getvalue() == "a\x1b[31m"
    assert ANSI.sub("", stderr.getvalue()) == "done\n"
    assert stderr.getvalue().startswith("\x1b[32m")
    assert not out.live_table(("A",), [("b",)], [])


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_pipe_gets_utf_8_in_every_locale(encoding: str) -> None:
    """JSON has no other encoding, and a job's output is not made of question marks."""
    raw = io.BytesIO()
    out = Output(False, io.TextIOWrapper(raw, encoding, "replace"), io.StringIO())

    out.token_text("ü €")
    out.record({"text": "世"})

    assert raw.getvalue().decode() == 'ü €{"text": "世"}\n'


@pytest.mark.parametrize("buffering", [0, 8192])
def test_a_pipe_that_does_not_wait_loses_nothing(buffering: int) -> None:
    """Other programs on a pipe make it so, and a full one is then an error to most."""
    text = "0123456789" * 50_000
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    got: list[bytes] = []

    def read() -> None:
        with os.fdopen(reading, "rb") as pipe:
            got.append(pipe.read())

    reader = threading.Thread(target=read)
    reader.start()
    with io.TextIOWrapper(os.fdopen(writing, "wb", buffering), write_through=True) as pipe:
        Output(False, pipe, io.StringIO()).token_text(text)
    reader.join(20)

    assert b"".join(got).decode() == text


def test_an_output_that_is_full_is_told_as_such() -> None:
    """No traceback, and not the fault of what was asked for."""
    out = Output(False, Full(errno.ENOSPC), io.StringIO())

    for write in (
        lambda: out.token_text("a"),
        lambda: out.record({}),
        lambda: out.result("a"),
        lambda: out.table("", ("A",), [("b",)]),
    ):
        with pytest.raises(OutputError, match="standard output: No space left on device"):
            write()


def test_a_reader_that_left_does_not_end_the_process_from_within() -> None:
    """The command cancels its job first, also when it is its messages that nobody reads."""
    gone = Full(errno.EPIPE)

    with pytest.raises(BrokenPipeError):
        Output(False, gone, io.StringIO()).table("", ("A",), [("b",)])
    with pytest.raises(BrokenPipeError):
        Output(False, io.StringIO(), gone).say("a")


def test_messages_that_cannot_be_written_are_left_unsaid() -> None:
    """The result is what counts: a job that finished has finished."""
    full = Full(errno.ENOSPC)
    out = Output(False, io.StringIO(), full)

    out.say("done")
    out.about(("A",), [("b",)])

    assert full.getvalue() == ""


def test_a_live_table_fits_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that are wrapped would be left behind by the next ones; wide characters count twice."""
    monkeypatch.setenv("COLUMNS", "20")
    screen = Screen()
    out = Output(False, screen, io.StringIO())

    shown = out.live_table(("POOL", "HOST"), [("世界" * 4, "x" * 60)], ["y" * 60])
    out.end_progress()

    lines = re.split(r"[\r\n]", ANSI.sub("", screen.getvalue()))
    assert shown
    assert "世界世界世界世界  x" in "\n".join(lines)
    assert max(len(line) + sum(c in "世界" for c in line) for line in lines) == 20


def test_a_dumb_terminal_gets_a_table_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot take a line back: nothing would be seen before the end."""
    monkeypatch.setenv("TERM", "dumb")
    screen = Screen()

    assert not Output(False, screen, io.StringIO()).live_table(("A",), [("b",)], [])
    assert screen.getvalue() == ""


def test_a_row_is_one_line() -> None:
    """Whatever stands in a name."""
    out = io.StringIO()

    Output(False, out, io.StringIO()).table("", ("A", "B"), [("two\nlines", "b")])

    assert [line.split() for line in out.getvalue().splitlines()[1:]] == [["two", "lines", "b"]]
