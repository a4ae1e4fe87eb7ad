"""Pages in a real Chromium, and what they should never do."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from playwright.async_api import Page

PATIENCE_MS = 30_000

# A scripted host does not report by itself, and a browser takes its time.
QUIET = {
    "metrics_listen": "127.0.0.1:0",
    "pools": {"heartbeat_timeout_ms": 170_000},
    "placement": {"stale_after_ms": 170_000},
}
Scheme = Literal["light", "dark"]


@dataclass(slots=True)
class Watched:
    """A page, and what it should never do."""

    page: "Page"
    console: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def assert_well(self) -> None:
        """No message of any kind, and no request to anybody else."""
        assert self.console == []
        assert self.foreign == []


Open = Callable[..., Awaitable[Watched]]


async def violations(page: "Page", axe: str) -> list[tuple[str, list[str]]]:
    """What axe-core finds, with the nodes."""
    await page.evaluate(axe)
    found = await page.evaluate("() => axe.run()")
    return [
        (found["id"], [node["html"][:120] for node in found["nodes"]])
        for found in found["violations"]
    ]


async def texts(page: "Page", selector: str) -> list[str]:
    """What a person reads in all elements of a kind."""
    return [" ".join(text.split()) for text in await page.locator(selector).all_inner_texts()]
