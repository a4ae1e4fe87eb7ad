"""How a driver talks to its load processes: one JSON object a line, each answered by one.

A process answers `{"event": "ready", ...}` once it can be used. It ends when its driver does.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

Fields = dict[str, Any]
Handler = Callable[[Fields], Awaitable[Fields]]


def say(**fields: object) -> None:
    """Writes one answer."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


async def obey(handlers: dict[str, Handler], **ready: object) -> None:
    """Says that it is ready, then answers commands until the driver closes the pipe."""
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    say(event="ready", **ready)
    while line := await reader.readline():
        command: Fields = json.loads(line)
        say(**await handlers[command.pop("command")](command))
