"""How long an input is waited for: as long as more of it comes, within an hour."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest
from grpc import aio

from faults.simulation.virtual_time import VirtualLoop
from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.pool.v1 import pool_registry_service_pb2 as registry_pb2
from pool_managerd.attempts.command import InputError, Prompt
from pool_managerd.auth.credentials import Metadata
from pool_managerd.core.attempts import AttemptKey
from pool_managerd.link.inputs import LONGEST_S, PATIENCE_S, Inputs

TEXT = "Once upon a time there was a link, and it was slow. " * 2
ENCODED = job_pb2.JobInput(text=TEXT).SerializeToString()


class SlowCall:
    """Sends the input a byte at a time, each after a wait, and breaks off after `most` of them."""

    def __init__(self, wait_s: float, most: int) -> None:
        self.wait_s, self.most = wait_s, most

    async def __aiter__(self) -> AsyncIterator[registry_pb2.FetchInputResponse]:
        """The pieces."""
        for number, byte in enumerate(ENCODED[: self.most]):
            await asyncio.sleep(self.wait_s)
            size_bytes = 0 if number else len(ENCODED)
            yield registry_pb2.FetchInputResponse(chunk=bytes([byte]), size_bytes=size_bytes)
        if self.most < len(ENCODED):
            raise asyncio.InvalidStateError("it is broken")

    def cancel(self) -> None:
        """The reader has enough."""


class SlowChannel:
    """A connection all of whose calls are slow; gRPC's, as far as a stub asks for it."""

    def __init__(self, wait_s: float, most: int) -> None:
        self.wait_s, self.most = wait_s, most

    def unary_stream(self, *_: object, **__: object) -> Callable[..., SlowCall]:
        """Makes calls that fetch."""
        return lambda *_, **__: SlowCall(self.wait_s, self.most)

    unary_unary = stream_stream = unary_stream


def fetched(wait_s: float, most: int = len(ENCODED)) -> tuple[Prompt | InputError, float]:
    """What came of an input over such a connection, and after how many seconds."""

    async def no_token() -> Metadata:
        return ()

    async def fetch() -> tuple[Prompt | InputError, float]:
        inputs = Inputs(1 << 20, no_token)
        inputs.use(cast("aio.Channel", SlowChannel(wait_s, most)))
        began_s = asyncio.get_running_loop().time()
        try:
            came: Prompt | InputError = await inputs.fetch(AttemptKey("j1", 1))
        except InputError as error:
            came = error
        return came, asyncio.get_running_loop().time() - began_s

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(fetch())


def test_a_slow_link_brings_an_input_that_takes_longer_than_silence_may_last() -> None:
    """Given up after a minute it would come to its end by no try."""
    came, took_s = fetched(PATIENCE_S / 2)

    assert came == TEXT
    assert took_s > 10 * PATIENCE_S


@pytest.mark.parametrize("most", [0, 5])
def test_a_call_that_breaks_at_the_same_place_again_and_again_is_given_up(most: int) -> None:
    """Only what had not come before puts the end off."""
    came, took_s = fetched(1.0, most)

    assert isinstance(came, InputError)
    assert "it is broken" in str(came)
    assert PATIENCE_S <= took_s <= PATIENCE_S + most + 2


def test_a_silent_call_is_given_up_and_said_to_be_that() -> None:
    """The orchestrator is reached, so it is not said to be away."""
    came, took_s = fetched(PATIENCE_S + 1)

    assert "the orchestrator sends it too slowly, or not at all" in str(came)
    assert took_s == pytest.approx(PATIENCE_S)


def test_an_hour_is_the_most() -> None:
    """A slot is held meanwhile."""
    came, took_s = fetched(PATIENCE_S - 1)

    assert isinstance(came, InputError)
    assert took_s == pytest.approx(LONGEST_S)
