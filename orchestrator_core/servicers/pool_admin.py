"""PoolAdminService: looking at pools. Operating them comes with a later version."""

import grpc

from llamaorch.orchestrator.v1 import pool_admin_service_pb2 as pb
from orchestrator_core.runtime import Runtime
from orchestrator_core.servicers import rpc
from orchestrator_core.wire.pools import PoolView, pool_to_proto

SERVICE = "llamaorch.orchestrator.v1.PoolAdminService"


class PoolAdminServicer:
    """Shows the pools of all hosts."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

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
        core, reported = self._runtime.core, self._runtime.hosts.reported
        now_ms = self._runtime.clock.now_ms()
        pools = [core.pools[pool_id] for pool_id in sorted(core.pools)]
        return pb.ListPoolsResponse(
            pools=[
                pool_to_proto(
                    PoolView(
                        pool,
                        now_ms,
                        reported.get(pool.snapshot.pool_id),
                        core.tokens_per_s(pool),
                    )
                )
                for pool in pools
            ]
        )

    async def watch_pools(self, _: pb.WatchPoolsRequest, __: rpc.Context) -> None:
        """Comes with a later version."""
        raise rpc.not_yet("WatchPools", "call ListPools")

    async def drain_pool(self, _: pb.DrainPoolRequest, __: rpc.Context) -> pb.DrainPoolResponse:
        """Comes with a later version."""
        raise rpc.not_yet("DrainPool", "send SIGTERM to the pool manager, which drains all of it")

    async def reload_pool(self, _: pb.ReloadPoolRequest, __: rpc.Context) -> pb.ReloadPoolResponse:
        """Comes with a later version."""
        raise rpc.not_yet("ReloadPool", "change the pool's model and restart its pool manager")
