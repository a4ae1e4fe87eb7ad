"""What is found when a model of the catalog is verified. ORCH-3037."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from orchestrator_core.core.catalog_model import CatalogEntry, DigestVerdict, judge_digest
from orchestrator_core.core.pool import Pool
from orchestrator_core.servicers.signatures import Checked, Signatures, SignatureVerdict


@dataclass(frozen=True, slots=True)
class PoolFinding:
    """How what one pool reports compares with the catalog."""

    pool_id: str
    engine: str
    reported: str
    verdict: DigestVerdict


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found about a model: its pools, in order of id, and its signature."""

    entry: CatalogEntry
    pools: tuple[PoolFinding, ...]
    signature: Checked

    @property
    def verified(self) -> bool:
        """True when a pool reports the digest that is stated, and nothing contradicts it."""
        verdicts = {pool.verdict for pool in self.pools}
        agreed = DigestVerdict.MATCH in verdicts and DigestVerdict.MISMATCH not in verdicts
        return agreed and self.signature.verdict is not SignatureVerdict.INVALID

    def warnings(self) -> Iterator[str]:
        """Sentences about what is missing or does not fit."""
        card = self.entry.card
        if not card.digest:
            yield "it has no digest, so nothing that pools report can be compared with it"
        elif self.signature.verdict is SignatureVerdict.MISSING:
            yield "it has no signature, so nobody vouches for its digest"
        if self.signature.verdict is SignatureVerdict.UNCHECKED:
            yield "its signature was not checked: catalog.trusted_keys names no key"
        if self.signature.verdict is SignatureVerdict.INVALID:
            yield "no key of catalog.trusted_keys made its signature"
        for pool in self.pools if card.digest else ():
            if pool.verdict is DigestVerdict.MISMATCH:
                yield f"pool {pool.pool_id} reports {pool.reported}, and gets none of its jobs"
            elif pool.verdict is DigestVerdict.UNKNOWN:
                yield f"pool {pool.pool_id} reports no digest"
        if not self.pools:
            yield f"no pool serves {card.model_id}"


def find(entry: CatalogEntry, pools: Mapping[str, Pool], signatures: Signatures) -> Findings:
    """Compares a model with what pools report now. O(pools)."""
    card = entry.card
    found = tuple(
        PoolFinding(
            pool_id,
            pools[pool_id].snapshot.engine,
            pools[pool_id].snapshot.model_digest,
            judge_digest(card.digest, pools[pool_id].snapshot.model_digest),
        )
        for pool_id in sorted(pools)
        if pools[pool_id].snapshot.model_id == card.model_id
    )
    return Findings(entry, found, signatures.check(card.digest, card.signature))
