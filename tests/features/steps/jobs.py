"""Giving jobs, cancelling them, and what clients are told about them."""

import asyncio
from dataclasses import replace

from llamaorch_client import (
    AsyncClient,
    ClientOptions,
    End,
    JobState,
    Priority,
    RetryOptions,
    Started,
)
from tests.features.gherkin import Rows, given, then, when
from tests.features.steps.wishes import SLOW_MS, job
from tests.features.world import World

TAKES_ITS_TIME = [["pause between words", str(SLOW_MS)]]


# --- giving jobs


@given('the job "{name}" is running and takes its time')
@when('the job "{name}" is running and takes its time')
async def runs_slowly(world: World, name: str, datatable: Rows = ()) -> None:  # type: ignore[assignment]
    """It has said its first word and waits to be let go."""
    asked = await world.ask(name, job(TAKES_ITS_TIME, datatable))
    reader = asked.follow()
    await reader.until(lambda: bool(reader.text))


@given('the job "{name}" is waiting', 'the client sends the job "{name}"')
@when('the client sends the job "{name}"')
async def sends(world: World, name: str) -> None:
    """The client asks once, and keeps what it is told."""
    await world.ask(name, job())


@given('the batch job "{name}" is waiting')
@when('the client sends the batch job "{name}"')
async def sends_batch(world: World, name: str) -> None:
    """A job that may wait longer."""
    await world.ask(name, job(priority=Priority.BATCH))


@given('the client sends the job "{name}" as request "{request_id}"')
async def sends_as(world: World, name: str, request_id: str) -> None:
    """With a key of the client, by which a repetition is known."""
    await world.ask(name, job([["request id", request_id]]))


@then('the client that sends "{name}" again is told that it is the same job')
async def told_same(world: World, name: str) -> None:
    """The first answer, again."""
    first = world.jobs[name].job_id
    asked = await world.ask(name, world.jobs[name].request)
    assert asked.answers[-1].duplicate
    assert asked.answers[-1].job_id == first


@given('the client sends the job "{name}" with')
@when('the client sends the job "{name}" with')
async def sends_with(world: World, name: str, datatable: Rows) -> None:
    """A job with wishes, one per row."""
    await world.ask(name, job(datatable))


@when('{who:w} sends the job "{name}"')
async def somebody_sends(world: World, who: str, name: str) -> None:
    """A client with a name, and a token."""
    await world.ask(name, job(), who)


@given('the client sends the slow job "{name}" with')
@when('the client sends the slow job "{name}" with')
async def sends_slow(world: World, name: str, datatable: Rows) -> None:
    """A job that says its first word and then waits to be let go."""
    await world.ask(name, job(TAKES_ITS_TIME, datatable))


@when('the client sends "{name}" again')
async def sends_again(world: World, name: str) -> None:
    """The very same request."""
    await world.ask(name, world.jobs[name].request)


@when('the client cancels "{name}"')
async def cancels(world: World, name: str) -> None:
    """The answer is the state of the job."""
    asked = world.jobs[name]
    await world.attempt(asked.client.cancel(asked.job_id))


@when('the client cancels a job "{job_id}" that nobody gave')
async def cancels_unknown(world: World, job_id: str) -> None:
    """There is no such job."""
    await world.attempt((await world.client()).cancel(job_id))


@when("the running jobs are let go")
async def let_go(world: World) -> None:
    """Engines say all that they have to say."""
    await world.service.pace.let_go()


# --- what the client is told


@then('"{name}" is accepted at position {position:d}')
def accepted_at(world: World, name: str, position: int) -> None:
    """The receipt tells the place in the queue."""
    receipt = world.jobs[name].receipt
    assert receipt is not None, world.jobs[name].refusal
    assert receipt.queue_position == position


@then('"{name}" is accepted')
def accepted(world: World, name: str) -> None:
    """It will reach exactly one end from now on."""
    assert world.jobs[name].receipt is not None, world.jobs[name].refusal


