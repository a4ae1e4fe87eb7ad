"""What the orchestrator's commands do on this host. LO-301, LO-305."""

from collections.abc import Callable, Mapping

from llamaorch.pool.v1 import dispatch_pb2
from llamaorch.pool.v1 import pool_registry_service_pb2 as registry_pb2
from pool_managerd import failpoints
from pool_managerd.attempts.command import Refusal
from pool_managerd.attempts.executor import Executor
from pool_managerd.attempts.told import trace_id
from pool_managerd.core.outbox import Outbox, RefusalReason, Refused
from pool_managerd.core.replica import Reason
from pool_managerd.link import wire
from pool_managerd.pools.pool import Pool
from pool_managerd.telemetry import SPAN_REFUSE, Telemetry, log

_Handler = Callable[[registry_pb2.DispatchResponse, Outbox], None]


class Commands:
    """Carries commands out. Answers go to the outbox of the session that brought the command."""

    def __init__(self, executor: Executor, pools: Mapping[str, Pool], telemetry: Telemetry) -> None:
        self._executor = executor
        self._pools = pools
        self._telemetry = telemetry
        self._handlers: dict[str, _Handler] = {
            "start": lambda message, outbox: self._start(message.start, outbox),
            "cancel": lambda message, outbox: self._cancel(message.cancel, outbox),
            "release": lambda message, outbox: self._release(message.release, outbox),
            "ack": lambda message, outbox: _ack(message.ack, outbox),
            "seek": lambda message, outbox: _seek(message.seek, outbox),
            "set_draining": lambda message, _: self._set_draining(message.set_draining),
            "reload": lambda message, _: self._reload(message.reload),
        }

    def obey(self, command: str, message: registry_pb2.DispatchResponse, outbox: Outbox) -> None:
        """Carries out the `command` that the message holds; never raises."""
        handler = self._handlers.get(command)
        if handler is None:
            log.warning(
                "command_unexpected",
                command=command,
                human="The orchestrator sent a command that this version does not know.",
            )
            return
        try:
            handler(message, outbox)
        except Exception:  # noqa: BLE001 - it is logged, with its trace
            # One bad command must not end the attempts of others.
            log.exception(
                "command_failed", command=command, human="A bug: please report it with this entry."
            )

    def _start(self, message: dispatch_pb2.StartAttempt, outbox: Outbox) -> None:
        try:
            command = wire.parse_start(message)
        except wire.UnsupportedCommandError as error:
            answer = Refusal(RefusalReason.UNSUPPORTED, str(error))
            self._refuse(message, answer, outbox)
            return
        failpoints.reach("start.before")
        started = self._executor.start(command)
        failpoints.reach("start.after")
        if isinstance(started, Refusal):
            self._refuse(message, started, outbox)
            return
        outbox.bind(message.handle, started)

    def _refuse(self, message: dispatch_pb2.StartAttempt, refusal: Refusal, outbox: Outbox) -> None:
        pool_id = message.pool_id if message.pool_id in self._pools else ""
        reason = refusal.reason.value
        self._telemetry.metrics.attempt_refused(pool_id, reason)
        told: dict[str, str | int] = {
            "job_id": message.job_id,
            "attempt": message.attempt,
            "pool_id": message.pool_id,
            "replica_id": message.replica_id,
            "correlation_id": message.correlation_id,
            "reason": reason,
        }
        self._telemetry.event(SPAN_REFUSE, told, message.traceparent, reason)
        log.info(
            "attempt_refused",
            **told,
            trace_id=trace_id(message.traceparent),
            detail=refusal.message,
            human=f"Job {message.job_id} was not started: {refusal.message}.",
        )
        outbox.refuse(Refused(message.handle, refusal.reason, refusal.message))

    def _cancel(self, message: dispatch_pb2.CancelAttempt, outbox: Outbox) -> None:
        entry = outbox.log_of(message.handle)
        if entry is not None:
            failpoints.reach("cancel.before")
            self._executor.cancel(entry.key, job_cancelled=message.job_cancelled)
            failpoints.reach("cancel.after")

    def _release(self, message: dispatch_pb2.ReleaseAttempts, outbox: Outbox) -> None:
        for handle in message.handles:
            entry = outbox.log_of(handle)
            if entry is not None:
                failpoints.reach("release.before")
                outbox.unbind(handle)
                self._executor.forget(entry.key)
                failpoints.reach("release.after")

    def _set_draining(self, message: dispatch_pb2.SetPoolDraining) -> None:
        pool = self._pool(message.pool_id)
        if pool is None:
            return
        if message.draining:
            timeout_ms = message.timeout_ms if message.HasField("timeout_ms") else None
            pool.drain(Reason.OPERATOR, timeout_ms)
        else:
            pool.drain(Reason.NONE)

    def _reload(self, message: dispatch_pb2.ReloadModel) -> None:
        pool = self._pool(message.pool_id)
        if pool is not None:
            timeout_ms = message.timeout_ms if message.HasField("timeout_ms") else None
            pool.reload(message.model_ref, message.reload_id, timeout_ms)

    def _pool(self, pool_id: str) -> Pool | None:
        pool = self._pools.get(pool_id)
        if pool is None:
            log.warning(
                "command_for_unknown_pool",
                pool_id=pool_id,
                human=f"The orchestrator asked something of pool {pool_id}, which is not on this "
                "host.",
            )
        return pool


def _ack(message: dispatch_pb2.AckTokens, outbox: Outbox) -> None:
    for handle, text_offset in zip(message.handles, message.text_offsets, strict=False):
        outbox.ack(handle, text_offset)


def _seek(message: dispatch_pb2.SeekTokens, outbox: Outbox) -> None:
    outbox.seek(message.handle, message.first_index)
