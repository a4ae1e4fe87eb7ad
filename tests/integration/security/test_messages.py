"""Every call with messages that Hypothesis makes: a typed answer, no crash, others are served.

Both services run as processes of their own, with a mock engine behind them, so that jobs that are
accepted run. AUTH-1001, ORCH-3016.
"""

import os
import queue
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status.rpc_status import from_call
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from llamaorch.orchestrator.v1 import (
    artifact_service_pb2,
    catalog_service_pb2,
    catalog_service_pb2_grpc,
    config_service_pb2,
    job_pb2,
    orchestrator_service_pb2,
    orchestrator_service_pb2_grpc,
    policy_service_pb2,
    pool_admin_service_pb2,
    pool_admin_service_pb2_grpc,
    session_service_pb2,
)
from llamaorch.pool.v1 import pool_manager_service_pb2, pool_registry_service_pb2
from orchestrator_core.grpc_options import MESSAGE_BYTES_MAX
from orchestrator_core.wire.errors import DOMAIN
from tests.integration.security.messages import Known, encoded, nested, varint
from tests.integration.security.processes import Service, bugs, orchestrator, pool_manager

WAIT_S = 20.0

# A stream that goes on is left after so long.
LOOK_S = 0.05
GROWTH_MIB_MAX = 96
FILES = (
    artifact_service_pb2,
    catalog_service_pb2,
    config_service_pb2,
    orchestrator_service_pb2,
    policy_service_pb2,
    pool_admin_service_pb2,
    session_service_pb2,
    pool_registry_service_pb2,
    pool_manager_service_pb2,
)

# Values that mean something, and messages without which a request is refused at once.
KNOWN: Known = {
    "spec": (),
    "input": (),
    "text": ("hello",),
    "model_id": ("mock",),
    "job_id": ("known", "", ""),
    "pool_id": ("p0", "fuzz-pool"),
    "host_id": ("fuzz-host",),
    "boot_id": ("boot",),
    "replica_id": ("fuzz-pool-1",),
    "url": ("https://example.org/",),
    "correlation_id": (1, 2),
    "register": (),
    "frame": (),
    "pools": (),
    "enqueue": (),
    "subscribe": (),
    "handles": (1,),
    "header": (),
    "chunk": (b"hello",),
    "media_type": ("text/plain",),
    "model": (),
    "digest": ("", "sha256:" + "ab" * 32),
}

# A longer look, with other messages each time: LLAMAORCH_FUZZ=2000 pytest ...
SEARCH = int(os.environ.get("LLAMAORCH_FUZZ", "0"))
EXAMPLES = SEARCH or 12
UNTIMED: dict[str, Any] = {"suppress_health_check": list(HealthCheck), "database": None}


def _methods() -> list[MethodDescriptor]:
    services: list[ServiceDescriptor] = []
    for file in FILES:
        services += file.DESCRIPTOR.services_by_name.values()
    return [method for service in services for method in service.methods]


@dataclass
class Fleet:
    """Both services, and channels to them."""

    orchestrator: Service
    host: Service
    channels: dict[str, grpc.Channel]

    def of(self, method: MethodDescriptor) -> tuple[Service, grpc.Channel]:
        """Who serves a method."""
        here = method.containing_service.name == "PoolManagerService"
        return (self.host if here else self.orchestrator), self.channels["ph"[not here]]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """An orchestratord and a host with one ready pool; neither may log a bug in the end."""
    folder = tmp_path_factory.mktemp("fleet")
    with (
        orchestrator(folder / "o", tokens=False) as first,
        pool_manager(folder / "p", first.address, tokens=False) as second,
        grpc.insecure_channel(first.address) as one,
        grpc.insecure_channel(second.address) as other,
    ):
        found = Fleet(first, second, {"h": one, "p": other})
        run_a_job(one, "known")
        yield found
        for service in (first, second):
            assert service.alive()
            assert bugs(service.log) == []


def run_a_job(channel: grpc.Channel, job_id: str = "") -> None:
    """A bystander's job: it ends as it should, whatever happened before."""
    stub = orchestrator_service_pb2_grpc.OrchestratorServiceStub(channel)
    spec = job_pb2.JobSpec(job_id=job_id, model_id="mock", input=job_pb2.JobInput(text="hello"))
    spec.sampling.max_tokens = 2
    request = orchestrator_service_pb2.EnqueueRequest(spec=spec)
    accepted = stub.Enqueue(request, timeout=WAIT_S, wait_for_ready=True)
    follow = orchestrator_service_pb2.StreamTokensRequest(job_id=accepted.job_id)
    *_, last = stub.StreamTokens(follow, timeout=WAIT_S)
    assert last.events[-1].WhichOneof("event") == "end", last


