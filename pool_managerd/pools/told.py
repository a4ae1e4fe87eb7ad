"""What the log tells of a pool, for people too. ORCH-3300."""

from pool_managerd.core.replica import PoolState, Reason
from pool_managerd.telemetry import log


def changed(pool_id: str, replica_id: str, now: tuple[PoolState, Reason, str]) -> None:
    """The pool is in another state, has another reason, or says more."""
    state, reason, detail = now
    log.info(
        "pool_state",
        pool_id=pool_id,
        replica_id=replica_id,
        state=state.value,
        reason=reason.value,
        detail=detail,
        human=f"Pool {pool_id} is {state.value}"
        + (f": {detail or reason.value}." if reason is not Reason.NONE else "."),
    )


def failed(pool_id: str, replica_id: str, reason: Reason, detail: str, *, served: bool) -> None:
    """Its engine is given up, or did not start."""
    what = "is stopped" if served else "did not start"
    log.warning(
        "replica_failed",
        pool_id=pool_id,
        replica_id=replica_id,
        reason=reason.value,
        detail=detail,
        human=f"The engine of pool {pool_id} {what}: {detail}",
    )


def halted(pool_id: str, storm: str) -> None:
    """It has given up; `storm` says after what."""
    human = f"Pool {pool_id} serves nothing: {storm}"
    log.error("pool_halted", pool_id=pool_id, detail=storm, human=human)


def drained(pool_id: str, reason: Reason) -> None:
    """It takes no more work, or takes it again."""
    taking = "takes work again" if reason is Reason.NONE else "takes no more work"
    log.info("pool_drain", pool_id=pool_id, reason=reason.value, human=f"Pool {pool_id} {taking}.")


def circuit(pool_id: str, sentence: str) -> None:
    """Its circuit is open, as `sentence` says, or closed with ""."""
    event = "circuit_open" if sentence else "circuit_closed"
    human = f"no work: {sentence}" if sentence else "work again."
    log.warning(event, pool_id=pool_id, detail=sentence, human=f"Pool {pool_id} takes {human}")


def reloads(pool_id: str, model_ref: str) -> None:
    """A reload was asked for."""
    human = f"Pool {pool_id} loads its model anew once it is idle."
    log.info("pool_reload", pool_id=pool_id, model_ref=model_ref, human=human)


def rolled_back(pool_id: str, model_ref: str, detail: str) -> None:
    """The new model cannot be loaded."""
    log.error(
        "reload_rolled_back",
        pool_id=pool_id,
        model_ref=model_ref,
        detail=detail,
        human=f"Pool {pool_id} goes back to the former model: {detail}",
    )
