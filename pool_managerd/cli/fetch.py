"""`pool-managerd fetch REF`: brings a model to this host before a pool needs it. ORCH-3091."""

import asyncio
import sys

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from pool_managerd.clock import SystemClock
from pool_managerd.config.schema import Config
from pool_managerd.engines.port import PreloadError
from pool_managerd.models.files import ModelFiles

EXIT_FAILED = 1
OWNER = "fetch"


def run_fetch(config: Config, ref: str) -> int:
    """Fetches and verifies `ref`, prints the path of its file; returns the exit code.

    With a terminal at stderr there is a bar, else the log has a line now and then.
    """
    try:
        print(asyncio.run(_fetch(config, ref)))  # noqa: T201 - the command's answer
    except PreloadError as error:
        print(f"pool-managerd: {error}", file=sys.stderr)  # noqa: T201 - the command's answer
        return EXIT_FAILED
    return 0


async def _fetch(config: Config, ref: str) -> str:
    files = ModelFiles(config, SystemClock())
    columns = (BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(ref, total=None)

        def show(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        found = await files.find(ref, OWNER, show)
    digest = await files.digest(found)
    return f"{found.path} {digest}"
