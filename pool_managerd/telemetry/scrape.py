"""The Prometheus endpoint: plain HTTP on a loopback address, `GET /metrics`.

Gauges are read on the event loop; only the rendering runs elsewhere. One scrape at a time.
"""

import asyncio
import os
from collections.abc import Callable

from aiohttp import web
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from pool_managerd.telemetry.metrics import CARDINALITY

ACCEPT_MAX = 1_024
SHUTDOWN_TIMEOUT_S = 1.0


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
        self._runner: web.AppRunner | None = None

    async def start(self, listen: str, sample: Callable[[], None]) -> int:
        """Binds `listen` (HOST:PORT); returns the port. Raises OSError when it cannot.

        `sample` brings counts and gauges up to date before each scrape.
        """

        async def metrics(request: web.Request) -> web.Response:
            accept = request.headers.get("Accept", "")[:ACCEPT_MAX]
            encode, content_type = choose_encoder(accept)
            async with self._turn:
                sample()
                body = await asyncio.to_thread(encode, self._registry)
            return web.Response(body=body, headers={"Content-Type": content_type})

        application = web.Application(client_max_size=0)
        application.router.add_get("/metrics", metrics)
        runner = web.AppRunner(
            application, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S, handle_signals=False
        )
        await runner.setup()
        host, _, port = listen.rpartition(":")
        site = web.TCPSite(runner, host.strip("[]"), int(port), backlog=16)
        try:
            await site.start()
        except OSError as error:
            await runner.cleanup()
            raise _taken(listen, error) from error
        self._runner = runner
        bound = runner.addresses[0]
        assert isinstance(bound, tuple), "a TCP site has an address and a port"
        return int(bound[1])

    async def stop(self) -> None:
        """Closes the endpoint. Idempotent."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()


def _taken(listen: str, error: OSError) -> OSError:
    """Says which setting to change."""
    why = os.strerror(error.errno) if error.errno else str(error)
    return OSError(
        f"metrics_listen: cannot listen on {listen}: {why}: set another, or end what uses it"
    )
