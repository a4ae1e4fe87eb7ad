"""Reloading a pool: one command to its host, and what snapshots tell of it. OC-CTRL-2003.

The scheduler has no part in it: a pool that reloads says so, and gets no job meanwhile.
"""

import uuid

from llamaorch.orchestrator.v1 import pool_admin_service_pb2 as pb
from llamaorch.pool.v1 import snapshot_pb2
from orchestrator_core.core.draining import unknown_pool
from orchestrator_core.core.outcome import FieldViolation, Reason, Refusal
from orchestrator_core.errors import RefusalError
from orchestrator_core.hosts.link import HostLink
from orchestrator_core.runtime import Runtime

MODEL_REF_CHARS_MAX = 4_096
_ENDS = {
    snapshot_pb2.RELOAD_STATE_DONE: pb.RELOAD_OUTCOME_DONE,
    snapshot_pb2.RELOAD_STATE_ROLLED_BACK: pb.RELOAD_OUTCOME_ROLLED_BACK,
    snapshot_pb2.RELOAD_STATE_FAILED: pb.RELOAD_OUTCOME_FAILED,
}
_SUPERSEDED = "another reload of this pool was asked for meanwhile"
_LOST = "the host was lost before it had the command, or before it told what became of it"


async def reload(
    runtime: Runtime, pool_id: str, model_ref: str, timeout_ms: int
) -> tuple[pb.ReloadOutcome.ValueType, str]:
    """Sends the command and waits for its end, for as long as the caller does.

    Returns what became of it and a sentence about what went wrong.

    Raises:
        RefusalError: NOT_FOUND; POOL_UNAVAILABLE while the host is not connected.
    """
    if len(model_ref) > MODEL_REF_CHARS_MAX:
        wrong = FieldViolation("model_ref", f"at most {MODEL_REF_CHARS_MAX} characters")
        raise RefusalError(
            Refusal(Reason.INVALID_PARAMS, "model_ref is too long", violations=(wrong,))
        )
    pool = runtime.core.pools.get(pool_id)
    if pool is None:
        raise RefusalError(unknown_pool(pool_id))
    host_id = pool.snapshot.host_id
    link = runtime.hosts.links.get(host_id)
    if link is None:
        text = f"host {host_id} of pool {pool_id} is not connected"
        raise RefusalError(Refusal(Reason.POOL_UNAVAILABLE, text, pool_id=pool_id))
    reload_id = uuid.uuid4().hex
    link.reload(pool_id, reload_id, model_ref, timeout_ms)
    heard = False
    while True:
        await runtime.next_step()
        told = runtime.hosts.reported.get(pool_id)
        if told is not None and told.reload.reload_id == reload_id:
            heard = True
            if told.reload.state in _ENDS:
                return _ENDS[told.reload.state], told.reload.detail
        elif told is not None and told.HasField("reload") and (heard or _is_last(link, told)):
            return pb.RELOAD_OUTCOME_SUPERSEDED, _SUPERSEDED
        elif runtime.hosts.links.get(host_id) not in (link, None) or told is None:
            # It is back, and has never heard of it; or another run of it, which knows nothing.
            return pb.RELOAD_OUTCOME_UNKNOWN, _LOST
        pool = runtime.core.pools.get(pool_id)
        if pool is None or pool.snapshot.host_id != host_id:
            # Its host was away for so long that the pool was forgotten, whatever it said last, or
            # that another host has taken its name.
            return pb.RELOAD_OUTCOME_UNKNOWN, _LOST


def _is_last(link: HostLink, told: snapshot_pb2.PoolSnapshot) -> bool:
    """True when a host tells of the last reload that it was sent: what came before is replaced."""
    return told.reload.reload_id == link.reloads.get(told.pool_id)
