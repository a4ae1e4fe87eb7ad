"""Requests to an engine, and what comes back."""

from typing import Any

from pool_managerd.engines.port import (
    ChatMessage,
    Engine,
    Failed,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Piece,
    SamplingParams,
)


def request(
    request_id: str = "r",
    prompt: str | tuple[ChatMessage, ...] = "once upon a time",
    continue_token_ids: tuple[int, ...] = (),
    continue_text: str = "",
    **sampling: Any,
) -> GenerationRequest:
    """Returns a request; further keyword arguments are those of `SamplingParams`."""
    parameters = SamplingParams(**{"seed": 1, "max_tokens": 12, **sampling})
    return GenerationRequest(
        request_id, prompt, parameters, continue_token_ids, continue_text=continue_text
    )


async def collect(engine: Engine, wanted: GenerationRequest) -> list[GenerationEvent]:
    """Returns all events of a generation."""
    return [event async for event in engine.generate(wanted)]


def text_of(events: list[GenerationEvent]) -> str:
    """Returns the concatenated text."""
    return "".join(event.text for event in events if isinstance(event, Piece))


def ids_of(events: list[GenerationEvent]) -> tuple[int, ...]:
    """Returns the concatenated token ids."""
    return tuple(token for event in events if isinstance(event, Piece) for token in event.token_ids)


def end_of(events: list[GenerationEvent]) -> Finished | Failed:
    """Returns the one end, which is the last event."""
    *pieces, end = events
    assert isinstance(end, Finished | Failed)
    assert all(isinstance(piece, Piece) for piece in pieces)
    return end
