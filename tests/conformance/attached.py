"""Adapters of HTTP engines that are started before a server of their engine's frames."""

from dataclasses import dataclass
from typing import Any

from pool_managerd.engines.port import (
    ChatMessage,
    Engine,
    Failed,
    Failure,
    GenerationEvent,
    GenerationRequest,
    Piece,
    SamplingParams,
)
from tests.conformance.engine_frames import FrameServer
from tests.conformance.generations import collect, end_of

CONFIRM_MS = 5_000
CHAT = (ChatMessage("user", "hi"),)


@dataclass(frozen=True)
class Attached:
    """An adapter, started, and the server before it."""

    name: str
    server: FrameServer
    engine: Engine
    frames: dict[str, Any]


def wanted(prompt: Any = "hi there", request_id: str = "r", **sampling: Any) -> GenerationRequest:
    """A request; further arguments are those of `SamplingParams`."""
    return GenerationRequest(
        request_id, prompt, SamplingParams(**{"seed": 5, "max_tokens": 2, **sampling})
    )


async def failure_of(attached: Attached, request: GenerationRequest) -> tuple[Failure, str]:
    """Returns how a generation failed, and the message."""
    end = end_of(await collect(attached.engine, request))
    assert isinstance(end, Failed)
    return end.failure, end.message


def pieces_of(events: list[GenerationEvent]) -> list[str]:
    """Returns the texts of the pieces."""
    return [event.text for event in events if isinstance(event, Piece)]
