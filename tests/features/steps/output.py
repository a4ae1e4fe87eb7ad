"""Reading what a job says: events, several readers, breaks."""

from llamaorch_client import (
    End,
    Event,
    Metrics,
    Queued,
    Resumed,
    ResumePoint,
    Started,
    Tokens,
)
from tests.features.gherkin import at_any_point, given, then, when
from tests.features.world import Reader, World

NAMES = {Queued: "queued", Started: "started", Tokens: "words", Resumed: "resumed", End: "end"}


@given('"{who}" reads "{name}"')
@when('"{who}" reads "{name}"')
async def reads(world: World, who: str, name: str) -> None:
    """A reader who begins at the first word."""
    asked = world.jobs[name]
    world.readers[who] = Reader(asked.client, asked.job_id)


@when('"{who}" has read {count:d} words', '"{who}" has read {count:d} word')
async def has_read(world: World, who: str, count: int) -> None:
    """Waits until so many have arrived."""
    reader = world.readers[who]
    await reader.until(lambda: len(reader.text.split()) >= count)


@when("the engine says {count:d} more words", "the engine says {count:d} more word")
async def says_more(world: World, count: int) -> None:
    """And then waits again."""
    await world.service.pace.let_go(count)


@when('"{who}" loses the connection')
async def loses_connection(world: World, who: str) -> None:
    """The reader is gone, and what was read is kept."""
    reader = world.readers[who]
    world.notes[who] = ResumePoint(reader.attempt, reader.text)
    await reader.leave()


@when('"{who}" comes back to "{name}" with what was read')
async def comes_back(world: World, who: str, name: str) -> None:
    """The client shows the digest of the text that it has."""
    asked = world.jobs[name]
    world.readers[who] = Reader(asked.client, asked.job_id, world.notes[who])


@when('"{who}" comes back to "{name}" with a text that was never sent')
async def comes_back_wrong(world: World, who: str, name: str) -> None:
    """As long as the true one, and other words."""
    asked, point = world.jobs[name], world.notes[who]
    wrong = ResumePoint(point.attempt, "x" * len(point.text))
    world.readers[who] = Reader(asked.client, asked.job_id, wrong)
    await world.readers[who].until(lambda: world.readers[who].refusal is not None)
    world.refusal = world.readers[who].refusal


@at_any_point('"{name}" finishes')
async def finishes(world: World, name: str) -> None:
    """Regularly, and nothing follows."""
    assert await world.jobs[name].follow().ended() == "FINISHED"


@then('"{name}" ends with {reason}')
async def ends_with(world: World, name: str, reason: str) -> None:
    """With this outcome, which nothing follows."""
    reader = world.jobs[name].follow()
    assert await reader.ended() == reason
    assert [_kind(event) for event in reader.events].count("outcome") == 1


@at_any_point('"{name}" has said {count:d} words', '"{name}" has said {count:d} word')
def has_said(world: World, name: str, count: int) -> None:
    """In all."""
    assert len(world.jobs[name].follow().text.split()) == count


@then('the events of "{name}" are {kinds}')
async def events_are(world: World, name: str, kinds: str) -> None:
    """In this order; equal neighbours are told once, and those that come by the clock not."""
    reader = world.jobs[name].follow()
    await reader.ended()
    seen: list[str] = []
    for event in reader.events:
        kind = _kind(event)
        if not isinstance(event, Queued | Metrics) and kind not in seen[-1:]:
            seen.append(kind)
    assert seen == [kind.strip() for kind in kinds.split(",")]


@at_any_point('"{name}" is told that it waits at position {position:d}')
async def told_position(world: World, name: str, position: int) -> None:
    """While it waits."""
    reader = world.jobs[name].follow()
    await reader.until(lambda: any(isinstance(event, Queued) for event in reader.events))
    first = next(event for event in reader.events if isinstance(event, Queued))
    assert first.queue_position == position
    assert first.predicted_start_ms is not None


@then('the start of "{name}" tells the position {position:d} and when it should have started')
async def start_tells(world: World, name: str, position: int) -> None:
    """What the client was told at admission."""
    reader = world.jobs[name].follow()
    await reader.until(lambda: any(isinstance(event, Started) for event in reader.events))
    started = next(event for event in reader.events if isinstance(event, Started))
    receipt = world.jobs[name].receipt
    assert receipt is not None
    assert started.queue_position == receipt.queue_position == position
    assert started.predicted_start_ms == receipt.predicted_start_ms


@then('with its first words "{name}" is told how many jobs wait and its chance to be in time')
async def told_metrics(world: World, name: str) -> None:
    """And that keys and values of a session never move between pools."""
    reader = world.jobs[name].follow()
    await reader.until(lambda: any(isinstance(event, Metrics) for event in reader.events))
    told = next(event for event in reader.events if isinstance(event, Metrics))
    assert told.queue_depth == 0
    assert told.on_time_probability is not None
    assert not told.kv_migrated


@then('the end of "{name}" tells tokens and times')
async def end_tells(world: World, name: str) -> None:
    """What it took."""
    reader = world.jobs[name].follow()
    await reader.ended()
    end = reader.events[-1]
    assert isinstance(end, End)
    assert end.usage.tokens_out == len(reader.text.split())
    assert end.text_bytes == len(reader.text.encode())
    for figure in (end.usage.queue_time_ms, end.usage.first_token_ms, end.usage.decode_time_ms):
        assert figure is not None
        assert figure >= 0


@then('"{first}" and "{second}" have read the same')
async def read_the_same(world: World, first: str, second: str) -> None:
    """To the last byte, up to the end."""
    one, two = world.readers[first], world.readers[second]
    assert await one.ended() == await two.ended() == "FINISHED"
    assert one.text == two.text != ""


@then('"{who}" has all of "{name}", and no word twice')
async def has_all(world: World, who: str, name: str) -> None:
    """What was read before the break and after it is the whole text."""
    reader, before = world.readers[who], world.notes[who].text
    assert await reader.ended() == "FINISHED"
    whole = world.jobs[name].follow()
    await whole.ended()
    assert before != ""
    assert before + reader.text == whole.text


def _kind(event: Event) -> str:
    if isinstance(event, Metrics):
        return "metrics"
    return NAMES.get(type(event), "outcome") if not isinstance(event, End) else "outcome"


@then('"{who}" reads on to the end: {count:d} words, none lost and none twice')
async def reads_on(world: World, who: str, count: int) -> None:
    """Over the break, without a word of the reader; the client checks every digest."""
    reader = world.readers[who]
    assert await reader.ended() == "FINISHED"
    assert len(reader.text.split()) == count
    end = reader.events[-1]
    assert isinstance(end, End)
    assert end.text_bytes == len(reader.text.encode())
