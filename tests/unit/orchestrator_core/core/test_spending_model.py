"""Sessions' budgets against a naive ledger, over any sequence of accepts, ends and restarts."""

import random
from dataclasses import dataclass, field

import pytest

from orchestrator_core.core.config import CoreConfig, Guardrails, Price
from orchestrator_core.core.effects import Effect, ReplyAccepted, ReplyRefused
from orchestrator_core.core.events import (
    AcceptsFailed,
    AttemptEnded,
    AttemptError,
    AttemptErrorKind,
    AttemptStarted,
    CancelRequested,
    EnqueueRequested,
    Event,
    HeldAttempt,
    HostRegistered,
    OutputProgressed,
)
from orchestrator_core.core.job import Job
from orchestrator_core.core.machine import Core
from orchestrator_core.core.outcome import Finish, Usage
from orchestrator_core.core.records import Record
from orchestrator_core.core.spec import Budgets
from orchestrator_core.core.states import JobState
from tests.unit.orchestrator_core.core.bench import only, wide
from tests.unit.orchestrator_core.core.build import spec
from tests.unit.orchestrator_core.core.shell import Journal

BUDGET = Budgets(tokens=600, cost_micros=1_100)
PER_INPUT, PER_OUTPUT = 1_500, 2_500
CONFIG = CoreConfig(
    guardrails=Guardrails(token_bytes_max=4, price=Price(PER_INPUT, PER_OUTPUT)),
    session_turns_max=1_000,
    session_ttl_ms=86_400_000,
    reattach_grace_ms=86_400_000,
)
CTX_MAX = 300
SESSIONS = ("s", "t")


def cost(prompt: int, output: int) -> int:
    """In millionths, rounded up."""
    return (prompt * PER_INPUT + output * PER_OUTPUT + 999) // 1_000


@dataclass
class Ledger:
    """One session as a list of amounts: (prompt, output) of what is held and what was used."""

    held: dict[str, tuple[int, int]] = field(default_factory=dict)
    used: dict[str, tuple[int, int]] = field(default_factory=dict)

    def tokens(self) -> int:
        """Spent and set aside."""
        return sum(p + o for p, o in (*self.held.values(), *self.used.values()))

    def cost(self) -> int:
        """Spent and set aside."""
        return sum(cost(p, o) for p, o in (*self.held.values(), *self.used.values()))

    def room(self, prompt: int) -> int:
        """Most tokens of output that both budgets have left, found by trying."""
        assert BUDGET.tokens is not None
        assert BUDGET.cost_micros is not None
        output = 0
        while (
            self.tokens() + prompt + output + 1 <= BUDGET.tokens
            and self.cost() + cost(prompt, output + 1) <= BUDGET.cost_micros
        ):
            output += 1
        return output


