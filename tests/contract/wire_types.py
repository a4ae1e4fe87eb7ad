"""The messages of each method, found by its path in the descriptors."""

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

from orchestrator_core.auth.roles import ALLOWED

PREFIX = "/llamaorch.orchestrator.v1."
METHODS = sorted(method for method in ALLOWED if method.startswith(PREFIX))


def request(method: str, data: bytes) -> Message:
    """A request of a method."""
    return _parsed(method, "input_type", data)


def response(method: str, data: bytes) -> Message:
    """A response of a method."""
    return _parsed(method, "output_type", data)


def _parsed(method: str, side: str, data: bytes) -> Message:
    service, _, name = method.removeprefix("/").rpartition("/")
    found = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(name)
    message = message_factory.GetMessageClass(getattr(found, side))()
    message.ParseFromString(data)
    return message
