"""Steps of journeys that may be coroutines: they run on the loop of their scenario's world."""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest_bdd
from parse import with_pattern
from pytest_bdd import parsers

Step = Callable[..., Any]
Rows = list[list[str]]


def given(*texts: str) -> Callable[[Step], Step]:
    """What holds before; `{name}` stands for a word, `{count:d}` for a number."""
    return _step(pytest_bdd.given, texts)


def when(*texts: str) -> Callable[[Step], Step]:
    """What somebody does."""
    return _step(pytest_bdd.when, texts)


def then(*texts: str) -> Callable[[Step], Step]:
    """What can be seen of it."""
    return _step(pytest_bdd.then, texts)


def at_any_point(*texts: str) -> Callable[[Step], Step]:
    """What may stand in any part of a scenario."""
    return _step(pytest_bdd.step, texts)


def _step(kind: Callable[..., Any], texts: tuple[str, ...]) -> Callable[[Step], Step]:
    def decorate(step: Step) -> Step:
        run = _blocking(step) if inspect.iscoroutinefunction(step) else step
        for text in texts:
            # The step becomes a fixture of the module that decorates it, two frames up.
            kind(_parser(text), stacklevel=2)(run)
        return step

    return decorate


@with_pattern(r'[^"]*')
def _quoted(text: str) -> str:
    return text


def _parser(text: str) -> parsers.parse:
    """What stands in quotes ends at the next quote, so that no sentence fits two steps."""
    named = re.sub(r'"\{(\w+)\}"', r'"{\1:Quoted}"', text)
    return parsers.parse(named, extra_types={"Quoted": _quoted})


def _blocking(step: Step) -> Step:
    if "world" not in inspect.signature(step).parameters:
        raise TypeError(f"{step.__qualname__} is a coroutine, so it needs the world")

    @functools.wraps(step)
    def run(**arguments: Any) -> None:
        arguments["world"].run(step(**arguments))

    # A coroutine in name only: pytest would await it.
    return run
