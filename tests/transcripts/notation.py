"""The notation of transcripts: one line per event, what follows from it indented below.

    # A comment.
    config queue_capacity=2 queue_policy=drop-lru
    0 register h p:slots=2,kv=8 q
        send verdicts to h: none
    10 enqueue a batch kv=3
        journal accept a seq=1 position=1
        ...

The number is the core's clock in milliseconds. `a#1` is attempt 1 of job a; `p#2` is the second
incarnation of pool p, `p` alone the first. `restart` stands for a kill: a new core reads every
record so far, and `config` lines before the first event set its bounds.
"""

from dataclasses import replace

from orchestrator_core.core.catalog_model import ModelCard, ModelState
from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.effects import Effect, ReplyAccepted, ReplyRefused, ReplyState
from orchestrator_core.core.events import (
    AcceptsFailed,
    AttemptEnded,
    AttemptError,
    AttemptErrorKind,
    AttemptRefused,
    AttemptStarted,
    CancelRequested,
    DrainRequested,
    EndConfirmed,
    EnqueueRequested,
    Event,
    HostLost,
    HostRegistered,
    ModelDeleted,
    ModelPut,
    ModelStateSet,
    OutputProgressed,
    PoolDrainRequested,
    Recovered,
    SessionDeleted,
    SnapshotsReported,
    Stalled,
    SubscribersChanged,
    Tick,
)
from orchestrator_core.core.machine import Core
from orchestrator_core.core.outcome import Finish, Usage
from orchestrator_core.core.records import (
    AcceptRecord,
    CatalogRecord,
    DispatchRecord,
    JobRecord,
    PoolDrainRecord,
    SessionForgotten,
    SessionRecord,
    TerminalRecord,
)
from orchestrator_core.core.snapshot import PoolSnapshot, PoolState
from tests.transcripts.effect_lines import line_of
from tests.transcripts.words import attempt_key, config_fields, held_attempt, job_spec, pairs


