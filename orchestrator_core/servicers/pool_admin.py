"""PoolAdminService: looking at pools. Operating them comes with a later version. OC-CTRL-2001."""

import grpc

from llamaorch.orchestrator.v1 import pool_admin_service_pb2 as pb
from orchestrator_core.runtime import Runtime
from orchestrator_core.servicers import rpc
from orchestrator_core.servicers.pool_board import PoolBoard

SERVICE = "llamaorch.orchestrator.v1.PoolAdminService"


class PoolAdminServicer:
    """Shows the pools of all hosts."""

    def __init__(self, runtime: Runtime, watchers_max: int) -> None:
        self._runtime = runtime
        self._board = PoolBoard(runtime, watchers_max)

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

    async def list_pools(self, _: pb.ListPoolsRequest, __: rpc.Context) -> pb.ListPoolsResponse:
        """Lists all registered pools, by id."""
        return pb.ListPoolsResponse(pools=self._board.messages())

    async def watch_pools(self, _: pb.WatchPoolsRequest, context: rpc.Context) -> None:
        """Streams pools as they change, until the caller leaves. OC-CTRL-2001."""
        with self._board.watch() as watcher:
            while True:
                for message in await watcher.next():
                    await context.write(message.SerializeToString())

    async def drain_pool(self, _: pb.DrainPoolRequest, __: rpc.Context) -> pb.DrainPoolResponse:
        """Comes with a later version."""
        raise rpc.not_yet("DrainPool", "send SIGTERM to the pool manager, which drains all of it")

    async def reload_pool(self, _: pb.ReloadPoolRequest, __: rpc.Context) -> pb.ReloadPoolResponse:
        """Comes with a later version."""
        raise rpc.not_yet("ReloadPool", "change the pool's model and restart its pool manager")
