"""Simulated GPU hosts: they execute what they are told, hold attempts, die and come back."""

import random
from dataclasses import dataclass, field

from orchestrator_core.core.effects import SendStart, SendVerdicts, Verdict
from orchestrator_core.core.events import AttemptEnded, HeldAttempt
from orchestrator_core.core.snapshot import PoolSnapshot, PoolState

# The slow pools of model m are far enough behind for jobs to wait for the fast one.
SPEEDS = {"p1": 200.0, "p2": None, "p3": 50.0, "p4": 20.0}

Key = tuple[str, int]


@dataclass
class SimAttempt:
    """An attempt at a pool. `end` is what its host has to tell of its end, `told` on this link."""

    key: Key
    replica_id: str
    kv_bytes: int
    started: bool = False
    cancelled: bool = False
    end: AttemptEnded | None = None
    told: bool = False
    text_bytes: int = 0

    @property
    def ended(self) -> bool:
        """True once its engine works on it no more."""
        return self.end is not None


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
    """A host with its pools; frames are numbered from 1 on each link, runs of its manager too.

    `left_out` are pools that its configuration does not have at present.
    """

    host_id: str
    pools: dict[str, SimPool]
    link_id: int | None = None
    frames: int = 0
    runs: int = 1
    left_out: dict[str, SimPool] = field(default_factory=dict)

    @property
    def boot_id(self) -> str:
        """The present run of its pool manager."""
        return f"{self.host_id}!{self.runs}"

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
        """Starts a new incarnation; returns what ran on the old one, for the world to end."""
        pool = self.pools[pool_id]
        running = pool.running()
        pool.boots += 1
        pool.version = 0
        return running

    def restart(self, leave_out: str | None = None) -> None:
        """A new run of the pool manager: it holds nothing, and every engine is a new one.

        Of several pools one may be left out from now on, until the next run.
        """
        self.pools |= self.left_out
        self.left_out.clear()
        if leave_out is not None and len(self.pools) > 1:
            self.left_out[leave_out] = self.pools[leave_out]
        self.runs += 1
        for pool in self.pools.values():
            self.reboot(pool.pool_id)
            pool.attempts.clear()
            pool.drained = False
        for pool_id in self.left_out:
            del self.pools[pool_id]


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
