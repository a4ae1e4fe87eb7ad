"""What every engine adapter does, whatever runs behind it. One suite, run against each adapter."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from pool_managerd.engines.port import (
    ChatMessage,
    Failed,
    Failure,
    Finish,
    Finished,
    GenerationRequest,
    Piece,
    PreloadError,
)
from pool_managerd.models.tiny_gguf import SLOW, write_tiny_model
from tests.conformance.engine_cases import CASES, Running, case_params, failing_to_start, open_case
from tests.conformance.generations import collect, end_of, ids_of, request, text_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

Opener = Callable[[int], Awaitable[Running]]
CONFIRM_MS = 5_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes some ten seconds to fill its context."""
    path = tmp_path_factory.mktemp("models") / "slow.gguf"
    write_tiny_model(path, SLOW)
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=case_params())
async def shared(request: pytest.FixtureRequest, model: Path) -> AsyncIterator[Running]:
    """A running engine with two slots, for tests that leave it as it was."""
    running = await open_case(request.param, model)
    yield running
    await running.close()


@pytest_asyncio.fixture(loop_scope="module", params=case_params())
async def opener(request: pytest.FixtureRequest, model: Path) -> AsyncIterator[Opener]:
    """Starts engines of their own for a test, with so many slots each."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(slots: int) -> Running:
            running = await open_case(request.param, model, slots=slots)
            stack.push_async_callback(running.close)
            return running

        yield start


def endless(running: Running, request_id: str = "endless") -> GenerationRequest:
    """A generation that runs for at least ten seconds if nobody stops it."""
    return request(request_id, max_tokens=2_000, engine_options=running.endless)


async def test_a_generation_is_pieces_and_then_exactly_one_end(shared: Running) -> None:
    """Every event but the last is a piece, and the last is the end that the limit asks for."""
    events = await collect(shared.engine, request())

    end = end_of(events)
    assert isinstance(end, Finished)
    assert end.finish is Finish.LENGTH
    assert end.usage.tokens_out == 12
    assert text_of(events)


async def test_token_ids_add_up_to_the_tokens_generated(shared: Running) -> None:
    """The ids of all pieces are as many as the engine counts; where it has none, none are given."""
    events = await collect(shared.engine, request())

    assert len(ids_of(events)) == (end_of(events).usage.tokens_out if shared.ids else 0)


async def test_pieces_hold_whole_characters(shared: Running) -> None:
    """Multi-byte characters arrive undivided, though their bytes are tokens of their own."""
    wanted = GenerationRequest("r", "say it", shared.multi_byte)

    events = await collect(shared.engine, wanted)

    assert isinstance(end_of(events), Finished)
    pieces = [event.text for event in events if isinstance(event, Piece)]
    assert any(len(piece.encode()) > len(piece) for piece in pieces)
    assert all(piece and "\ufffd" not in piece for piece in pieces)
    assert all(piece.encode().decode() == piece for piece in pieces)


async def test_a_conversation_is_accepted(shared: Running) -> None:
    """A prompt may be messages, to which the engine applies its own template."""
    messages = (ChatMessage("system", "be brief"), ChatMessage("user", "hello"))

    events = await collect(shared.engine, request(prompt=messages))

    assert isinstance(end_of(events), Finished)
    assert text_of(events)


async def test_a_stop_sequence_ends_the_output_before_it(shared: Running) -> None:
    """The text stops where the sequence would have begun."""
    whole = text_of(await collect(shared.engine, request(temperature=0.0)))
    stop = whole.split()[3]

    events = await collect(shared.engine, request(temperature=0.0, stop=(stop,)))

    end = end_of(events)
    assert isinstance(end, Finished)
    assert end.finish is Finish.STOP
    assert whole.partition(stop)[0].startswith(text_of(events))
    assert stop not in text_of(events)


async def test_log_probabilities_come_with_their_tokens_or_are_refused(shared: Running) -> None:
    """As many of the likeliest as were asked for, beside each token; the text stays the same."""
    plain = await collect(shared.engine, request(seed=3, temperature=1.0))
    events = await collect(shared.engine, request(seed=3, temperature=1.0, logprobs=3))
    alone = await collect(shared.engine, request(seed=3, temperature=1.0, logprobs=0))

    if "logprobs" not in shared.info.extensions:
        end = end_of(events)
        assert isinstance(end, Failed)
        assert (end.failure, "logprobs" in end.message) == (Failure.INVALID_REQUEST, True)
        return
    assert text_of(events) == text_of(alone) == text_of(plain)
    for event in events:
        if isinstance(event, Piece):
            assert b"".join(token.token for token in event.logprobs) == event.text.encode()
    told = [token for event in events if isinstance(event, Piece) for token in event.logprobs]
    assert told
    for token in told:
        numbers = [number for _, number in token.top]
        assert len(numbers) == 3
        assert numbers == sorted(numbers, reverse=True)
        assert token.logprob <= numbers[0] <= 0
    bare = [token for event in alone if isinstance(event, Piece) for token in event.logprobs]
    assert [token.logprob for token in bare] == pytest.approx([token.logprob for token in told])
    assert not any(token.top for token in bare)


async def test_seeds_change_the_output(shared: Running) -> None:
    """Two seeds give two texts."""
    texts = [
        text_of(await collect(shared.engine, request(seed=seed, temperature=1.0)))
        for seed in (1, 2)
    ]

    assert texts[0] != texts[1]


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**63 - 1])
async def test_every_seed_is_a_seed(shared: Running, seed: int) -> None:
    """No seed means "random", not even where the engine's own seeds are narrower."""
    wanted = request(seed=seed, temperature=1.0)
    texts = [text_of(await collect(shared.engine, wanted)) for _ in range(2)]

    assert texts[0] == texts[1]


