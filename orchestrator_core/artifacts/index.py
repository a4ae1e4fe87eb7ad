"""All artifacts in memory: what is asked of them without a disk. Durable elsewhere.

Belongs to the event loop. Adding and removing cost O(log n) and a move of a list of numbers, for
each parent another one.
"""

import heapq
from bisect import bisect_left, insort
from collections import Counter, defaultdict, deque
from collections.abc import Container, Iterable
from dataclasses import dataclass

from orchestrator_core.store.artifact import ArtifactKind, ArtifactRecord

# A page is made in the event loop's turn: of how many artifacts it may be a selection.
LOOKED_AT_MAX = 5_000


@dataclass(frozen=True, slots=True)
class Query:
    """Which artifacts are listed; empty and None do not restrict. Instants: from, and before."""

    owner: str | None = None
    kind: ArtifactKind | None = None
    tags: frozenset[str] = frozenset()
    parent_id: str = ""
    job_id: str = ""
    session_id: str = ""
    from_ms: int | None = None
    before_ms: int | None = None

    def matches(self, record: ArtifactRecord) -> bool:
        """True for an artifact that is listed."""
        return (
            (self.owner is None or record.owner == self.owner)
            and (self.kind is None or record.kind is self.kind)
            and self.tags <= set(record.tags)
            and (not self.parent_id or self.parent_id in record.parent_ids)
            and (not self.job_id or record.job_id == self.job_id)
            and (not self.session_id or record.session_id == self.session_id)
            and (self.from_ms is None or record.created_ms >= self.from_ms)
            and (self.before_ms is None or record.created_ms < self.before_ms)
        )


@dataclass(frozen=True, slots=True)
class Page:
    """Artifacts, newest first. The next page begins below `next_seq`; None: there is none."""

    records: tuple[ArtifactRecord, ...]
    next_seq: int | None


class ArtifactIndex:
    """Finds artifacts by id, order, content, parent, owner and expiry."""

    def __init__(self, records: Iterable[ArtifactRecord] = ()) -> None:
        self._by_id: dict[str, ArtifactRecord] = {}
        self._by_seq: dict[int, ArtifactRecord] = {}
        self._seqs: list[int] = []
        self._uses: Counter[str] = Counter()
        self._owned_bytes: Counter[str] = Counter()
        self._children: defaultdict[str, list[int]] = defaultdict(list)
        self._expiries: list[tuple[int, str]] = []
        self.stored_bytes = 0
        self.next_seq = 1
        for record in records:
            self.add(record)

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, artifact_id: str) -> ArtifactRecord | None:
        """The artifact of an id; None when there is none."""
        return self._by_id.get(artifact_id)

    def uses(self, sha256: str) -> int:
        """How many artifacts have this content."""
        return self._uses[sha256]

    def owned_bytes(self, owner: str) -> int:
        """Bytes of all artifacts of a client; content that two of them share counts twice."""
        return self._owned_bytes[owner]

    def digests(self) -> frozenset[str]:
        """Every content that is in use."""
        return frozenset(self._uses)

    def add(self, record: ArtifactRecord) -> None:
        """Adds an artifact, or replaces the one of its id."""
        self.remove(record.artifact_id)
        self._by_id[record.artifact_id] = self._by_seq[record.seq] = record
        insort(self._seqs, record.seq)
        if not self._uses[record.sha256]:
            self.stored_bytes += record.size_bytes
        self._uses[record.sha256] += 1
        self._owned_bytes[record.owner] += record.size_bytes
        for parent_id in record.parent_ids:
            insort(self._children[parent_id], record.seq)
        self.next_seq = max(self.next_seq, record.seq + 1)
        self._expects(record)

    def remove(self, artifact_id: str) -> None:
        """Removes an artifact, if it is there."""
        record = self._by_id.pop(artifact_id, None)
        if record is None:
            return
        del self._by_seq[record.seq], self._seqs[bisect_left(self._seqs, record.seq)]
        if self._uses[record.sha256] == 1:
            del self._uses[record.sha256]
            self.stored_bytes -= record.size_bytes
        else:
            self._uses[record.sha256] -= 1
        self._owned_bytes[record.owner] -= record.size_bytes
        if not self._owned_bytes[record.owner]:
            del self._owned_bytes[record.owner]
        for parent_id in record.parent_ids:
            children = self._children[parent_id]
            del children[bisect_left(children, record.seq)]
            if not children:
                del self._children[parent_id]

    def ancestors(
        self, record: ArtifactRecord, count_max: int
    ) -> tuple[list[ArtifactRecord], bool]:
        """The ancestors that are kept, nearest first, each once; True when some were left out."""
        found: list[ArtifactRecord] = []
        seen, waiting = set(record.parent_ids), deque(record.parent_ids)
        while waiting:
            parent = self._by_id.get(waiting.popleft())
            if parent is None:
                continue
            if len(found) == count_max:
                return found, True
            found.append(parent)
            waiting.extend(each for each in parent.parent_ids if each not in seen)
            seen.update(parent.parent_ids)
        return found, False

    def page(self, query: Query, before_seq: int | None, size: int) -> Page:
        """One page of a list; shorter than `size` when too many would have to be looked at.

        O(what is looked at), with a logarithm of what the list has.
        """
        seqs = self._children.get(query.parent_id, []) if query.parent_id else self._seqs
        at = len(seqs) if before_seq is None else bisect_left(seqs, before_seq)
        found: list[ArtifactRecord] = []
        end = max(0, at - LOOKED_AT_MAX)
        while at > end and len(found) < size:
            at -= 1
            record = self._by_seq[seqs[at]]
            if query.matches(record):
                found.append(record)
        return Page(tuple(found), seqs[at] if at else None)

    def due(self, now_ms: int, count_max: int, pinned: Container[str]) -> list[ArtifactRecord]:
        """At most so many artifacts whose time is over, the oldest first, but for those pinned.

        O(what is returned + pinned ones that are due), with a logarithm.
        """
        found: list[ArtifactRecord] = []
        again: list[ArtifactRecord] = []
        while self._expiries and self._expiries[0][0] <= now_ms and len(found) < count_max:
            expires_ms, artifact_id = heapq.heappop(self._expiries)
            record = self._by_id.get(artifact_id)
            if record is None or record.expires_ms != expires_ms:
                continue
            (again if artifact_id in pinned else found).append(record)
        for record in (*again, *found):
            self._expects(record)
        return found

    def _expects(self, record: ArtifactRecord) -> None:
        """Notes when an artifact expires. Entries that hold no more are left behind, but few."""
        heapq.heappush(self._expiries, (record.expires_ms, record.artifact_id))
        if len(self._expiries) > 2 * len(self._by_id) + LOOKED_AT_MAX:
            self._expiries = [(each.expires_ms, each.artifact_id) for each in self._by_id.values()]
            heapq.heapify(self._expiries)
