"""A TCP proxy whose connections a test can cut."""

import asyncio
from types import TracebackType
from typing import Self

READ_BYTES = 64 * 1024


class Cuttable:
    """Passes bytes on between clients and one server."""

    def __init__(self, target: str) -> None:
        self.lead_to(target)
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.refusing = False

    @property
    def address(self) -> str:
        """Where it listens."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    def lead_to(self, target: str) -> None:
        """Sends new connections to this server."""
        host, _, port = target.rpartition(":")
        self._target = host, int(port)

    def cut(self) -> None:
        """Breaks every connection at once, without a word on the level of gRPC."""
        for writer in self._writers:
            writer.transport.abort()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        self.connections += 1
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        self._writers |= {writer, far_writer}
        task = asyncio.gather(_pass(reader, far_writer), _pass(far_reader, writer))
        own = asyncio.current_task()
        assert own is not None
        self._tasks.add(own)
        await task
        self._writers -= {writer, far_writer}
        self._tasks.discard(own)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(READ_BYTES):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.transport.abort()
