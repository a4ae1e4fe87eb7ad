"""A continuation that is in the journal, and that its host may never have had. LO-304, LO-305."""

from orchestrator_core.core.effects import (
    Effect,
    SendCancel,
    SendRelease,
    SendStart,
    SendVerdicts,
    Verdict,
)
from orchestrator_core.core.events import (
    AttemptErrorKind,
    AttemptStarted,
    HeldAttempt,
    OutputProgressed,
    Recovered,
)
from orchestrator_core.core.records import AcceptRecord, DispatchRecord, Record, TerminalRecord
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.core.spec import Failover, StartMode
from orchestrator_core.core.states import JobState
from tests.unit.orchestrator_core.core.bench import Bench, only, wide

BYTES = 17
FIRST = HeldAttempt("a", 1, "p", "p#1", ended=True, text_bytes=BYTES)
SECOND = HeldAttempt("a", 2, "q", "q#1", ended=False)


def here(**fields: str) -> PoolSnapshot:
    """The pool of the first attempt, on its host."""
    return wide("p", host_id="h1", **fields)


def there(**fields: str) -> PoolSnapshot:
    """That of the second."""
    return wide("q", host_id="h2", **fields)


def journal(effects: list[Effect]) -> Recovered:
    """The journal of everything that was decided."""
    records: list[Record] = [e for e in effects if isinstance(e, AcceptRecord | DispatchRecord)]
    return Recovered(tuple(only(records, AcceptRecord)), tuple(only(records, DispatchRecord)))


def written(failover: Failover = Failover.CONTINUE) -> list[Effect]:
    """A job delivered text on `p`, whose engine died; its second attempt is for `q`."""
    before = Bench()
    before.register(here(), host="h1", boot_id="run-1")
    effects = before.enqueue("a", failover=failover)
    before.step(AttemptStarted("a", 1))
    before.step(OutputProgressed("a", 1, 1))
    before.register(there(), host="h2", boot_id="run-2")
    return effects + before.fail("a", AttemptErrorKind.ENGINE_DIED)


def restarted(**config: int) -> Bench:
    """The orchestrator starts anew on that journal; no host is back."""
    after = Bench(**config)
    after.step(journal(written()))
    return after


def verdicts(effects: list[Effect]) -> list[Verdict]:
    """What becomes of what a host holds."""
    return [verdict for answer in only(effects, SendVerdicts) for *_, verdict in answer.verdicts]


def test_the_record_names_the_attempt_that_has_the_text() -> None:
    """Of a continuation alone: a replay makes its text again."""
    continued = only(written(), DispatchRecord)
    replayed = only(written(Failover.VERIFIED_REPLAY), DispatchRecord)

    assert [(record.mode, record.follows) for record in continued] == [
        (StartMode.FRESH, 0),
        (StartMode.CONTINUE, 1),
    ]
    assert [record.follows for record in replayed] == [0, 0]
    assert [record.boot_id for record in continued] == ["run-1", "run-2"]


def test_its_host_keeps_the_text_and_the_next_attempt_can_follow_it() -> None:
    """Whichever host comes back first."""
    for order in ("old first", "new first"):
        after = restarted()
        old = new = list[Effect]()
        if order == "old first":
            old = after.register(here(), host="h1", held=[FIRST])
        new = after.register(there(), host="h2", boot_id="run-2")
        if order == "new first":
            old = after.register(here(), host="h1", held=[FIRST])

        (start,) = only(new, SendStart)
        former = after.core.jobs["a"].unreleased
        assert (start.attempt, start.mode) == (3, StartMode.CONTINUE)
        assert verdicts(old) == [Verdict.ADOPT]
        assert only(old, SendRelease) == []
        assert former is not None
        assert (former.key, former.host_id, former.held_bytes) == (("a", 1), "h1", BYTES)
        assert [record.follows for record in only(new, DispatchRecord)] == [1]
        assert after.core.jobs["a"].failures == 1


def test_an_attempt_that_still_runs_there_is_stopped() -> None:
    """It was given up because its host was away; what it has is all that is wanted."""
    after = restarted()
    running = HeldAttempt("a", 1, "p", "p#1", ended=False, text_bytes=BYTES)

    effects = after.register(here(), host="h1", held=[running])

    assert [(c.host_id, c.attempt) for c in only(effects, SendCancel)] == [("h1", 1)]
    assert after.core.jobs["a"].state is JobState.DISPATCHED