@then('"{name}" should start at once')
def starts_at_once(world: World, name: str) -> None:
    """Nothing stands before it."""
    receipt = world.jobs[name].receipt
    assert receipt is not None
    assert receipt.predicted_start_ms == 0


@then('"{name}" should start later than "{other}"')
def starts_later(world: World, name: str, other: str) -> None:
    """The predictions keep the order of the queue."""
    late, early = world.jobs[name].receipt, world.jobs[other].receipt
    assert late is not None
    assert early is not None
    assert late.predicted_start_ms is not None
    assert early.predicted_start_ms is not None
    assert late.predicted_start_ms > early.predicted_start_ms


@then('"{name}" should end after it starts')
def ends_after_start(world: World, name: str) -> None:
    """Both are told in the receipt."""
    receipt = world.jobs[name].receipt
    assert receipt is not None
    assert receipt.predicted_start_ms is not None
    assert receipt.predicted_end_ms is not None
    assert receipt.predicted_end_ms > receipt.predicted_start_ms


@then('"{name}" is told its chance to be in time')
def told_chance(world: World, name: str) -> None:
    """A number between 0 and 1, for jobs with a deadline."""
    receipt = world.jobs[name].receipt
    assert receipt is not None
    assert receipt.on_time_probability is not None
    assert 0 <= receipt.on_time_probability <= 1


@then('both answers to "{name}" name the same job')
def same_job(world: World, name: str) -> None:
    """And the second says that it is a repetition."""
    first, second = world.jobs[name].answers
    assert first.job_id == second.job_id
    assert (first.duplicate, second.duplicate) == (False, True)


@then('"{name}" and "{other}" are different jobs')
def different_jobs(world: World, name: str, other: str) -> None:
    """Each has an id of its own."""
    assert world.jobs[name].job_id != world.jobs[other].job_id


@then("the service knows {count:d} job", "the service knows {count:d} jobs")
async def knows(world: World, count: int) -> None:
    """As its list of jobs says."""
    client = await world.client()
    assert len([job async for job in client.list_jobs()]) == count


@then('the answer says that "{name}" is {state}')
def answer_state(world: World, name: str, state: str) -> None:
    """The answer to a cancel is the job's true state."""
    assert world.refusal is None, world.refusal
    assert (world.answer.job_id, world.answer.state) == (world.jobs[name].job_id, state)


@then('"{name}" is {state} in the list of jobs')
async def listed_as(world: World, name: str, state: str) -> None:
    """What anybody who looks is told."""
    assert (await world.look_up(name)).state is JobState(state)


@then('"{name}" was never queued')
async def never_queued(world: World, name: str) -> None:
    """A refused job leaves no trace."""
    assert world.jobs[name].receipt is None
    client = await world.client()
    states = [job.state async for job in client.list_jobs()]
    accepted = sum(asked.receipt is not None for asked in world.jobs.values())
    assert len(states) == accepted


@then("the jobs start in the order {names}")
async def start_in_order(world: World, names: str) -> None:
    """As the service recorded their starts, after all have finished."""
    wanted = [name.strip().strip('"') for name in names.split(",")]
    for name in wanted:
        assert await world.jobs[name].follow().ended() == "FINISHED"
    seen = [(await world.look_up(name)).started_at for name in wanted]
    assert None not in seen
    assert seen == sorted(seen), seen  # type: ignore[type-var]


@then('"{name}" was given a seed, and was told which')
async def given_a_seed(world: World, name: str) -> None:
    """The receipt and the start name the same."""
    asked = world.jobs[name]
    reader = asked.follow()
    await reader.ended()
    (started,) = [event for event in reader.events if isinstance(event, Started)]
    assert asked.receipt is not None
    assert asked.receipt.seed == started.seed != 0


# --- stories of their own


@when('the client sends the job "{name}" without a seed')
async def sends_without_seed(world: World, name: str) -> None:
    """The service chooses one."""
    request = job([["temperature", "1"]])
    await world.ask(name, replace(request, sampling=replace(request.sampling, seed=None)))


