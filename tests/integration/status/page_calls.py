"""How the status page is asked for without a browser."""

import json
from typing import Any

import aiohttp
from multidict import CIMultiDictProxy

from tests.integration.orchestrator.conftest import Orchestrator


async def get(url: str, **headers: str) -> tuple[int, str, "CIMultiDictProxy[str]"]:
    """One request: status, text, headers."""
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
        return answer.status, await answer.text(), answer.headers


def base(orchestrator: Orchestrator) -> str:
    """Address of the page."""
    return f"http://127.0.0.1:{orchestrator.server.metrics_port}"


async def now(orchestrator: Orchestrator) -> dict[str, Any]:
    """What the page shows, read anew."""
    server = orchestrator.server
    status, text, _ = await get(f"{base(orchestrator)}/status/now.json")
    assert (status, server.metrics_port is not None) == (200, True)
    told: dict[str, Any] = json.loads(text)
    return told