async def test_a_greedy_continuation_goes_on_as_the_original(shared: Running) -> None:
    """Prompt and k token ids are continued by exactly the rest of the original."""
    if not shared.ids:
        pytest.skip("this engine reports no token ids")
    original = await collect(shared.engine, request(temperature=0.0))
    ids = ids_of(original)

    for k in (1, 5, 11):
        wanted = request(temperature=0.0, max_tokens=12 - k, continue_token_ids=ids[:k])
        continued = await collect(shared.engine, wanted)
        assert ids_of(continued) == ids[k:]
        assert text_of(original).endswith(text_of(continued))


async def test_text_is_continued_without_token_ids(shared: Running) -> None:
    """The text before is what the engine goes on from; of a conversation it begins the answer."""
    original = text_of(await collect(shared.engine, request(temperature=0.0)))
    chat = (ChatMessage("user", "hello"),)

    rest = await collect(
        shared.engine, request(temperature=0.0, max_tokens=6, continue_text=original)
    )
    whole = await collect(shared.engine, request(temperature=0.0, max_tokens=18))
    answer = await collect(
        shared.engine, request(prompt=chat, temperature=0.0, max_tokens=6, continue_text=" and")
    )

    assert isinstance(end_of(rest), Finished)
    assert text_of(whole) == original + text_of(rest)
    if not shared.continues_chat:
        refusal = end_of(answer)
        assert isinstance(refusal, Failed)
        assert refusal.failure is Failure.INVALID_REQUEST
        assert "continue_text" in refusal.message
        return
    assert text_of(answer) != text_of(await collect(shared.engine, request(prompt=chat)))


async def test_a_cancelled_generation_gives_its_slot_back(opener: Opener) -> None:
    """On an engine with one slot, the next generation runs at once after a confirmed cancel."""
    running = await opener(1)
    generation = running.engine.generate(endless(running))
    async for _ in generation:
        break

    await generation.aclose()
    await running.engine.confirm_idle("endless", CONFIRM_MS)

    assert isinstance(end_of(await collect(running.engine, request())), Finished)


async def test_a_cancel_before_the_first_piece_gives_the_slot_back(opener: Opener) -> None:
    """Also a generation whose request is still on its way is cancelled for certain."""
    running = await opener(1)

    for number in range(3):
        generation = running.engine.generate(endless(running, f"early-{number}"))
        first = asyncio.ensure_future(anext(generation))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await generation.aclose()
        await running.engine.confirm_idle(f"early-{number}", CONFIRM_MS)

    assert isinstance(end_of(await collect(running.engine, request())), Finished)


