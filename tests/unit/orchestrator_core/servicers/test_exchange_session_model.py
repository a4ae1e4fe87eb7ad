"""What an Exchange stream sends, against a plain list of what each job told. LO-306, LO-302."""

from collections import defaultdict
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from llamaorch.orchestrator.v1 import events_pb2
from orchestrator_core.relay.items import Frame
from orchestrator_core.servicers.subscription import Terms
from tests.unit.orchestrator_core.relay.logs import digest, frames
from tests.unit.orchestrator_core.servicers.session_world import JOBS, World, ack, event, text_of

Told = tuple[str, int, int, bytes]
"""Kind, attempt, text before it in bytes, its text."""


def told_of(raw: events_pb2.JobEvent, offset: int) -> Told:
    """An event as the model writes it."""
    kind = raw.WhichOneof("event") or ""
    attempt = raw.started.attempt or raw.resumed.attempt
    return kind, attempt, offset, text_of(raw)


@dataclass
class Script:
    """One job: what its host will send, how much of it was sent, and the whole truth about it."""

    job_id: str
    steps: list[Frame | bytes]
    truth: list[Told]
    done: int = 0

    @classmethod
    def of(cls, job_id: str, batches: list[list[str]], breaks_at: int) -> "Script":
        """Output in one attempt, or in two with a replay from one batch on."""
        steps: list[Frame | bytes] = [event(started=events_pb2.Started(attempt=1))]
        truth: list[Told] = [("started", 1, 0, b"")]
        offset = 0
        for number, frame in enumerate(frames(batches)):
            attempt = 1 if number < breaks_at else 2
            if number == breaks_at and number:
                steps.append(event(resumed=events_pb2.Resumed(attempt=2)))
                truth.append(("resumed", 2, offset, b""))
            steps.append(replace(frame, attempt=attempt if number else 1))
            text = "".join(batches[number]).encode()
            truth.append(("tokens", 0, offset, text))
            offset += len(text)
        truth.append(("end", 0, offset, b""))
        return cls(job_id, steps, truth)


@dataclass
class Model:
    """What a follower may expect, said the plain way."""

    script: Script
    since: int
    attempt: int
    limit: float
    observer: bool
    left: bool = False
    acked: int = 0
    seen: int = 0
    offset: int = field(init=False)

    def __post_init__(self) -> None:
        self.offset = self.acked = self.since

    def expected(self) -> list[Told]:
        """Everything of the job that lies behind where it began."""
        return [
            told
            for told in self.script.truth
            if told[2] + len(told[3]) > self.since
            or told[0] == "end"
            or (not told[3] and told[2] == self.since and told[1] > self.attempt)
        ]


