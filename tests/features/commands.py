"""Commands as somebody types them, with their exit codes and what they print."""

import asyncio
import contextlib
import io
import os
import shlex
from dataclasses import dataclass
from unittest import mock

from llamaorch_client.cli.main import main
from tests.features.service import WAIT_S

PLAIN = {"NO_COLOR": "1", "COLUMNS": "200"}


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str


async def llorch(line: str, address: str) -> Answer:
    """Runs one line of `llorch` on a thread of its own; relative paths are the shell's."""
    name, *arguments = shlex.split(line)
    assert name == "llorch", f"there is no command {name}"
    # Not what would change its output.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LLORCH_")}
    environment = kept | PLAIN | {"LLORCH_SERVER": address}
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, environment, clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        async with asyncio.timeout(WAIT_S):
            code = await asyncio.to_thread(_exit_code, arguments)
    return Answer(code, out.getvalue(), err.getvalue())


def _exit_code(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as error:
        return int(error.code or 0)
