"""What clients said once is said again, byte by byte, and must get the same answer.

A recorded request is what clients in the field send; the client library of today takes no part in
the replay. `LLAMAORCH_UPDATE_CONTRACT=1` records anew: read the diff before you commit it, for
what it takes back is a promise to somebody. `answers.py` has the rules of comparison.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from tests.contract import recording, wire_types
from tests.contract.answers import answer, missing
from tests.contract.conversations import CONVERSATIONS, TOKENS, Conversation, Speaker
from tests.contract.wiretap import Wiretap
from tests.features.service import Service


@asynccontextmanager
async def stage(conversation: Conversation, directory: Path) -> AsyncIterator[Service]:
    """The server that a conversation is with."""
    service = Service(directory, tables=dict(conversation.tables))
    for name, (role, token) in TOKENS.items() if conversation.guarded else ():
        service.know(name, role, token)
    try:
        await service.start()
        if conversation.slots:
            await service.add_host("host-1", {"pool_id": "gpu", "slots": conversation.slots})
        yield service
    finally:
        await service.close()


@pytest.mark.parametrize("name", sorted(CONVERSATIONS))
async def test_recorded_requests_get_the_answers_of_old(name: str, tmp_path: Path) -> None:
    """So that a client of yesterday works with the server of today."""
    conversation = CONVERSATIONS[name]
    async with stage(conversation, tmp_path) as service:
        if os.environ.get("LLAMAORCH_UPDATE_CONTRACT"):
            async with Wiretap(service.address) as tap:
                await conversation.says(Speaker(tap.address))
            recording.write(name, tap.calls)
            return
        broken = []
        async with grpc.aio.insecure_channel(service.address) as channel:
            for number, recorded in enumerate(recording.read(name), 1):
                now = answer(await recording.say_again(channel, recorded))
                where = f"call {number}, {recorded['method'].rpartition('/')[2]}: "
                broken += missing(recorded["answer"], now, where)

    assert broken == []


def test_every_method_is_recorded() -> None:
    """Whoever adds a method adds a conversation that uses it."""
    recorded = {call["method"] for name in CONVERSATIONS for call in recording.read(name)}

    assert set(wire_types.METHODS) - recorded == set()


def test_every_recording_has_its_conversation() -> None:
    """And none is left over that nobody replays."""
    assert {path.stem for path in recording.FOLDER.glob("*.json")} == set(CONVERSATIONS)


def test_what_is_taken_back_is_noticed() -> None:
    """A field that is gone, another value, a shorter list; not what is new, nor what may vary."""
    recorded = {"state": "DONE", "jobs": [{"id": "a"}], "took_ms": "<any>"}
    kept = {"state": "DONE", "jobs": [{"id": "a", "new": 1}], "took_ms": 7, "more": True}

    assert missing(recorded, kept) == []
    assert missing(["a"], ["b", "a"]) == []
    assert missing(["a", "b"], ["b"]) == [" has no 'a'"]
    assert missing(recorded, {"state": "DONE", "jobs": [{"id": "a"}]}) == [".took_ms is gone"]
    assert missing(recorded, kept | {"state": "LOST"}) == [".state was 'DONE' and is 'LOST'"]
    assert len(missing(recorded, kept | {"jobs": []})) == 1
    assert missing(recorded, kept | {"jobs": [{"new": 1}]}) == [".jobs[0].id is gone"]