class Bank:
    """Random moves of clients, a pool and a journal around one core."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)  # noqa: S311 - a test case, not a secret
        self.core = Core(CONFIG)
        self.journal = Journal()
        self.ledgers = {name: Ledger() for name in SESSIONS}
        self.pieces: dict[str, int] = {}
        self.begun: set[str] = set()
        self.now_ms = 0
        self.accepted = self.refused = 0
        self.register()

    def step(self, event: Event) -> list[Effect]:
        """One step; what it wrote is durable at once."""
        effects = self.core.step(event, self.now_ms)
        self.journal.write([effect for effect in effects if isinstance(effect, Record)])
        return effects

    def register(self) -> None:
        """The host comes, with all attempts that its pool still runs."""
        held = tuple(
            HeldAttempt(a.job_id, a.number, a.pool_id, a.replica_id, ended=False)
            for a in self.core._state.attempts.values()
        )
        pool = wide(slots=3, ctx_max=CTX_MAX)
        self.step(HostRegistered("h", self.now_ms + 1, (pool,), held))

    def ledger(self, job: Job) -> Ledger:
        """Where a job is counted."""
        return self.ledgers[job.spec.session_id]

    def enqueue(self) -> None:
        """A job arrives, of a size that may fit or not; now and then its accept is lost."""
        rng, name = self.rng, self.rng.choice(SESSIONS)
        ledger, prompt = self.ledgers[name], rng.randint(1, 60)
        wanted = rng.choice((None, None, rng.randint(1, 120)))
        job_id = f"j{self.accepted + self.refused}"
        room = ledger.room(prompt)
        new = spec(
            job_id,
            session_id=name,
            prompt_bytes=4 * prompt,
            max_tokens=wanted,
            session_budgets=BUDGET,
        )
        before = self.journal.content()
        effects = self.step(EnqueueRequested(new, 0))
        if room < (wanted or 1):
            assert only(effects, ReplyRefused)
            self.refused += 1
            return
        (reply,) = only(effects, ReplyAccepted)
        self.accepted += 1
        if wanted is None:
            wanted = min(room, CTX_MAX - prompt)
        if rng.random() < 0.1:
            self.step(AcceptsFailed((job_id,)))
            assert len(self.journal.content().accepts) == len(before.accepts) + 1
            self.journal.accepts.pop()
            self.journal.dispatches = [d for d in self.journal.dispatches if d.job_id != job_id]
            return
        ledger.held[job_id] = (prompt, wanted)
        assert reply.receipt.remaining == self.left(name)

    def left(self, name: str) -> Budgets:
        """By the ledger."""
        assert BUDGET.tokens is not None
        assert BUDGET.cost_micros is not None
        ledger = self.ledgers[name]
        return Budgets(
            tokens=BUDGET.tokens - ledger.tokens(), cost_micros=BUDGET.cost_micros - ledger.cost()
        )

    def some(self, *states: JobState) -> Job | None:
        """Any job in one of these states that a pool still works at."""
        found = [
            job
            for job in self.core.jobs.values()
            if job.state in states and job.attempt and job.attempt.key in self.core._state.attempts
        ]
        return self.rng.choice(found) if found else None

    def progress(self) -> None:
        """An engine begins, or has produced more."""
        job = self.some(JobState.DISPATCHED, JobState.RUNNING)
        if job is None:
            return
        if job.state is JobState.DISPATCHED:
            self.step(AttemptStarted(job.job_id, 1))
            self.begun.add(job.job_id)
        output = self.ledger(job).held[job.job_id][1]
        self.pieces[job.job_id] = min(output, self.pieces.get(job.job_id, 0) + 5)
        self.step(OutputProgressed(job.job_id, 1, self.pieces[job.job_id]))

    def end(self) -> None:
        """A pool tells of the end, of a running job or of one that was stopped."""
        job = self.some(JobState.DISPATCHED, JobState.RUNNING, JobState.CANCELLED)
        if job is None:
            return
        ledger = self.ledger(job)
        prompt, output = ledger.held.pop(job.job_id)
        used = self.rng.randint(min(output, self.pieces.get(job.job_id, 0)), output)
        ledger.used[job.job_id] = (prompt, used)
        usage = Usage(prompt, used)
        finish = Finish.CANCELLED if job.state is JobState.CANCELLED else Finish.EOS
        self.step(AttemptEnded(job.job_id, 1, 1, finish=finish, usage=usage))

    def fail(self) -> None:
        """A job fails for good: what was delivered counts, and its prompt with it."""
        job = self.some(JobState.DISPATCHED, JobState.RUNNING)
        if job is None:
            return
        ledger, delivered = self.ledger(job), self.core.jobs[job.job_id].pieces
        prompt, _ = ledger.held.pop(job.job_id)
        if delivered:
            ledger.used[job.job_id] = (prompt, delivered)
        error = AttemptError(AttemptErrorKind.CONTEXT_OVERFLOW, "too long")
        self.step(AttemptEnded(job.job_id, 1, 1, error=error))

    def cancel(self) -> None:
        """A client cancels: what waits is free, what runs is settled when its pool confirms."""
        live = [job for job in self.core.jobs.values() if job.live]
        if not live:
            return
        job = self.rng.choice(live)
        if job.state is JobState.QUEUED:
            del self.ledger(job).held[job.job_id]
        self.step(CancelRequested(job.job_id, 0))

    def restart(self) -> None:
        """The orchestrator is killed: of what was stopped nobody tells any more."""
        for job in self.core.jobs.values():
            ledger = self.ledger(job)
            if not job.live and job.job_id in ledger.held:
                ledger.used[job.job_id] = ledger.held.pop(job.job_id)
        self.core = Core(CONFIG)
        self.step(self.journal.content())
        self.register()

    def play(self, steps: int) -> None:
        """Random moves, each followed by a comparison."""
        moves = (self.enqueue, self.progress, self.end, self.fail, self.cancel, self.restart)
        for _ in range(steps):
            self.now_ms += 10
            self.rng.choices(moves, (30, 20, 15, 4, 6, 3))[0]()
            self.compare()

    def compare(self) -> None:
        """The core's account is the ledger's, and no budget is ever exceeded."""
        for name, ledger in self.ledgers.items():
            session = self.core.session("", name)
            if session is None:
                assert not ledger.held
                assert not ledger.used
                continue
            reserved = session.reserved()
            assert set(session.held) == set(ledger.held)
            assert session.spent.tokens + reserved.tokens == ledger.tokens()
            assert session.spent.cost_micros + reserved.cost_micros == ledger.cost()
            left = self.left(name)
            assert left.tokens is not None
            assert left.cost_micros is not None
            assert left.tokens >= 0
            assert left.cost_micros >= 0
            assert self.core.session_account(session).left == left


@pytest.mark.parametrize("seed", range(40))
def test_spent_and_set_aside_are_those_of_a_naive_ledger(seed: int) -> None:
    """ORCH-3099: through accepts, lost accepts, ends, failures, cancels and restarts."""
    bank = Bank(seed)

    bank.play(160)

    assert bank.accepted > 5
    assert bank.refused > 5
