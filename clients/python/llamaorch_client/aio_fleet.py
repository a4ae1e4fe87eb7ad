# SPDX-License-Identifier: Apache-2.0
"""Calls of `AsyncClient` about the server, its settings and its pools."""

import abc
from collections.abc import AsyncGenerator

import grpc
from grpc_health.v1 import health_pb2

from llamaorch.orchestrator.v1 import (
    config_service_pb2,
    orchestrator_service_pb2,
    policy_service_pb2,
    pool_admin_service_pb2,
)
from llamaorch_client import wire, wire_fleet
from llamaorch_client.configuration import (
    ConfigReload,
    Configuration,
    config_reload,
    configuration,
)
from llamaorch_client.errors import from_rpc_error
from llamaorch_client.metadata import checked_correlation_id
from llamaorch_client.model import OutboundDecision, Overview
from llamaorch_client.model_fleet import Capabilities, Pool, Reloaded
from llamaorch_client.pages import Pages
from llamaorch_client.transport import Transport


class FleetCalls(abc.ABC):
    """What concerns no single job. Arguments and errors are as those of `AsyncClient`."""

    async def overview(self, rows: int = 0, *, correlation_id: str | None = None) -> Overview:
        """Returns what happens on the server now; lists of `rows` jobs, 0 for the server's own."""
        transport = self._open()
        answer = await transport.unary(
            transport.jobs.GetOverview,
            orchestrator_service_pb2.GetOverviewRequest(rows_max=rows),
            correlation_id=correlation_id,
        )
        return wire_fleet.overview(answer.message)

    async def capabilities(self, *, correlation_id: str | None = None) -> Capabilities:
        """Returns what the server can do (ORCH-3095)."""
        transport = self._open()
        answer = await transport.unary(
            transport.jobs.GetCapabilities,
            orchestrator_service_pb2.GetCapabilitiesRequest(),
            correlation_id=correlation_id,
        )
        return wire_fleet.capabilities(answer.message)

    async def check_outbound(
        self,
        url: str,
        *,
        job_id: str = "",
        session_id: str = "",
        tool: str = "",
        correlation_id: str | None = None,
    ) -> OutboundDecision:
        """Asks whether a tool may connect to an address; nothing is connected to (ORCH-3080).

        A denial is an answer, see `allowed`; so ask anew for each redirect. The names are logged.

        Raises:
            InvalidParamsError: the address is none that all programs read alike.
        """
        transport = self._open()
        request = policy_service_pb2.CheckOutboundRequest(
            url=url, job_id=job_id, session_id=session_id, tool=tool
        )
        answer = await transport.unary(
            transport.policy.CheckOutbound, request, correlation_id=correlation_id
        )
        return wire.outbound_decision(answer.message)

    async def config(self, *, correlation_id: str | None = None) -> Configuration:
        """Returns the configuration in force; secrets are cut short (HME-003). For operators."""
        transport = self._open()
        answer = await transport.unary(
            transport.config.GetConfig,
            config_service_pb2.GetConfigRequest(),
            correlation_id=correlation_id,
        )
        return configuration(answer.message)

    async def reload_config(
        self, *, dry_run: bool = False, correlation_id: str | None = None
    ) -> ConfigReload:
        """Reads the configuration again, and puts in force what needs no restart (HME-003).

        With anything wrong in the file nothing changes, see `problems`. With `dry_run` nothing
        changes in any case; the answer says what would.
        """
        transport = self._open()
        answer = await transport.unary(
            transport.config.ReloadConfig,
            config_service_pb2.ReloadConfigRequest(dry_run=dry_run),
            correlation_id=correlation_id,
        )
        return config_reload(answer.message)

    async def pools(self, *, correlation_id: str | None = None) -> tuple[Pool, ...]:
        """Returns all pools that the orchestrator knows, sorted by id."""
        transport, pages = self._open(), Pages("pools")
        found: list[Pool] = []
        while pages.more:
            request = pool_admin_service_pb2.ListPoolsRequest(page_token=pages.token)
            answer = await transport.unary(
                transport.pools.ListPools, request, correlation_id=correlation_id
            )
            found += [wire_fleet.pool(message) for message in answer.message.pools]
            pages.turn(answer.message.next_page_token)
        return tuple(found)

    async def drain_pool(
        self, pool_id: str, *, timeout_s: float | None = None, correlation_id: str | None = None
    ) -> Pool:
        """Lets a pool take no more work; returns once that is durable (OC-CTRL-2002).

        What runs there goes on for `timeout_s` at most, None for the server's default; then its
        jobs go on elsewhere or fail, as their failover policy says. Asked again, it counts anew.
        """
        request = pool_admin_service_pb2.DrainPoolRequest(pool_id=pool_id)
        if timeout_s is not None:
            request.timeout.FromMilliseconds(round(timeout_s * 1000))
        return await self._drain(request, correlation_id)

    async def undrain_pool(self, pool_id: str, *, correlation_id: str | None = None) -> Pool:
        """Lets a drained pool take work again; without effect on one that is not drained."""
        request = pool_admin_service_pb2.DrainPoolRequest(pool_id=pool_id, undo=True)
        return await self._drain(request, correlation_id)

    async def reload_pool(
        self,
        pool_id: str,
        model_ref: str = "",
        *,
        timeout_s: float | None = None,
        correlation_id: str | None = None,
    ) -> Reloaded:
        """Loads a pool's model anew, or `model_ref`; returns once that is over (OC-CTRL-2003).

        What runs there goes on before for `timeout_s` at most, None for the server's default. A
        model that cannot be served is no error: the former one is loaded again, see `outcome`. The
        call is not repeated when it breaks; the host goes on with the reload.
        """
        transport = self._open()
        request = pool_admin_service_pb2.ReloadPoolRequest(pool_id=pool_id, model_ref=model_ref)
        if timeout_s is not None:
            request.timeout.FromMilliseconds(round(timeout_s * 1000))
        answer = await transport.once(
            transport.pools.ReloadPool, request, correlation_id=correlation_id
        )
        return wire_fleet.reloaded(answer.message)

    async def watch_pools(
        self, *, correlation_id: str | None = None
    ) -> AsyncGenerator[tuple[Pool, ...], None]:
        """Yields all pools, sorted by id, at once and after each change (OC-CTRL-2001).

        The server sends a few states a second at most, and to a slow reader only the newest. It
        never ends by itself; a broken connection raises.
        """
        transport, sent_id = self._open(), checked_correlation_id(correlation_id)
        known: dict[str, Pool] = {}
        with transport.in_use():
            call = transport.open_pools(sent_id)
        try:
            with transport.in_use():
                async for message in call:
                    known.update((pool.pool_id, wire_fleet.pool(pool)) for pool in message.pools)
                    for pool_id in message.removed_pool_ids:
                        known.pop(pool_id, None)
                    if not message.more:
                        yield tuple(known[pool_id] for pool_id in sorted(known))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, sent_id, transport.target) from error
        finally:
            call.cancel()

    async def health(self, *, correlation_id: str | None = None) -> str:
        """Returns the server's health as grpc.health.v1 names it: SERVING, NOT_SERVING, ..."""
        transport = self._open()
        answer = await transport.unary(
            transport.health.Check,
            health_pb2.HealthCheckRequest(),
            correlation_id=correlation_id,
        )
        status = answer.message.status
        names = health_pb2.HealthCheckResponse.ServingStatus
        return str(names.Name(status)) if status in names.values() else "UNKNOWN"

    async def _drain(
        self, request: pool_admin_service_pb2.DrainPoolRequest, correlation_id: str | None
    ) -> Pool:
        transport = self._open()
        answer = await transport.unary(
            transport.pools.DrainPool, request, correlation_id=correlation_id
        )
        return wire_fleet.pool(answer.message.pool)

    @abc.abstractmethod
    def _open(self) -> Transport:
        """The connection. Raises `RuntimeError` where the client is not open."""
