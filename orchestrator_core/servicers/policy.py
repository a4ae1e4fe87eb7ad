"""PolicyService: what clients' tools may do. ORCH-3080, ORCH-3206."""

import uuid

import grpc

from llamaorch.orchestrator.v1 import policy_service_pb2 as pb
from orchestrator_core.core.outbound import Target, Unreadable, read_target
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.errors import RefusalError
from orchestrator_core.runtime import Runtime
from orchestrator_core.servicers import rpc
from orchestrator_core.servicers.outbound_judge import OutboundJudge, OutboundQuestion
from orchestrator_core.telemetry.telemetry import Telemetry
from orchestrator_core.wire.violations import Violations

SERVICE = "llamaorch.orchestrator.v1.PolicyService"
NAME_CHARS_MAX = 128


class PolicyServicer:
    """Answers by `judge`, which may be replaced, and tells of each decision; connects nowhere."""

    def __init__(self, runtime: Runtime, telemetry: Telemetry, judge: OutboundJudge) -> None:
        self._runtime = runtime
        self._telemetry = telemetry
        self.judge = judge

    def handlers(self) -> grpc.GenericRpcHandler:
        """All methods of the service."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {"CheckOutbound": rpc.unary(self.check_outbound, pb.CheckOutboundRequest)}
        )

    async def check_outbound(
        self, request: pb.CheckOutboundRequest, _: rpc.Context
    ) -> pb.CheckOutboundResponse:
        """Decides whether a tool may connect to an address."""
        question = _question(request)
        decision = self.judge.decide(question)
        decision_id, target = uuid.uuid4().hex, question.target
        self._telemetry.outbound_decided(
            {
                "decision_id": decision_id,
                "correlation_id": rpc.correlation_id(),
                "job_id": question.job_id,
                "session_id": question.session_id,
                "tool": question.tool,
                "scheme": target.scheme,
                "remote_host": target.host,
                "allowed": decision.allowed,
                "rule": decision.rule,
            },
            decision.sentence,
            rpc.metadata(),
            self._runtime.clock.now_ms(),
        )
        return pb.CheckOutboundResponse(
            allowed=decision.allowed,
            decision_id=decision_id,
            rule=decision.rule,
            reason=decision.sentence,
            scheme=target.scheme,
            host=target.host,
        )


def _question(request: pb.CheckOutboundRequest) -> OutboundQuestion:
    """Raises `RefusalError` naming every bad field."""
    bad = Violations()
    for name in ("job_id", "session_id", "tool"):
        bad.length(name, getattr(request, name), NAME_CHARS_MAX)
    target = read_target(request.url)
    if isinstance(target, Unreadable):
        bad.add("url", f"must {target.must}")
    if bad.total or not isinstance(target, Target):
        first = bad.found[0]
        text = f"{first.field} {first.description}"
        raise RefusalError(Refusal(Reason.INVALID_PARAMS, text, violations=bad.found))
    return OutboundQuestion(target, request.job_id, request.session_id, request.tool)
