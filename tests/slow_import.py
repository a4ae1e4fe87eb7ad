"""A library that stands in the way of a program's imports until it is told to go on."""

import os
import sys
from pathlib import Path

_SOURCE = """
import sys
print("importing", flush=True)
sys.stdin.readline()
sys.path.remove({folder!r})
del sys.modules["{name}"]
import {name}
"""


def environment_with_slow(folder: Path, name: str) -> dict[str, str]:
    """The environment of a process in which the first import of the package `name` waits.

    It writes a line to standard output, and waits for one on standard input.
    """
    (folder / name).mkdir(parents=True)
    source = _SOURCE.format(folder=str(folder), name=name)
    (folder / name / "__init__.py").write_text(source, encoding="utf-8")
    path = os.pathsep.join((str(folder), *filter(None, sys.path)))
    return {**os.environ, "PYTHONPATH": path}
