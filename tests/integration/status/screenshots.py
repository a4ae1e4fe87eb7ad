"""Pictures of the page for the README: `make screenshots`. A real run on simulated GPUs.

With `--all` also every combination of light and dark, wide and narrow, for looking at them.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tests.integration.status import chromium
from tests.integration.status.simulated_fleet import Fleet, cards, simulated_fleet

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

WARM_UP_S = 25.0
SIZES = {"wide": (1600, 1000), "middle": (1000, 900), "narrow": (360, 780)}
Scheme = Literal["light", "dark"]


async def page(browser: "Browser", url: str, scheme: Scheme, size: str) -> "Page":
    """The page in a window of its own, with live data."""
    width, height = SIZES[size]
    opened = await browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        device_scale_factor=2 if size == "narrow" else 1,
    )
    await opened.goto(url)
    await opened.get_by_text("live,").wait_for()
    return opened


async def explain(opened: "Page", url: str) -> None:
    """Opens the decision of the running job that had the largest choice."""
    hrefs = await opened.locator("#running a.job").evaluate_all(
        "links => links.map(link => link.getAttribute('href'))"
    )
    choices = {href: await _candidates(opened, url, href) for href in hrefs}
    best = max(choices, key=lambda href: choices[href])
    await opened.evaluate("hash => { location.hash = hash }", best)
    await opened.locator("dialog figure svg").first.wait_for()


async def _candidates(opened: "Page", url: str, href: str) -> int:
    answer = await opened.request.get(f"{url}status/job.json?id={href.removeprefix('#job=')}")
    decisions = (await answer.json()).get("decisions", []) if answer.ok else []
    return len(decisions[0]["candidates"]) if decisions else 0


@asynccontextmanager
async def busy(fleet: Fleet, warm_up_s: float) -> AsyncIterator[None]:
    """The clients at work, for some time before."""
    load = asyncio.create_task(fleet.load())
    try:
        await asyncio.sleep(warm_up_s)
        yield
    finally:
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)


async def take(fleet: Fleet, target: Path, *, every: bool) -> None:
    """Takes the pictures: a fleet that is full, then decisions of jobs that met an idle one."""
    schemes: tuple[Scheme, ...] = ("light", "dark")
    shots = [(scheme, size) for scheme in schemes for size in (SIZES if every else ("wide",))]
    async with chromium.browser() as browser:
        async with busy(fleet, WARM_UP_S):
            fleet.driver.set(*cards(lost=True))
            await asyncio.sleep(3)
            for scheme, size in shots:
                opened = await page(browser, fleet.url, scheme, size)
                path = target / f"{_name(scheme, size)}.png"
                await opened.screenshot(path=path, full_page=size != "wide")
                await opened.close()
        for scheme, size in shots:
            opened = await page(browser, fleet.url, scheme, size)
            await opened.get_by_text("Nothing runs.").wait_for(timeout=120_000)
            async with busy(fleet, 1.0):
                await explain(opened, fleet.url)
                await opened.screenshot(path=target / f"{_name(scheme, size)}-explain.png")
            await opened.close()


def _name(scheme: Scheme, size: str) -> str:
    return f"status-{scheme}" + ("" if size == "wide" else f"-{size}")


async def main() -> int:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, default=Path("docs/images"))
    parser.add_argument("--all", action="store_true", help="every scheme and size")
    arguments = parser.parse_args()
    if problem := chromium.missing():
        sys.stderr.write(f"{problem}\n")
        return 1
    arguments.target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="llama-orch-screenshots-") as directory:
        async with simulated_fleet(Path(directory)) as fleet:
            await take(fleet, arguments.target, every=arguments.all)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
