"""What a user is told while no pool of the model is ready."""

from llamaorch.orchestrator.v1 import pool_admin_service_pb2
from llamaorch_client import wire_fleet
from llamaorch_client.cli.waiting import none_ready
from llamaorch_client.model_fleet import Pool


def pool(pool_id: str, state: str, reason: str = "", model_id: str = "m") -> Pool:
    """A pool as the server lists it."""
    message = pool_admin_service_pb2.Pool(
        pool_id=pool_id, state=state, state_reason=reason, model_id=model_id
    )
    return wire_fleet.pool(message)


def test_one_ready_pool_is_enough() -> None:
    """Its slots are taken, which position and ETA tell; pools of other models say nothing."""
    assert none_ready("m", [pool("a", "UNREADY"), pool("b", "READY")]) == ""
    assert none_ready("m", [pool("a", "UNREADY", model_id="other")]) == ""


def test_each_pool_says_why_in_one_line() -> None:
    """A few of them; the rest are counted."""
    pools = [pool("a", "UNREADY", "backoff: it\n ended"), pool("b", "STARTING")]
    many = [*pools, *(pool(name, "DISCONNECTED") for name in "cde")]

    assert none_ready("m", pools) == (
        "no pool for m is ready: a is UNREADY: backoff: it ended; b is STARTING"
    )
    assert none_ready("m", many).endswith("b is STARTING; c is DISCONNECTED; 2 more")