class Stage:
    """Plays the lines of one transcript against a core."""

    def __init__(self) -> None:
        self._config = CoreConfig()
        self._core: Core | None = None
        self._records: list[JobRecord] = []
        self._sessions: dict[str, SessionRecord] = {}
        self._drains: dict[str, PoolDrainRecord] = {}
        self._models: dict[str, CatalogRecord] = {}
        self._links: dict[str, list[int]] = {}
        self._versions = 0
        self._frames = 0

    @property
    def core(self) -> Core:
        """The core, made when the first event needs it."""
        if self._core is None:
            self._core = Core(self._config)
        return self._core

    def play(self, text: str) -> str:
        """Returns the transcript with the effects that its events really have."""
        lines: list[str] = []
        for line in text.splitlines():
            if line.startswith(" "):
                continue
            lines.append(line)
            words = line.split()
            if not words or words[0] == "#":
                continue
            if words[0] == "config":
                self._config = replace(self._config, **config_fields(words[1:]))
                continue
            lines += [f"    {shown}" for shown in self._event(int(words[0]), words[1], words[2:])]
        return "\n".join(lines) + "\n"

    def _event(self, now_ms: int, verb: str, words: list[str]) -> list[str]:
        if verb == "restart":
            self._core = None
            event: Event = self._journal()
        else:
            event = getattr(self, f"_{verb.replace('-', '_')}")(now_ms, *words)
        effects = self.core.step(event, now_ms)
        self._records += [e for e in effects if isinstance(e, JobRecord)]
        for effect in effects:
            if isinstance(effect, SessionRecord):
                self._sessions[effect.session_id] = effect
            elif isinstance(effect, SessionForgotten):
                del self._sessions[effect.session_id]
            elif isinstance(effect, PoolDrainRecord):
                self._drains.pop(effect.pool_id, None)
                if not effect.over:
                    self._drains[effect.pool_id] = effect
            elif isinstance(effect, CatalogRecord):
                self._models.pop(effect.entry.card.model_id, None)
                if not effect.over:
                    self._models[effect.entry.card.model_id] = effect
        return [self._show(effect) for effect in effects]

    def _journal(self) -> Recovered:
        return Recovered(
            tuple(r for r in self._records if isinstance(r, AcceptRecord)),
            tuple(r for r in self._records if isinstance(r, DispatchRecord)),
            tuple(r for r in self._records if isinstance(r, TerminalRecord)),
            tuple(self._sessions.values()),
            tuple(self._drains.values()),
            tuple(self._models.values()),
        )

    # --- events, one method per verb

    def _drain_pool(self, _: int, pool_id: str, timeout_ms: str) -> Event:
        return PoolDrainRequested(pool_id, True, int(timeout_ms), 0)

    def _undrain_pool(self, _: int, pool_id: str) -> Event:
        return PoolDrainRequested(pool_id, False, 0, 0)

    def _model(self, _: int, model_id: str, *words: str) -> Event:
        given = pairs(list(words))
        card = ModelCard(
            model_id,
            aliases=tuple(given.get("aliases", "").split("+")) if "aliases" in given else (),
            digest=given.get("digest", ""),
            engines=(given["engine"],) if "engine" in given else (),
            ctx_max=int(given["ctx"]) if "ctx" in given else None,
        )
        return ModelPut(card, int(given.get("revision", "0")), 0)

    def _retire(self, _: int, model_id: str, grace_ms: str, replaced_by: str = "") -> Event:
        return ModelStateSet(model_id, ModelState.RETIRED, 0, int(grace_ms), replaced_by, 0)

    def _activate(self, _: int, model_id: str) -> Event:
        return ModelStateSet(model_id, ModelState.ACTIVE, 0, 0, "", 0)

    def _delete_model(self, _: int, model_id: str, force: str = "") -> Event:
        return ModelDeleted(model_id, 0, force == "force", 0)

    def _enqueue(self, _: int, job_id: str, *words: str) -> Event:
        return EnqueueRequested(job_spec(job_id, list(words)), 0)

    def _cancel(self, _: int, job_id: str) -> Event:
        return CancelRequested(job_id, 0)

    def _subscribers(self, _: int, job_id: str, count: str) -> Event:
        return SubscribersChanged(job_id, int(count))

    def _register(self, _: int, host_id: str, *words: str) -> Event:
        links = self._links.setdefault(host_id, [])
        links.append(len(links) + 1)
        self._frames = 0
        pools = [word for word in words if not word.startswith("held=")]
        held = [w for word in words if word.startswith("held=") for w in word[5:].split(",")]
        return HostRegistered(
            host_id,
            links[-1],
            tuple(self._snapshot(host_id, pool) for pool in pools),
            tuple(held_attempt(word) for word in held),
        )

    def _lose(self, _: int, host_id: str, which: str = "latest") -> Event:
        links = self._links[host_id]
        return HostLost(host_id, links[0 if which == "first" else -1])

    def _report(self, now_ms: int, host_id: str, *pools: str) -> Event:
        snapshots = tuple(self._snapshot(host_id, pool) for pool in pools)
        return SnapshotsReported(host_id, snapshots, now_ms)

    def _started(self, _: int, attempt: str) -> Event:
        return AttemptStarted(*attempt_key(attempt))

    def _output(self, _: int, attempt: str) -> Event:
        return OutputProgressed(*attempt_key(attempt), pieces=1)

    def _ended(self, _: int, attempt: str, how: str, *words: str) -> Event:
        self._frames += 1
        key = attempt_key(attempt)
        text_bytes = int(pairs(list(words)).get("bytes", "0"))
        if how in {finish.value for finish in Finish}:
            usage = Usage(tokens_in=3, tokens_out=5)
            finish = Finish(how)
            return AttemptEnded(
                *key, self._frames, finish=finish, usage=usage, text_bytes=text_bytes
            )
        error = AttemptError(AttemptErrorKind(how), "it broke")
        return AttemptEnded(*key, self._frames, error=error, text_bytes=text_bytes)

    def _refused(self, _: int, attempt: str) -> Event:
        return AttemptRefused(*attempt_key(attempt), "no_slot")

    def _commit_failed(self, _: int, *job_ids: str) -> Event:
        self._records = [r for r in self._records if _record_job(r) not in job_ids]
        return AcceptsFailed(job_ids)

    def _forget(self, _: int, job_id: str) -> Event:
        return EndConfirmed(job_id)

    def _drain(self, _: int) -> Event:
        return DrainRequested()

    def _delete_session(self, _: int, session_id: str) -> Event:
        return SessionDeleted("", session_id, 0)

    def _stalled(self, _: int, pause_ms: str) -> Event:
        return Stalled(int(pause_ms))

    def _tick(self, _: int) -> Event:
        return Tick()

    def _snapshot(self, host_id: str, word: str) -> PoolSnapshot:
        name, _, rest = word.partition(":")
        pool_id, _, boot = name.partition("#")
        given = pairs(rest.split(",")) if rest else {}
        running = tuple(attempt_key(a) for a in given.get("running", "").split("+") if a)
        slots = int(given.get("slots", "1"))
        self._versions += 1
        kv = given.get("kv")
        return PoolSnapshot(
            pool_id=pool_id,
            replica_id=f"{pool_id}#{boot or 1}",
            host_id=host_id,
            version=self._versions,
            model_id=given.get("model", "m"),
            engine="sim",
            model_digest=given.get("digest", ""),
            engine_version=given.get("engine_version", "1"),
            state=PoolState(given.get("state", "ready")),
            state_reason=given.get("reason", ""),
            slots_total=slots,
            ctx_max=int(given.get("ctx", "2048")),
            slots_free=slots - len(running),
            kv_free_bytes=None if kv is None else int(kv),
            running=running,
            emitted_frame_seq=self._frames,
        )

    # --- effects, one line each

    def _show(self, effect: Effect) -> str:
        match effect:
            case AcceptRecord():
                over = f" displaces {effect.displaced}" if effect.displaced else ""
                job_id = effect.spec.job_id
                line = f"journal accept {job_id} seq={effect.seq} position={effect.position}{over}"
            case DispatchRecord():
                line = f"journal dispatch {effect.job_id}#{effect.attempt} to {effect.replica_id}"
            case TerminalRecord():
                line = f"journal end {effect.job_id} {effect.state.value}"
            case ReplyAccepted():
                how = "accepted again" if effect.receipt.duplicate else "accepted"
                line = f"reply {effect.receipt.job_id} {how} position={effect.receipt.position}"
            case ReplyRefused():
                refusal = effect.refusal
                label = f" by {refusal.policy_label}" if refusal.policy_label else ""
                retry = refusal.retry_after_ms
                later = "" if retry is None else f" retry_after_ms={retry}"
                line = f"reply refused {refusal.reason.value}{label}{later}"
            case ReplyState():
                line = f"reply {effect.job_id} is {self.core.jobs[effect.job_id].state.value}"
            case _:
                line = line_of(effect)
        return line


def _record_job(record: JobRecord) -> str:
    return record.spec.job_id if isinstance(record, AcceptRecord) else record.job_id