@when('the client asks for "{name}" again with the seed that it was told')
async def asks_again_with_seed(world: World, name: str) -> None:
    """Another job."""
    asked = world.jobs[name]
    assert asked.receipt is not None
    seeded = replace(asked.request.sampling, seed=asked.receipt.seed)
    await world.ask("again", replace(asked.request, sampling=seeded))
    world.notes["the same"] = (name, "again")


@then("both stories are the same to the last byte")
async def same_stories(world: World) -> None:
    """Two jobs, one text."""
    texts = []
    for name in world.notes["the same"]:
        reader = world.jobs[name].follow()
        assert await reader.ended() == "FINISHED"
        texts.append(reader.text)
    assert texts[0] == texts[1] != ""


@given('the {kind:w} job "{name}" waits')
@when('a {kind:w} job "{name}" arrives')
async def of_a_class(world: World, kind: str, name: str) -> None:
    """An interactive or a batch job."""
    await world.ask(name, job(priority=Priority(kind.upper())))


@then('"{name}" is refused')
def refused(world: World, name: str) -> None:
    """And the rule is named as it is in the configuration."""
    error = world.jobs[name].refusal
    assert error is not None
    policy = world.service.tables["queue"]["policy"]
    assert (error.reason, error.metadata["policy_label"]) == ("ADMISSION_REJECT", policy)
    assert error.retry_after_ms is not None


@then("{victim} gives way")
async def gives_way(world: World, victim: str) -> None:
    """Dropped from the queue, or nobody."""
    client = await world.client()
    dropped = {each.job_id async for each in client.list_jobs() if each.state is JobState.DROPPED}
    names = {name for name, asked in world.jobs.items() if asked.receipt is not None}
    assert {f'"{name}"' for name in names if world.jobs[name].job_id in dropped} == (
        set() if victim == "nobody" else {victim}
    )


@then("all the others finish")
async def others_finish(world: World) -> None:
    """Whoever was accepted and not dropped."""
    outcomes = [
        await asked.follow().ended() for asked in world.jobs.values() if asked.receipt is not None
    ]
    assert set(outcomes) <= {"FINISHED", "QUEUE_FULL_DROP_LRU"}
    assert outcomes.count("FINISHED") == 4


@when('a patient client sends the job "{name}"')
async def patient(world: World, name: str) -> None:
    """Its library comes back when the service says; meanwhile others go on."""
    options = ClientOptions(retry=RetryOptions(attempts_max=100, jitter_max_ms=1))
    client = await AsyncClient(world.service.address, options=options).__aenter__()
    world.at_end(client.close)
    sent = asyncio.create_task(client.enqueue(job()))
    world.notes["patient"] = (client, sent)


@then("the patient client's job finishes")
async def patient_finishes(world: World) -> None:
    """It got in."""
    client, sent = world.notes["patient"]
    receipt = await sent
    assert (await client.stream(receipt.job_id).result()).end.state is JobState.FINISHED


@when("the client runs {count:d} jobs on one stream")
async def on_one_stream(world: World, count: int) -> None:
    """An exchange."""
    client = await world.client()
    async with client.exchange() as exchange:
        jobs = [
            await exchange.run(replace(job(), prompt=f"Story {number}")) for number in range(count)
        ]
        world.answer = [await each.result() for each in jobs]


@then("all of them finish, each with its own words")
def each_its_own(world: World) -> None:
    """No output went astray."""
    assert {result.end.state for result in world.answer} == {JobState.FINISHED}
    assert len({result.text for result in world.answer}) == len(world.answer)


@then('"{name}" is cancelled by itself')
async def cancelled_by_itself(world: World, name: str) -> None:
    """Nobody asked for it. An observer's look does not keep it alive."""
    asked = world.jobs[name]
    events = [event async for event in asked.client.stream(asked.job_id, observer=True)]
    assert isinstance(events[-1], End)
    assert events[-1].state is JobState.CANCELLED
