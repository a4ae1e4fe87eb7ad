"""Every `llorch` command that the documents show is one that the command line takes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamaorch_client.cli.arguments import parse

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "clients/*.md", "docs/*.md", "deploy/**/*.md"]
_INLINE = re.compile(r"(?<!`)`(llorch [^`]+)`(?!`)")
_LINE = re.compile(r"^(?: {4}\$?|\$) ?(.*)$")
# What a shell would read between a command and the next.
_BETWEEN = re.compile(r"\s+#.*|;|&&|\|\|?|(?:^|\s)(?:\d?>|<)\s*\S+")
# A sentence may name a command, or an option, and leave out the rest.
_INCOMPLETE = re.compile(r"required|expected one argument|name a command")


def commands() -> Iterator[Any]:
    """What is said to `llorch`, and whether it is all that would be typed."""
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                whole = _LINE.match(line)
                found = [(whole[1], True)] if whole else []
                found += [(words, False) for words in _INLINE.findall(line)]
                for words, complete in found:
                    for said in _said(words):
                        yield pytest.param(said, complete, id=f"{path.stem}-{number}-{said}")


def _said(line: str) -> Iterator[list[str]]:
    for part in _BETWEEN.split(line):
        words = re.findall(r"'[^']*'|\S+", part.strip())
        # As `llorch top  127.0.0.1:44175  3 running`: what a screen shows.
        shown = "  127.0.0.1" in part
        if len(words) > 1 and words[0].rpartition("/")[2] == "llorch" and not shown:
            yield [word.strip("'") for word in words[1:]]


@pytest.mark.parametrize(("words", "complete"), list(commands()))
def test_a_command_of_the_documents_is_understood(
    words: list[str], complete: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """No option that was renamed, no action that is gone."""
    code: object = 0
    try:
        parse(words, {})
    except SystemExit as ended:
        code = ended.code
    told = capsys.readouterr().err

    assert code == 0 or (not complete and _INCOMPLETE.search(told)), told


def test_the_documents_show_commands() -> None:
    """Else nothing above was judged."""
    shown = {param.values[0][0] for param in commands()}

    assert {"run", "jobs", "drain", "artifacts", "models", "simulate", "replay"} <= shown
    assert len(list(commands())) > 100