async def test_confirming_an_unknown_generation_returns_at_once(shared: Running) -> None:
    """A generation that ended by itself, or never was, holds no slot."""
    await collect(shared.engine, request("done"))

    await shared.engine.confirm_idle("done", 1)
    await shared.engine.confirm_idle("never", 1)


async def test_all_slots_work_at_once_and_no_more_is_taken(opener: Opener) -> None:
    """As many generations run as there are slots; one more is refused instead of queued."""
    running = await opener(2)
    if running.serial:
        pytest.skip("this engine computes one generation after the other")
    assert running.info.slots_total == 2
    async with contextlib.AsyncExitStack() as stack:
        for number in range(2):
            generation = running.engine.generate(endless(running, f"busy-{number}"))
            await stack.enter_async_context(contextlib.aclosing(generation))
            assert isinstance(await anext(generation), Piece)

        end = end_of(await collect(running.engine, request("third")))

        assert isinstance(end, Failed)
        assert end.failure is Failure.ENGINE_ERROR
        assert "slots" in end.message


async def test_too_long_a_prompt_is_a_typed_failure(shared: Running) -> None:
    """A prompt beyond the context is CONTEXT_OVERFLOW, and the message does not quote it."""
    if not shared.checks_context:
        pytest.skip("this engine takes prompts beyond its context")

    end = end_of(await collect(shared.engine, request(prompt="xyzzy " * 3_000)))

    assert isinstance(end, Failed)
    assert end.failure is Failure.CONTEXT_OVERFLOW
    assert "xyzzy" not in end.message


@pytest.mark.parametrize(
    "name", ["prompt", "stream", "seed", "id_slot", "n_predict", "logprobs", "nonsense"]
)
async def test_options_that_are_ours_or_unknown_are_refused(shared: Running, name: str) -> None:
    """An engine option cannot override what llama-orch sets, and a misspelt one is not ignored."""
    end = end_of(await collect(shared.engine, request(engine_options={name: 1})))

    assert isinstance(end, Failed)
    assert end.failure is Failure.INVALID_REQUEST
    assert name in end.message


async def test_a_dying_engine_fails_its_generations_and_shows_it(opener: Opener) -> None:
    """After a kill every open generation is ENGINE_DIED, and health and exit tell the truth."""
    running = await opener(2)
    assert await running.engine.healthy()
    count = 1 if running.serial else 2
    generations = [running.engine.generate(endless(running, f"g{n}")) for n in range(count)]
    for generation in generations:
        assert isinstance(await anext(generation), Piece)

    running.kill()
    ends = [[event async for event in generation][-1] for generation in generations]

    for end in ends:
        assert isinstance(end, Failed)
        assert end.failure is Failure.ENGINE_DIED
    assert not await running.engine.healthy()
    if running.watched:
        async with asyncio.timeout(1):
            assert await running.engine.wait_exit()
        after = end_of(await collect(running.engine, request("after")))
        assert isinstance(after, Failed)
        assert after.failure is Failure.ENGINE_DIED


async def test_stop_is_idempotent_and_leaves_nothing(opener: Opener) -> None:
    """Stopping ends open generations and the process; stopping again changes nothing."""
    running = await opener(1)
    generation = running.engine.generate(endless(running))
    assert isinstance(await anext(generation), Piece)

    await asyncio.gather(running.engine.stop(), running.engine.stop())
    await running.engine.stop()

    *_, end = [event async for event in generation]
    assert isinstance(end, Failed)
    assert end.failure is Failure.ENGINE_DIED
    assert not await running.engine.healthy()
    if running.watched:
        assert await running.engine.wait_exit()
    assert running.pid is None or not psutil.pid_exists(running.pid)


@pytest.mark.parametrize("name", CASES)
async def test_an_engine_that_cannot_start_says_why(name: str) -> None:
    """The start fails fast and names what is missing; stopping afterwards is harmless."""
    engine, words = failing_to_start(name)

    with pytest.raises(PreloadError) as raised:
        await engine.start()
    await engine.stop()

    assert any(words in shortfall for shortfall in raised.value.shortfalls)
    assert not await engine.healthy()
