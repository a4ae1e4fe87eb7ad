"""Recorded conversations: files, and how one is said again to a server."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from tests.contract import wire_types
from tests.contract.answers import answer, facts
from tests.contract.wiretap import Call, Sent

FOLDER = Path(__file__).parent / "recordings"
WAIT_S = 20.0
Json = Any


def write(name: str, calls: Sequence[Call]) -> None:
    """Writes a conversation down."""
    recorded = [
        {
            "method": call.method,
            "metadata": call.metadata,
            "requests": [
                {
                    "wire": sent.data.hex(),
                    "after": facts(call.method, call.received[: sent.after]),
                    "reads": _reads(call.method, sent.data),
                }
                for sent in call.sent
            ],
            "until": facts(call.method, call.received) if call.code is None else None,
            "answer": answer(call),
        }
        for call in calls
    ]
    text = json.dumps(recorded, indent=1, ensure_ascii=False)
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def read(name: str) -> list[Json]:
    """Reads a conversation."""
    calls: list[Json] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return calls


async def say_again(channel: grpc.aio.Channel, recorded: Json) -> Call:
    """Sends the very bytes of one call; returns what came back.

    A request that was sent after so much of the answer waits for as much. Where the client left
    before the end, this one does at the same place.
    """
    call = Call(recorded["method"], recorded["metadata"])
    onward = channel.stream_stream(call.method)(metadata=tuple(call.metadata.items()))
    came = asyncio.Condition()

    async def receive() -> None:
        try:
            async for data in onward:
                async with came:
                    call.received.append(data)
                    came.notify_all()
        except grpc.aio.AioRpcError:
            pass  # Its code and details are read below.

    def enough(count: int) -> bool:
        return facts(call.method, call.received) >= count

    async with asyncio.timeout(WAIT_S):
        receiver = asyncio.create_task(receive())
        for request in recorded["requests"]:
            async with came:
                await came.wait_for(lambda count=request["after"]: enough(count))
            data = bytes.fromhex(request["wire"])
            call.sent.append(Sent(data, request["after"]))
            await onward.write(data)
        if recorded["until"] is None:
            await onward.done_writing()
            await receiver
            call.code, call.details = await onward.code(), await onward.details() or ""
        else:
            async with came:
                await came.wait_for(lambda: enough(recorded["until"]))
            onward.cancel()
            await asyncio.wait((receiver,))
        call.initial = {key: str(value) for key, value in await onward.initial_metadata() or ()}
        call.trailing = dict(await onward.trailing_metadata() or ())
    return call


def _reads(method: str, data: bytes) -> Json:
    try:
        message = wire_types.request(method, data)
        return json_format.MessageToDict(message, preserving_proto_field_name=True)
    except DecodeError:
        return "(cannot be read)"