def undrain(channel: grpc.Channel) -> None:
    """Lets the pool take work again, whoever drained it."""
    stub = pool_admin_service_pb2_grpc.PoolAdminServiceStub(channel)
    request = pool_admin_service_pb2.DrainPoolRequest(pool_id="p0", undo=True)
    stub.DrainPool(request, timeout=WAIT_S)


def forget_models(channel: grpc.Channel) -> None:
    """Empties the catalog, which may say anything of the bystander's model."""
    stub = catalog_service_pb2_grpc.CatalogServiceStub(channel)
    for model in stub.ListModels(catalog_service_pb2.ListModelsRequest(), timeout=WAIT_S).models:
        request = catalog_service_pb2.DeleteModelRequest(model_id=model.model_id, force=True)
        stub.DeleteModel(request, timeout=WAIT_S)


def call(fleet: Fleet, method: MethodDescriptor, sent: list[bytes]) -> grpc.RpcError | None:
    """Makes a call with these messages; None when it was answered, or went on until it was left."""
    service, channel = fleet.of(method)
    path = f"/{method.containing_service.full_name}/{method.name}"
    if not method.server_streaming:
        try:
            if method.client_streaming:
                channel.stream_unary(path)(iter(sent), timeout=WAIT_S, metadata=service.metadata)
            else:
                channel.unary_unary(path)(sent[0], timeout=WAIT_S, metadata=service.metadata)
        except grpc.RpcError as error:
            return error
        return None
    answers = (
        channel.stream_stream(path)(iter(sent), timeout=WAIT_S, metadata=service.metadata)
        if method.client_streaming
        else channel.unary_stream(path)(sent[0], timeout=WAIT_S, metadata=service.metadata)
    )
    ended: queue.Queue[bool] = queue.Queue()
    answers.add_done_callback(lambda _: ended.put(True))
    try:
        for _ in answers:
            break
        ended.get(timeout=LOOK_S)
    except queue.Empty:
        answers.cancel()
        return None
    except grpc.RpcError as error:
        return error
    return None if answers.code() is grpc.StatusCode.OK else answers


def typed(error: grpc.RpcError) -> str:
    """The reason of an error that names one of ours; fails for any other."""
    status = from_call(error)
    assert status is not None, error
    info = error_details_pb2.ErrorInfo()
    assert status.details, error
    assert status.details[0].Unpack(info), error
    assert info.domain == DOMAIN
    return info.reason


@pytest.mark.parametrize("method", _methods(), ids=lambda method: method.name)
def test_whatever_is_sent_gets_a_typed_answer(fleet: Fleet, method: MethodDescriptor) -> None:
    """ORCH-3016: never INTERNAL, never a crash; a bystander's job runs, memory is bounded."""
    kind: type[Message] = message_factory.GetMessageClass(method.input_type)
    service, _ = fleet.of(method)

    @settings(max_examples=EXAMPLES, derandomize=not SEARCH, **UNTIMED)
    @given(st.lists(encoded(kind, KNOWN), min_size=1, max_size=3))
    def send(messages: list[bytes]) -> None:
        assume(all(len(each) < MESSAGE_BYTES_MAX for each in messages))
        error = call(fleet, method, messages)

        if error is not None:
            assert typed(error) != "INTERNAL"

    with service.growth() as growth:
        send()
    undrain(fleet.channels["h"])
    forget_models(fleet.channels["h"])
    run_a_job(fleet.channels["h"])

    assert growth.mib <= GROWTH_MIB_MAX


@pytest.mark.parametrize("depth", [10, 90, 200, 20_000])
def test_values_within_values_are_refused_or_taken_at_any_depth(fleet: Fleet, depth: int) -> None:
    """ORCH-3016: engine options are the one place where a message holds itself."""
    option = b"\x0a\x01x\x12" + _prefixed(nested(depth))
    struct = b"\x0a" + _prefixed(option)
    number = job_pb2.Sampling.DESCRIPTOR.fields_by_name["engine_options"].number
    sampling = _tag(number) + _prefixed(struct)
    spec = job_pb2.JobSpec(model_id="mock", input=job_pb2.JobInput(text="hello"))
    data = spec.SerializeToString()
    data += _tag(job_pb2.JobSpec.DESCRIPTOR.fields_by_name["sampling"].number)
    data += _prefixed(sampling)
    method = orchestrator_service_pb2.DESCRIPTOR.services_by_name["OrchestratorService"]
    enqueue = method.methods_by_name["Enqueue"]
    spec_tag = _tag(enqueue.input_type.fields_by_name["spec"].number)

    error = call(fleet, enqueue, [spec_tag + _prefixed(data)])

    assert error is None or typed(error) in ("INVALID_PARAMS", "ADMISSION_REJECT")
    assert error is not None or depth < 200
    run_a_job(fleet.channels["h"])


def _tag(number: int) -> bytes:
    return varint(number << 3 | 2)


def _prefixed(data: bytes) -> bytes:
    return varint(len(data)) + data
