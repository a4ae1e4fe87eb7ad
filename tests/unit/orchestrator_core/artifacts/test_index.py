"""The index of artifacts against a list that is searched from end to end. ORCH-3098."""

import random
from dataclasses import replace
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_core.artifacts import index as module
from orchestrator_core.artifacts.index import ArtifactIndex, Query
from orchestrator_core.store.artifact import ArtifactKind, ArtifactRecord

OWNERS, TAGS, DIGESTS = ("ann", "bob"), ("x", "y", "z"), ("d1", "d2", "d3")


def artifact(seq: int, **fields: object) -> ArtifactRecord:
    """A record; its id follows from its number."""
    base = ArtifactRecord(
        f"a{seq}",
        seq,
        "ann",
        ArtifactKind.PLAN,
        "text/plain",
        "d1",
        3,
        created_ms=seq,
        expires_ms=9,
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def history(seed: int) -> list[ArtifactRecord | str]:
    """Artifacts that are added, replaced and removed; sizes follow from the content."""
    chance = random.Random(seed)  # noqa: S311 - seeded
    past: list[ArtifactRecord] = []
    steps: list[ArtifactRecord | str] = []
    for seq in range(1, chance.randint(1, 14) + 1):
        parents = {chance.randint(1, seq - 1) for _ in range(chance.randint(0, 3))} if past else ()
        number = chance.randrange(len(DIGESTS))
        record = artifact(
            seq,
            owner=chance.choice(OWNERS),
            kind=chance.choice(list(ArtifactKind)),
            tags=tuple(sorted(chance.sample(TAGS, chance.randint(0, 3)))),
            sha256=DIGESTS[number],
            size_bytes=10**number,
            parent_ids=tuple(sorted(f"a{each}" for each in parents)),
            job_id=chance.choice(("", "j1", "j2")),
            expires_ms=chance.randint(0, 20),
        )
        past.append(record)
        steps.append(record)
        match chance.randint(0, 3):
            case 0:
                steps.append(chance.choice(past).artifact_id)
            case 1:
                steps.append(replace(chance.choice(past), expires_ms=chance.randint(0, 30)))
    return steps


HISTORIES = st.integers(0, 2**32).map(history)


def applied(steps: list[ArtifactRecord | str]) -> tuple[ArtifactIndex, dict[str, ArtifactRecord]]:
    """The index, and the model: a dictionary."""
    index, model = ArtifactIndex(), {}
    for step in steps:
        if isinstance(step, str):
            index.remove(step)
            model.pop(step, None)
        else:
            index.add(step)
            model[step.artifact_id] = step
    return index, model


@settings(max_examples=60, deadline=None)
@given(HISTORIES)
def test_what_is_counted_is_what_is_there(steps: list[ArtifactRecord | str]) -> None:
    """Content once however many have it, each owner's own, children and uses."""
    index, model = applied(steps)
    records = list(model.values())

    assert len(index) == len(records)
    assert index.digests() == {record.sha256 for record in records}
    sizes = {record.sha256: record.size_bytes for record in records}
    assert index.stored_bytes == sum(sizes.values())
    for owner in OWNERS:
        own = [record.size_bytes for record in records if record.owner == owner]
        assert index.owned_bytes(owner) == sum(own)
    for digest in DIGESTS:
        assert index.uses(digest) == sum(record.sha256 == digest for record in records)
    for seq in range(1, 15):
        assert index.get(f"a{seq}") == model.get(f"a{seq}")


QUERIES = st.builds(
    Query,
    owner=st.sampled_from((None, *OWNERS)),
    kind=st.sampled_from((None, *ArtifactKind)),
    tags=st.frozensets(st.sampled_from(TAGS), max_size=2),
    parent_id=st.sampled_from(("", "a1", "a2", "a99")),
    job_id=st.sampled_from(("", "j1")),
    from_ms=st.none() | st.integers(0, 15),
    before_ms=st.none() | st.integers(0, 15),
)


@settings(max_examples=60, deadline=None)
@given(HISTORIES, QUERIES, st.integers(1, 4), st.integers(1, 20))
def test_pages_together_are_the_list(
    steps: list[ArtifactRecord | str], query: Query, size: int, looked_at_max: int
) -> None:
    """Newest first, each once, whatever the sizes of a page and of what may be looked at."""
    index, model = applied(steps)
    pages, before = [], None
    with mock.patch.object(module, "LOOKED_AT_MAX", looked_at_max):
        while True:
            page = index.page(query, before, size)
            assert len(page.records) <= size
            pages += page.records
            if page.next_seq is None:
                break
            assert before is None or page.next_seq < before
            before = page.next_seq

    assert pages == [
        record
        for record in sorted(model.values(), key=lambda record: -record.seq)
        if query.owner in (None, record.owner)
        and query.kind in (None, record.kind)
        and query.tags.issubset(record.tags)
        and (not query.parent_id or query.parent_id in record.parent_ids)
        and query.job_id in ("", record.job_id)
        and (query.from_ms is None or record.created_ms >= query.from_ms)
        and (query.before_ms is None or record.created_ms < query.before_ms)
    ]


class Compared(int):
    """A number that counts how often numbers of its kind are compared."""

    times = 0

    def __lt__(self, other: int) -> bool:
        """As that of int."""
        Compared.times += 1
        return int.__lt__(self, other)


def test_a_page_of_children_costs_what_is_on_it() -> None:
    """Not what all children cost: a page in the middle of thousands finds its place by halves."""
    count, size = 4_000, 10
    index = ArtifactIndex([artifact(1)])
    for number in range(2, count + 2):
        index.add(replace(artifact(number), seq=Compared(number), parent_ids=("a1",)))
    Compared.times = 0

    page = index.page(Query(parent_id="a1"), count // 2, size)

    assert [record.seq for record in page.records] == list(range(1_999, 1_989, -1))
    assert Compared.times <= count.bit_length()


@settings(max_examples=60, deadline=None)
@given(HISTORIES, st.integers(0, 25), st.integers(1, 5), st.sets(st.sampled_from(("a1", "a3"))))
def test_what_is_due_is_found_until_it_is_removed(
    steps: list[ArtifactRecord | str], now_ms: int, count_max: int, pinned: set[str]
) -> None:
    """The oldest first, never what is pinned, and again when it could not be removed."""
    index, model = applied(steps)
    expected = {
        artifact_id
        for artifact_id, record in model.items()
        if record.expires_ms <= now_ms and artifact_id not in pinned
    }

    assert index.due(now_ms, count_max, pinned) == index.due(now_ms, count_max, pinned)
    found: list[ArtifactRecord] = []
    while due := index.due(now_ms, count_max, pinned):
        assert len(due) <= count_max
        found += due
        for record in due:
            index.remove(record.artifact_id)

    assert {record.artifact_id for record in found} == expected
    assert [r.expires_ms for r in found] == sorted(r.expires_ms for r in found)
    unpinned = index.due(now_ms, 100, ())
    assert {r.artifact_id for r in unpinned} == {
        each for each in pinned if each in model and model[each].expires_ms <= now_ms
    }


@settings(max_examples=60, deadline=None)
@given(HISTORIES, st.integers(0, 6))
def test_ancestors_are_those_that_can_be_reached(
    steps: list[ArtifactRecord | str], count_max: int
) -> None:
    """Each once, those that are gone end their line, and it is told when some are left out."""
    index, model = applied(steps)

    def reached(record: ArtifactRecord) -> set[str]:
        kept = [model[each] for each in record.parent_ids if each in model]
        return {each.artifact_id for each in kept}.union(*(reached(each) for each in kept))

    for record in model.values():
        found, omitted = index.ancestors(record, count_max)
        ids = [each.artifact_id for each in found]
        every = reached(record)

        assert len(ids) == len(set(ids)) == min(count_max, len(every))
        assert set(ids) <= every
        assert omitted == (len(every) > count_max)


def test_nothing_grows_when_the_same_is_put_again_and_again() -> None:
    """The list of expiries is bounded by what is there."""
    index = ArtifactIndex()
    for number in range(3 * module.LOOKED_AT_MAX):
        index.add(artifact(1, expires_ms=number))

    assert len(index._expiries) <= 2 + module.LOOKED_AT_MAX
    assert [record.seq for record in index.due(10**9, 10, ())] == [1]
