"""PoolAdminService: looking at pools, draining and reloading them.

OC-CTRL-2001, OC-CTRL-2002, OC-CTRL-2003.
"""

import grpc

from llamaorch.orchestrator.v1 import pool_admin_service_pb2 as pb
from orchestrator_core.config.work import PoolsTable
from orchestrator_core.core.outcome import FieldViolation, Reason, Refusal
from orchestrator_core.errors import RefusalError
from orchestrator_core.runtime import Runtime
from orchestrator_core.servicers import rpc
from orchestrator_core.servicers.paging import name_after
from orchestrator_core.servicers.pool_board import PoolBoard
from orchestrator_core.servicers.reloading import reload
from orchestrator_core.telemetry.telemetry import Telemetry

SERVICE = "llamaorch.orchestrator.v1.PoolAdminService"
DAY_MS = 86_400_000


class PoolAdminServicer:
    """Shows the pools of all hosts."""

    def __init__(self, runtime: Runtime, telemetry: Telemetry, limits: PoolsTable) -> None:
        self._runtime = runtime
        self._telemetry = telemetry
        self._drain_timeout_ms = limits.drain_timeout_ms
        self._board = PoolBoard(runtime, limits.watchers_max)

    def handlers(self) -> grpc.GenericRpcHandler:
        """All methods of the service."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "ListPools": rpc.unary(self.list_pools, pb.ListPoolsRequest),
                "WatchPools": rpc.server_stream(self.watch_pools, pb.WatchPoolsRequest),
                "DrainPool": rpc.unary(self.drain_pool, pb.DrainPoolRequest),
                "ReloadPool": rpc.unary(self.reload_pool, pb.ReloadPoolRequest),
            },
        )

    def reconfigure(self, limits: PoolsTable) -> None:
        """Other limits from now on; readers that are there stay."""
        self._drain_timeout_ms = limits.drain_timeout_ms
        self._board.watchers_max = limits.watchers_max

    async def list_pools(
        self, request: pb.ListPoolsRequest, _: rpc.Context
    ) -> pb.ListPoolsResponse:
        """Lists registered pools, by id. O(pools)."""
        after = name_after(request.page_token)
        pools, last_id = await self._board.page(after, request.page_size)
        return pb.ListPoolsResponse(pools=pools, next_page_token=last_id)

    async def watch_pools(self, _: pb.WatchPoolsRequest, context: rpc.Context) -> None:
        """Streams pools as they change, until the caller leaves. OC-CTRL-2001."""
        with self._board.watch() as watcher:
            while True:
                for message in await watcher.next():
                    await context.write(message.SerializeToString())

    async def drain_pool(
        self, request: pb.DrainPoolRequest, _: rpc.Context
    ) -> pb.DrainPoolResponse:
        """Drains a pool, or lets it take work again; answers once that is durable. OC-CTRL-2002."""
        timeout_ms = self._timeout_ms(request)
        await self._runtime.drain_pool(request.pool_id, timeout_ms, draining=not request.undo)
        return pb.DrainPoolResponse(pool=self._board.message(request.pool_id))

    async def reload_pool(
        self, request: pb.ReloadPoolRequest, _: rpc.Context
    ) -> pb.ReloadPoolResponse:
        """Loads a pool's model anew, or another one; answers when that is over. OC-CTRL-2003."""
        timeout_ms = self._timeout_ms(request)
        since_ms = self._runtime.clock.now_ms()
        outcome, detail = await reload(
            self._runtime, request.pool_id, request.model_ref, timeout_ms
        )
        word = pb.ReloadOutcome.Name(outcome).removeprefix("RELOAD_OUTCOME_").lower()
        span_ms = since_ms, self._runtime.clock.now_ms()
        self._telemetry.pool_reloaded(request.pool_id, word, detail, span_ms)
        pool = self._board.message(request.pool_id)
        return pb.ReloadPoolResponse(pool=pool, outcome=outcome, detail=detail)

    def _timeout_ms(self, request: pb.DrainPoolRequest | pb.ReloadPoolRequest) -> int:
        """How long attempts may go on; the server's default where nothing is said."""
        if not request.HasField("timeout"):
            return self._drain_timeout_ms
        timeout_ms = request.timeout.ToMilliseconds()
        if not 0 <= timeout_ms <= DAY_MS:
            wrong = FieldViolation("timeout", "must be from 0 to a day")
            text = "the timeout is out of range"
            raise RefusalError(Refusal(Reason.INVALID_PARAMS, text, violations=(wrong,)))
        return timeout_ms
