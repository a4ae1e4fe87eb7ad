"""Turns a model reference into a file of this host, fetching it when that is allowed. ORCH-3091.

    CACHE/sha256/HEX/NAME            files of https:, by their digest
    CACHE/hf/ORG/REPO/REVISION/FILE  files of the Hub

Beside each lies `NAME.verified`: the digest that was verified as the file came, its size and the
time of its last change; and an empty `NAME.lock`, held by the process that fetches it. A revision
that moves, such as main, stays what it was when it was fetched.
"""

import asyncio
import contextlib
import fcntl
import json
import os
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urlsplit
from weakref import WeakValueDictionary

from pool_managerd.core.model_ref import ModelRef, Scheme, part_names, shown_ref
from pool_managerd.core.outbound import OutboundDecision, OutboundPolicy, decide_outbound
from pool_managerd.models.fetch import (
    FetchError,
    FetchLimits,
    FetchRequest,
    Progress,
    fetch,
)
from pool_managerd.threads import in_thread


@dataclass(frozen=True, slots=True)
class ResolverConfig:
    """Where files are kept, and what may be fetched.

    `base` is the folder of relative paths, `hub_token` (a secret) goes to `hub_endpoint` alone.
    `decide` decides about addresses in place of `policy`.
    """

    base: Path
    cache: Path
    policy: OutboundPolicy
    limits: FetchLimits
    hub_endpoint: str = "https://huggingface.co"
    hub_token: str = ""
    decide: Callable[[str], OutboundDecision] | None = None


@dataclass(frozen=True, slots=True)
class Resolved:
    """A model's file, the first of a split one. `digest` is empty unless it was verified before."""

    path: Path
    digest: str = ""


OnDecision = Callable[[OutboundDecision], None]


class Resolver:
    """Finds and fetches model files. One fetch of a file at a time, however many want it.

    `config` may be replaced: it counts for what is decided from then on.
    """

    def __init__(self, config: ResolverConfig) -> None:
        self.config = config
        # A lock lives as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()

    async def resolve(self, ref: ModelRef, on_decision: OnDecision, progress: Progress) -> Resolved:
        """The file of `ref`. One of this host need not be there: whoever loads it says so.

        Raises:
            FetchError: when it is not here and cannot or may not be fetched.
            OSError: when the cache cannot be written.
        """
        if not ref.remote:
            return Resolved(_local(self.config.base, ref.location))
        found = [
            await self._part(ref, url, target, on_decision, progress)
            for url, target in self._parts(ref)
        ]
        # The digest of a split model is that of all parts together: nobody computed it yet.
        return found[0] if len(found) == 1 else Resolved(found[0].path)

    async def look(self, ref: ModelRef) -> Resolved | OutboundDecision:
        """The file of `ref` if all of it is here, else whether its first missing part may come.

        Raises:
            FetchError: when another file is in its place.
        """
        if not ref.remote:
            return Resolved(_local(self.config.base, ref.location))
        found = []
        for url, target in self._parts(ref):
            known = await self._known(ref, target)
            if known is None:
                return self._judged(url)
            found.append(known)
        return found[0] if len(found) == 1 else Resolved(found[0].path)

    def _judged(self, url: str) -> OutboundDecision:
        decide = self.config.decide
        return decide_outbound(self.config.policy, url) if decide is None else decide(url)

    def _parts(self, ref: ModelRef) -> list[tuple[str, Path]]:
        if ref.scheme is Scheme.HTTPS:
            name = PurePosixPath(urlsplit(ref.location).path).name
            if len(part_names(name)) > 1:
                raise FetchError(
                    f"{shown_ref(ref.text)}: is one part of a model; name it by hf: or a path"
                )
            return [(ref.location, self.config.cache / "sha256" / ref.digest[7:] / name)]
        # A folder for each name: "--" in its place may be part of a name.
        folder = self.config.cache / "hf" / ref.repo / ref.revision
        endpoint = self.config.hub_endpoint.rstrip("/")
        file = PurePosixPath(ref.location)
        return [
            (f"{endpoint}/{ref.repo}/resolve/{ref.revision}/{quote(str(part))}", folder / part)
            for part in (file.with_name(name) for name in part_names(file.name))
        ]

    async def _part(
        self, ref: ModelRef, url: str, target: Path, on_decision: OnDecision, progress: Progress
    ) -> Resolved:
        lock = self._locks.setdefault(target, asyncio.Lock())
        async with lock:
            if found := await self._known(ref, target):
                return found
            decision = self._judged(url)
            if not decision.allowed:
                on_decision(decision)
                raise FetchError(absent(ref.text, decision))
            async with self._alone(target):
                # Another process may have fetched it while this one waited.
                found = await self._known(ref, target)
                return found or await self._fetched(ref, url, target, on_decision, progress)

    async def _fetched(
        self, ref: ModelRef, url: str, target: Path, on_decision: OnDecision, progress: Progress
    ) -> Resolved:
        def admit(address: str) -> str:
            judged = self._judged(address)
            on_decision(judged)
            return judged.sentence

        token = self.config.hub_token if ref.scheme is Scheme.HF else ""
        single = ref.scheme is Scheme.HTTPS or len(part_names(target.name)) == 1
        request = FetchRequest(
            url=url, target=target, digest=ref.digest if single else "", token=token
        )
        fetched = await fetch(request, admit, self.config.limits, progress)
        await in_thread(partial(_note, target, fetched.digest))
        return Resolved(target, fetched.digest)

    @contextlib.asynccontextmanager
    async def _alone(self, target: Path) -> AsyncGenerator[None, None]:
        """Waits until no other process fetches `target`, such as the `fetch` command beside us."""
        descriptor = await in_thread(partial(_lock_file, target))
        try:
            while not _taken(descriptor):  # noqa: ASYNC110 - of another process nothing is heard
                await asyncio.sleep(self.config.limits.retry_wait_ms / 1000)
            yield
        finally:
            os.close(descriptor)

    @staticmethod
    async def _known(ref: ModelRef, target: Path) -> Resolved | None:
        """The file, if it was fetched and verified before."""
        known = await in_thread(partial(_verified, target))
        if not known:
            return None
        if ref.digest and len(part_names(target.name)) == 1 and ref.digest != known:
            raise FetchError(
                f"{target} has the digest {known}, not {ref.digest}; delete it to fetch it again"
            )
        return Resolved(target, known)


def absent(ref_text: str, decision: OutboundDecision) -> str:
    """The sentence about a model that is not here and may not be fetched."""
    return f"{shown_ref(ref_text)} is not on this host, and {decision.sentence}"


def _local(base: Path, location: str) -> Path:
    return base / Path(location).expanduser()


def _lock_file(target: Path) -> int:
    """A descriptor of `NAME.lock`, which stays: who removes one may remove another's."""
    target.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(target.with_name(f"{target.name}.lock"), flags, 0o600)


def _taken(descriptor: int) -> bool:
    """Takes the lock unless another process has it; the kernel frees it with the descriptor."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _beside(target: Path) -> Path:
    return target.with_name(f"{target.name}.verified")


def _note(target: Path, digest: str) -> None:
    facts = target.stat()
    noted = {"digest": digest, "size": facts.st_size, "mtime_ns": facts.st_mtime_ns}
    _beside(target).write_text(json.dumps(noted))


def _verified(target: Path) -> str:
    """The digest that was verified, empty when there is no such file or it changed since."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        noted, facts = json.loads(_beside(target).read_text()), target.stat()
        if (noted["size"], noted["mtime_ns"]) == (facts.st_size, facts.st_mtime_ns):
            return str(noted["digest"])
    return ""
