"""Simulated GPU hosts: they execute what they are told, hold attempts, die and come back."""

import random
from dataclasses import dataclass, field

from orchestrator_core.core.effects import SendStart, SendVerdicts, Verdict
from orchestrator_core.core.events import HeldAttempt
from orchestrator_core.core.snapshot import PoolSnapshot, PoolState

# The slow pools of model m are far enough behind for jobs to wait for the fast one.
SPEEDS = {"p1": 200.0, "p2": None, "p3": 50.0, "p4": 20.0}

Key = tuple[str, int]


@dataclass
class SimAttempt:
    """An attempt at a pool: `died` with its engine, `told` once its end was."""

    key: Key
    replica_id: str
    kv_bytes: int
    started: bool = False
    cancelled: bool = False
    ended: bool = False
    died: bool = False
    told: bool = False
    text_bytes: int = 0


@dataclass
class SimPool:
    """One engine process; `boots` counts its incarnations."""

    pool_id: str
    host_id: str
    model_id: str
    slots: int
    kv_total_bytes: int | None
    engine_version: str = "1"
    tokens_per_s: float | None = None
    state: PoolState = PoolState.READY
    drained: bool = False
    boots: int = 1
    version: int = 0
    attempts: dict[Key, SimAttempt] = field(default_factory=dict)

    @property
    def replica_id(self) -> str:
        """The present incarnation."""
        return f"{self.pool_id}#{self.boots}"

    def running(self) -> list[SimAttempt]:
        """Attempts that hold a slot of the present incarnation."""
        return [a for a in self.attempts.values() if not a.ended]

    def snapshot(self, emitted_frame_seq: int) -> PoolSnapshot:
        """The next report. Memory counts only what is used so far: half of what was estimated."""
        self.version += 1
        running = self.running()
        kv_free = None
        if self.kv_total_bytes is not None:
            kv_free = self.kv_total_bytes - sum(a.kv_bytes // 2 for a in running)
        return PoolSnapshot(
            pool_id=self.pool_id,
            replica_id=self.replica_id,
            host_id=self.host_id,
            version=self.version,
            model_id=self.model_id,
            engine="sim",
            engine_version=self.engine_version,
            perf_tokens_per_s=self.tokens_per_s,
            state=PoolState.DRAINING if self.drained else self.state,
            state_reason="operator" if self.drained else "",
            slots_total=self.slots,
            slots_free=self.slots - len(running),
            kv_free_bytes=kv_free,
            running=tuple(a.key for a in running),
            emitted_frame_seq=emitted_frame_seq,
        )


@dataclass
class SimHost:
    """A host with its pools; frames are numbered from 1 on each link."""

    host_id: str
    pools: dict[str, SimPool]
    link_id: int | None = None
    frames: int = 0

    def frame(self) -> int:
        """Number of the next frame."""
        self.frames += 1
        return self.frames

    def snapshots(self) -> tuple[PoolSnapshot, ...]:
        """Reports of all pools."""
        return tuple(pool.snapshot(self.frames) for pool in self.pools.values())

    def held(self) -> tuple[HeldAttempt, ...]:
        """Everything that was not released, as told at registration."""
        return tuple(
            HeldAttempt(*attempt.key, pool.pool_id, attempt.replica_id, attempt.ended)
            for pool in self.pools.values()
            for attempt in pool.attempts.values()
        )

    def find(self, key: Key) -> SimAttempt | None:
        """The attempt, wherever on the host it is held."""
        for pool in self.pools.values():
            if key in pool.attempts:
                return pool.attempts[key]
        return None

    def start(self, effect: SendStart) -> bool:
        """Takes a job up; False when the incarnation is another or its slots are taken."""
        pool = self.pools.get(effect.pool_id)
        if pool is None or pool.replica_id != effect.replica_id:
            return False
        if pool.drained or pool.state is not PoolState.READY or len(pool.running()) >= pool.slots:
            return False
        key = (effect.spec.job_id, effect.attempt)
        pool.attempts[key] = SimAttempt(key, pool.replica_id, effect.spec.est_kv_bytes or 0)
        return True

    def release(self, key: Key) -> None:
        """Forgets an attempt."""
        for pool in self.pools.values():
            pool.attempts.pop(key, None)

    def obey(self, effect: SendVerdicts) -> None:
        """Drops what it was told to abort or release."""
        for job_id, number, verdict in effect.verdicts:
            if verdict is not Verdict.ADOPT:
                self.release((job_id, number))

    def reboot(self, pool_id: str) -> list[SimAttempt]:
        """Starts a new incarnation; returns what ended with the old one, still held."""
        pool = self.pools[pool_id]
        ended = pool.running()
        pool.boots += 1
        pool.version = 0
        for attempt in ended:
            attempt.ended = attempt.died = True
        return ended

    def restart(self) -> None:
        """A new run of the pool manager: it holds nothing, and every engine is a new one."""
        for pool in self.pools.values():
            self.reboot(pool.pool_id)
            pool.attempts.clear()


def fleet(rng: random.Random, *, memory: bool) -> dict[str, SimHost]:
    """Two hosts, four pools, two models, two engine versions."""
    hosts: dict[str, SimHost] = {}
    for name, pools in (("h1", ("p1", "p2")), ("h2", ("p3", "p4"))):
        hosts[name] = SimHost(
            name,
            {
                pool_id: SimPool(
                    pool_id,
                    name,
                    model_id="n" if pool_id == "p4" else "m",
                    slots=rng.randint(1, 3),
                    kv_total_bytes=rng.choice((8, 12)) if memory else None,
                    engine_version=rng.choice(("1", "2")),
                    tokens_per_s=SPEEDS[pool_id],
                )
                for pool_id in pools
            },
        )
    return hosts
