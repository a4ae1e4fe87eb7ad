"""The Prometheus endpoint: plain HTTP on a loopback address, `GET /metrics`.

Gauges are read on the event loop; only the rendering runs elsewhere. One scrape at a time.
"""

import asyncio
from collections.abc import Callable

from aiohttp import web
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from pool_managerd.telemetry.http import HttpPort, send
from pool_managerd.telemetry.metrics import CARDINALITY

ACCEPT_MAX = 1_024


class ScrapeEndpoint:
    """Serves what `reader` collects."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self.reader = PrometheusMetricReader(
            disable_target_info=True,
            scope_info_enabled=False,
            registry=self._registry,
            cardinality_limits=CARDINALITY,
        )
        # Memory, CPU, open files, start time: under the names that Prometheus's libraries use.
        ProcessCollector(registry=self._registry)
        self._turn = asyncio.Lock()
        self._port = HttpPort()

    async def start(self, listen: str, sample: Callable[[], None]) -> int:
        """Binds `listen` (HOST:PORT); returns the port. Raises OSError when it cannot.

        `sample` brings counts and gauges up to date before each scrape.
        """

        async def metrics(request: web.Request) -> web.StreamResponse:
            accept = request.headers.get("Accept", "")[:ACCEPT_MAX]
            encode, content_type = choose_encoder(accept)
            async with self._turn:
                sample()
                body = await asyncio.to_thread(encode, self._registry)
            return await send(request, body, content_type)

        return await self._port.start(listen, [web.get("/metrics", metrics)])

    async def stop(self) -> None:
        """Closes the endpoint. Idempotent."""
        await self._port.stop()
