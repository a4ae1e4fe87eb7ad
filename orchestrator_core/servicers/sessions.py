"""SessionService: what sessions hold, have spent and have left. ORCH-3021, ORCH-3022, ORCH-3099."""

import grpc

from llamaorch.orchestrator.v1 import session_service_pb2 as pb
from orchestrator_core.core.intake import unknown_session
from orchestrator_core.core.session import Session
from orchestrator_core.errors import RefusalError
from orchestrator_core.runtime import Runtime
from orchestrator_core.servicers import rpc
from orchestrator_core.servicers.orchestrator import PAGE_DEFAULT, PAGE_MAX
from orchestrator_core.servicers.paging import name_after
from orchestrator_core.wire.sessions import session_to_proto

SERVICE = "llamaorch.orchestrator.v1.SessionService"


class SessionServicer:
    """Shows each client its own sessions."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def handlers(self) -> grpc.GenericRpcHandler:
        """All methods of the service."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "GetSession": rpc.unary(self.get_session, pb.GetSessionRequest),
                "ListSessions": rpc.unary(self.list_sessions, pb.ListSessionsRequest),
                "DeleteSession": rpc.unary(self.delete_session, pb.DeleteSessionRequest),
            },
        )

    async def get_session(
        self, request: pb.GetSessionRequest, _: rpc.Context
    ) -> pb.GetSessionResponse:
        """Returns one session, once what is told of it is durable."""
        await self._runtime.settled()
        session = self._runtime.core.session(rpc.identity(), request.session_id)
        if session is None:
            raise RefusalError(unknown_session(request.session_id))
        return pb.GetSessionResponse(session=self._view(session))

    async def list_sessions(
        self, request: pb.ListSessionsRequest, _: rpc.Context
    ) -> pb.ListSessionsResponse:
        """Lists sessions by id. O(sessions)."""
        after = name_after(request.page_token)
        await self._runtime.settled()
        size = min(request.page_size or PAGE_DEFAULT, PAGE_MAX)
        core, identity = self._runtime.core, rpc.identity()
        following = sorted(
            session.session_id
            for session in core.sessions
            if session.identity == identity and session.session_id > after
        )
        page = [core.session(identity, session_id) for session_id in following[:size]]
        return pb.ListSessionsResponse(
            sessions=[self._view(session) for session in page if session is not None],
            next_page_token=following[size - 1] if len(following) > size else "",
        )

    async def delete_session(
        self, request: pb.DeleteSessionRequest, _: rpc.Context
    ) -> pb.DeleteSessionResponse:
        """Forgets a session; answers once that is durable."""
        await self._runtime.delete_session(rpc.identity(), request.session_id)
        return pb.DeleteSessionResponse()

    def _view(self, session: Session) -> pb.Session:
        core = self._runtime.core
        return session_to_proto(
            session, core.session_account(session), core.config.session_turns_max
        )
