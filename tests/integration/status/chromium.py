"""A real Chromium that sees pages as people do. `make tools-chromium` installs what it takes."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.async_api import Browser

MISSING = "Chromium or Playwright is missing: make tools-chromium"
AXE = Path(__file__).parents[3] / ".build" / "chromium" / "axe.min.js"
# It runs as root in containers, where its own sandbox cannot; it opens nothing but our page.
ARGUMENTS = ("--no-sandbox", "--disable-dev-shm-usage", "--force-color-profile=srgb")


def missing() -> str:
    """Why there is no browser here, for a skip; empty when there is one."""
    try:
        import playwright.async_api  # noqa: F401, PLC0415 - an optional tool
    except ImportError:
        return MISSING
    return "" if executable() else MISSING


def executable() -> str | None:
    """The system's Chromium."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@asynccontextmanager
async def browser() -> AsyncIterator["Browser"]:
    """A headless browser, closed at the end."""
    from playwright.async_api import async_playwright  # noqa: PLC0415 - an optional tool

    async with async_playwright() as tools:
        opened = await tools.chromium.launch(executable_path=executable(), args=list(ARGUMENTS))
        try:
            yield opened
        finally:
            await opened.close()
