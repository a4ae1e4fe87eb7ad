"""Fixtures shared with the tests of orchestratord, and a browser."""

from collections.abc import AsyncIterator

import pytest

from tests.integration.orchestrator.conftest import start_orchestrator
from tests.integration.status import chromium
from tests.integration.status.watching import PATIENCE_MS, Open, Scheme, Watched

__all__ = ["start_orchestrator"]


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core."""
    path = chromium.AXE
    if not path.is_file():
        pytest.skip(chromium.MISSING)
    return path.read_text(encoding="utf-8")


@pytest.fixture
async def visit() -> AsyncIterator[Open]:
    """Opens pages in one browser."""
    async with chromium.browser() as browser:

        async def visit(
            url: str, scheme: Scheme = "light", size: tuple[int, int] = (1600, 1000)
        ) -> Watched:
            width, height = size
            page = await browser.new_page(
                viewport={"width": width, "height": height}, color_scheme=scheme
            )
            page.set_default_timeout(PATIENCE_MS)
            watched = Watched(page)
            page.on("console", lambda message: watched.console.append(message.text))
            page.on("pageerror", lambda error: watched.console.append(str(error)))
            page.on(
                "request",
                lambda request: (
                    None if request.url.startswith(url) else watched.foreign.append(request.url)
                ),
            )
            await page.goto(url)
            return watched

        yield visit