def test_a_continuation_that_was_sent_goes_on_and_lets_the_text_go() -> None:
    """Its own output has all of it."""
    after = restarted()
    after.register(here(), host="h1", held=[FIRST])
    adopted = after.register(there(), host="h2", held=[SECOND])

    started = after.step(AttemptStarted("a", 2))

    assert verdicts(adopted) == [Verdict.ADOPT]
    assert only(adopted, SendRelease) == []
    assert only(started, SendRelease) == [SendRelease("h1", "a", 1)]
    assert after.core.jobs["a"].unreleased is None


def test_a_host_that_comes_after_the_continuation_started_forgets_the_text() -> None:
    """Nobody wants it any more."""
    after = restarted()
    after.register(there(), host="h2", held=[SECOND])
    after.step(AttemptStarted("a", 2))

    effects = after.register(here(), host="h1", held=[FIRST])

    assert verdicts(effects) == [Verdict.RELEASE]


def test_what_a_lost_continuation_added_nobody_knows() -> None:
    """The former text may be less than what was delivered: only what it has itself will do."""
    silent = restarted(reattach_grace_ms=1_000)
    silent.register(here(), host="h1", held=[FIRST])
    anew = restarted()
    anew.register(here(), host="h1", held=[FIRST])

    lost = silent.at(1_000)
    replaced = anew.register(there(replica_id="q#2"), host="h2", boot_id="run-3")

    for effects in (lost, replaced):
        assert SendRelease("h1", "a", 1) in effects
        assert [record.follows for record in only(effects, DispatchRecord)] == [2]


def test_an_adopted_continuation_that_is_lost_before_it_was_heard_takes_the_text_along() -> None:
    """It may have delivered more before the restart."""
    after = restarted(reattach_grace_ms=1_000)
    after.register(here(), host="h1", held=[FIRST])
    after.register(there(), host="h2", held=[SECOND], boot_id="run-2")

    effects = after.register(there(), host="h2", boot_id="run-3")

    assert SendRelease("h1", "a", 1) in effects


def test_a_pool_manager_that_went_on_never_had_what_it_does_not_hold() -> None:
    """Its engine may have been replaced meanwhile: what ran there would be held all the same."""
    after = restarted()
    after.register(here(), host="h1", held=[FIRST])

    effects = after.register(there(replica_id="q#2"), host="h2", boot_id="run-2")

    assert only(effects, SendRelease) == []
    assert [record.follows for record in only(effects, DispatchRecord)] == [1]
    assert after.core.jobs["a"].failures == 1


def test_a_second_crash_finds_the_same() -> None:
    """The third attempt was not sent either."""
    first = restarted()
    effects = written() + first.register(there(), host="h2", boot_id="run-2")
    second = Bench()

    second.step(journal(effects))
    kept = second.register(here(), host="h1", held=[FIRST])
    again = second.register(there(), host="h2", boot_id="run-2")

    assert verdicts(kept) == [Verdict.ADOPT]
    assert [(r.attempt, r.follows) for r in only(again, DispatchRecord)] == [(4, 1)]


def test_an_older_journal_names_no_attempt() -> None:
    """Its jobs end as they did: their hosts are told to forget."""
    old = Bench()
    found = journal(written())
    dispatches = tuple(
        DispatchRecord(
            r.job_id, r.attempt, r.pool_id, r.replica_id, r.host_id, r.sent_ms, r.decision,
            r.replica_set, r.mode, r.failures,
        )
        for r in found.dispatches
    )  # fmt: skip

    old.step(Recovered(found.accepts, dispatches))

    assert verdicts(old.register(here(), host="h1", held=[FIRST])) == [Verdict.RELEASE]


def test_an_ended_job_keeps_only_its_last_output() -> None:
    """The attempt before it proves nothing any more."""
    before = written()
    ended = Bench()
    ended.step(journal(before))
    ended.register(there(), host="h2", held=[SECOND])
    effects = before + ended.end("a", 2)
    after = Bench()
    found = journal(effects)

    after.step(Recovered(found.accepts, found.dispatches, tuple(only(effects, TerminalRecord))))

    assert verdicts(after.register(here(), host="h1", held=[FIRST])) == [Verdict.RELEASE]