class Play:
    """Random orders of what hosts and clients do, checked at each message."""

    def __init__(self, data: st.DataObject, scripts: list[Script]) -> None:
        self.data = data
        self.world = World()
        self.scripts = scripts
        self.models: dict[int, Model] = {}
        self.dropped: dict[str, int] = defaultdict(int)

    def pick(self, low: int, high: int) -> int:
        """A number that hypothesis chooses."""
        return self.data.draw(st.integers(low, high))

    def host(self, script: Script) -> None:
        """A host sends the next thing of a job."""
        relay = self.world.runtime.relay
        if script.done < len(script.steps):
            step = script.steps[script.done]
            if isinstance(step, Frame):
                relay.log(script.job_id).begin_attempt(step.attempt)
                assert relay.append_text(script.job_id, step)
            else:
                attempt = 1 if script.done == 0 else 2
                relay.log(script.job_id).begin_attempt(attempt)
                relay.append_event(script.job_id, step)
        elif script.done == len(script.steps):
            self.world.finish(script.job_id)
        script.done += 1

    def subscribe(self, script: Script) -> None:
        """A client follows from the beginning or from a batch that it has."""
        log = self.world.runtime.relay.log(script.job_id)
        here = [told for told in script.truth if told[0] == "tokens"]
        since, attempt, resume = 0, -1, None
        if here and self.pick(0, 1):
            told = here[self.pick(0, len(here) - 1)]
            since, text = told[2] + len(told[3]), b"".join(t[3] for t in here)
            if since > log.next_offset:
                return
            attempt = self.attempt_of(script, told)
            resume = events_pb2.ResumePoint(
                attempt=attempt, text_offset=since, prefix_digest=digest(text[:since])
            )
        credit = self.pick(0, 20) if self.pick(0, 1) else None
        observer = bool(self.pick(0, 1))
        terms = Terms(resume, credit, observer)
        if since < log.oldest_offset:
            # Its host has to send it again, which is played elsewhere.
            assert log.oldest_offset <= self.dropped[script.job_id]
            return
        handle = self.world.session.subscribe(script.job_id, terms)
        limit = float("inf") if credit is None else since + credit
        self.models[handle] = Model(script, since, attempt, limit, observer)

    @staticmethod
    def attempt_of(script: Script, told: Told) -> int:
        """Attempt of a batch."""
        before = script.truth[: script.truth.index(told)]
        return 2 if any(kind == "resumed" for kind, *_ in before) else 1

    def client(self) -> None:
        """A client acknowledges, gives credit or leaves."""
        open_now = [h for h, m in self.models.items() if not m.left and not self.over(h)]
        if not open_now:
            return
        handle = open_now[self.pick(0, len(open_now) - 1)]
        model = self.models[handle]
        if self.pick(0, 5) == 0:
            self.world.session.unsubscribe(handle)
            model.left = True
            return
        offset, credit = self.pick(0, model.offset), self.pick(0, 9)
        self.world.session.acknowledge(
            ack(handles=[handle], text_offsets=[offset], credit_bytes=[credit])
        )
        model.limit += credit
        moved = offset > model.acked
        model.acked = max(model.acked, offset)
        if moved and not model.observer:
            peers = [self.models[h] for h in open_now if self.models[h].script is model.script]
            least = min(peer.acked for peer in peers)
            job_id = model.script.job_id
            self.dropped[job_id] = max(self.dropped[job_id], least)

    def over(self, handle: int) -> bool:
        """The job's outcome was received."""
        return any(told.WhichOneof("event") == "end" for told in self.world.got[handle])

    def read(self) -> bool:
        """The client reads one message; each job's part must be what comes next."""
        message = self.world.pump()
        for handle, model in self.models.items():
            for raw in self.world.got[handle][model.seen :]:
                model.seen += 1
                kind = raw.WhichOneof("event")
                if kind == "metrics":
                    continue
                assert not model.left, "nothing comes after leaving"
                if kind == "tokens":
                    assert model.offset < model.limit, "output without credit"
                    model.offset = raw.tokens.text_offset + len(text_of(raw))
        return message is not None

    def finish(self) -> None:
        """Everything comes to its end, and everybody has got exactly what was theirs."""
        for script in self.scripts:
            while script.done <= len(script.steps):
                self.host(script)
        credit = self.pick(0, 1)
        for handle, model in self.models.items():
            model.limit = float("inf")
            if credit and not model.left and not self.over(handle):
                self.world.session.acknowledge(ack(handles=[handle], credit_bytes=[1_000]))
        if not credit:
            self.world.session.lift_credit()
        while self.read() or self.world.session.has_more:
            pass
        for handle, model in self.models.items():
            assert handle not in self.world.broken
            got = self.got(handle)
            assert got == model.expected()[: len(got)] if model.left else model.expected()
            assert model.left or got[-1][0] == "end"

    def got(self, handle: int) -> list[Told]:
        """What a handle brought, as the model writes it."""
        model, told = self.models[handle], []
        offset = model.since
        for raw in self.world.got[handle]:
            if raw.WhichOneof("event") == "metrics":
                continue
            told.append(told_of(raw, offset))
            offset += len(text_of(raw))
        return told


texts = st.lists(st.text("abcé", min_size=1, max_size=6), min_size=1, max_size=2)


@settings(deadline=None)
@given(
    st.data(),
    st.lists(
        st.tuples(st.lists(texts, max_size=5), st.integers(1, 5)), min_size=JOBS, max_size=JOBS
    ),
)
def test_any_order_of_frames_credit_and_acks_gives_each_follower_its_events(
    data: st.DataObject, jobs: list[tuple[list[list[str]], int]]
) -> None:
    """In order, once, within credit, and nothing is dropped that somebody still needs."""
    scripts = [Script.of(f"job-{n}", *job) for n, job in enumerate(jobs)]
    play = Play(data, scripts)

    for _ in range(play.pick(0, 40)):
        match play.pick(0, 5):
            case 0 | 1:
                play.host(scripts[play.pick(0, JOBS - 1)])
            case 2:
                play.subscribe(scripts[play.pick(0, JOBS - 1)])
            case 3:
                play.client()
            case 4:
                play.world.runtime.relay.log(f"job-{play.pick(0, 2)}").set_metrics(
                    event(metrics=events_pb2.Metrics(queue_depth=1))
                )
            case _:
                play.read()

    play.finish()
