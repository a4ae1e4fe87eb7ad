"""Sessions, drains and models in every journal: the latest record counts. LO-305."""

import pytest

from orchestrator_core.core.records import (
    SessionForgotten,
)
from orchestrator_core.store.memory import CommitFault
from orchestrator_core.store.port import (
    Store,
    StoreOutcomeUnknownError,
)
from tests.conformance.media import Medium, reopened
from tests.conformance.store_records import accept, drain, model, session


async def test_of_a_session_the_latest_record_counts(medium: Medium, store: Store) -> None:
    """ORCH-3021, ORCH-3099: within a batch and over batches, and nothing of one that is over."""
    await store.commit([session("s", turns=1), session("t"), session("s", turns=2)])
    await store.commit([session("s", turns=3), session("u"), SessionForgotten("client", "t")])
    await store.commit([SessionForgotten("client", "u"), session("u", turns=9)])

    recovered = await reopened(medium, store)

    assert recovered.sessions == (session("s", turns=3), session("u", turns=9))


async def test_an_unknown_batch_of_sessions_is_read_back(medium: Medium) -> None:
    """Whether it was written is seen from the last record of each session alone."""
    store = medium.store()
    await store.open()
    await store.commit([session("t")])
    batch = [accept(1), session(turns=1), session(turns=2), SessionForgotten("client", "t")]
    held = []
    for fault in (CommitFault.UNKNOWN_LOST, CommitFault.UNKNOWN_WRITTEN):
        medium.plan.append(fault)
        with pytest.raises(StoreOutcomeUnknownError):
            await store.commit(batch)
        held.append(await store.holds(batch))

    recovered = await reopened(medium, store)

    assert held == [False, True]
    assert recovered.sessions == (session(turns=2),)


async def test_of_a_pool_the_latest_drain_counts(medium: Medium, store: Store) -> None:
    """OC-CTRL-2002: within a batch and over batches, and nothing of one that is over."""
    await store.commit([drain("p"), drain("q"), drain("p", since_ms=4)])
    await store.commit([drain("p", since_ms=5), drain("r"), drain("q", over=True)])
    await store.commit([drain("r", over=True), session("p"), drain("r", since_ms=9)])

    recovered = await reopened(medium, store)

    assert sorted(recovered.drains, key=lambda record: record.pool_id) == [
        drain("p", since_ms=5),
        drain("r", since_ms=9),
    ]
    assert recovered.sessions == (session("p"),)


async def test_an_unknown_batch_of_drains_is_read_back(medium: Medium) -> None:
    """Whether it was written is seen from the last record of each pool alone."""
    store = medium.store()
    await store.open()
    await store.commit([drain("q")])
    batch = [drain("p"), drain("p", since_ms=7), drain("q", over=True)]
    held = []
    for fault in (CommitFault.UNKNOWN_LOST, CommitFault.UNKNOWN_WRITTEN):
        medium.plan.append(fault)
        with pytest.raises(StoreOutcomeUnknownError):
            await store.commit(batch)
        held.append(await store.holds(batch))

    recovered = await reopened(medium, store)

    assert held == [False, True]
    assert recovered.drains == (drain("p", since_ms=7),)


async def test_of_a_model_the_latest_record_counts(medium: Medium, store: Store) -> None:
    """ORCH-3031: within a batch and over batches, and nothing of one that was deleted."""
    await store.commit([model("m"), model("n"), model("m", revision=2)])
    await store.commit([model("m", revision=3), model("o"), model("n", over=True)])
    await store.commit([model("o", over=True), drain("m"), model("o", revision=9)])

    recovered = await reopened(medium, store)

    assert recovered.models == (model("m", revision=3), model("o", revision=9))
    assert recovered.drains == (drain("m"),)


async def test_an_unknown_batch_of_models_is_read_back(medium: Medium) -> None:
    """Whether it was written is seen from the last record of each model alone."""
    store = medium.store()
    await store.open()
    await store.commit([model("n")])
    batch = [model("m"), model("m", revision=7), model("n", over=True)]
    held = []
    for fault in (CommitFault.UNKNOWN_LOST, CommitFault.UNKNOWN_WRITTEN):
        medium.plan.append(fault)
        with pytest.raises(StoreOutcomeUnknownError):
            await store.commit(batch)
        held.append(await store.holds(batch))

    recovered = await reopened(medium, store)

    assert held == [False, True]
    assert recovered.models == (model("m", revision=7),)


async def test_the_clock_never_goes_below_a_model(medium: Medium, store: Store) -> None:
    """What is left of its grace must not grow."""
    await store.commit([model(revision=77)])
    await store.close()

    opened = await medium.store().open()

    assert opened.last_ms == 77


async def test_the_clock_never_goes_below_a_drain(medium: Medium, store: Store) -> None:
    """What is left of its time must not grow."""
    await store.commit([drain(since_ms=77)])
    await store.close()

    opened = await medium.store().open()

    assert opened.last_ms == 77


async def test_the_clock_never_goes_below_a_session(medium: Medium, store: Store) -> None:
    """Its jobs may have been deleted since."""
    await store.commit([session(used_ms=77)])
    await store.close()

    opened = await medium.store().open()

    assert opened.last_ms == 77
