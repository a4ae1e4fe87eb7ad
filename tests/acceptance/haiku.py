"""`make haiku`: asks a service for a haiku that says the present minute in words. ORCH-3051.

Through the public API only, as any client would. A random tiny model, or the mock engine, can
write no haiku: there the way of the job is checked, and what it says is not. With `REQUIRE_GPU=1`
a service without a GPU pool is a failure, and so is one whose engine cannot write.

Exit codes: 0 all is well, 1 something is not, 2 there is no service.
"""

import argparse
import asyncio
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from demo.services import Stack, StackOptions
from llamaorch_client import (
    AsyncClient,
    ChatMessage,
    ClientOptions,
    End,
    Event,
    LlamaOrchError,
    Pool,
    Sampling,
    Started,
    Tokens,
)
from pool_managerd.models.tiny_gguf import SLOW, TINY, write_tiny_model
from tests.acceptance import haiku_rules

MODEL_MS_MAX = 300_000
MAX_TOKENS = 400
TRIES = 3
CPU = "cpu"
RANDOM_SHOWN = 80


@dataclass(frozen=True)
class Verdict:
    """What was asked and said, and what is wrong with it. `judged`: the text counted, too."""

    pool_id: str
    judged: bool
    text: str
    problems: tuple[str, ...]


def on_gpu(pool: Pool) -> bool:
    """A pool on a device that is no processor."""
    return any(not device.device_id.startswith(CPU) for device in pool.devices)


async def check(
    client: AsyncClient,
    *,
    require_gpu: bool,
    model_id: str = "",
    clock: Callable[[], datetime] = datetime.now,
) -> Verdict:
    """Asks for the haiku, up to `TRIES` times while only its words are wrong.

    Raises:
        LlamaOrchError: the service does not answer, or refuses.
    """
    ready = [pool for pool in await client.pools() if pool.state == "READY" and pool.connected]
    wanted = [pool for pool in ready if model_id in ("", pool.model_id)]
    best = sorted(wanted, key=lambda pool: (not on_gpu(pool), not _writes(pool), pool.pool_id))
    if not best:
        return Verdict("", judged=False, text="", problems=("no pool is READY",))
    verdict = Verdict("", judged=False, text="", problems=())
    for number in range(TRIES):
        minute = clock().minute
        verdict = await _ask(client, best[0].model_id, minute, seed=number + 1)
        if not verdict.problems or not verdict.judged:
            break
    used = next((pool for pool in ready if pool.pool_id == verdict.pool_id), None)
    lacks = []
    if require_gpu and (used is None or not on_gpu(used)):
        lacks.append("REQUIRE_GPU is set, and it did not run on a GPU")
    elif require_gpu and not verdict.judged:
        lacks.append("REQUIRE_GPU is set, and the model has random weights or is none")
    problems = (*verdict.problems, *lacks)
    return Verdict(verdict.pool_id, verdict.judged, verdict.text, problems)


async def _ask(client: AsyncClient, model_id: str, minute: int, seed: int) -> Verdict:
    word = haiku_rules.in_words(minute)
    message = ChatMessage(
        "user",
        "Write a haiku about the passing of time: exactly three lines, and nothing else. "
        f'One of the lines must contain the word "{word}".',
    )
    stream = client.run(
        model_id=model_id,
        messages=(message,),
        sampling=Sampling(seed=seed, temperature=0.7, max_tokens=MAX_TOKENS),
        queue_timeout_ms=MODEL_MS_MAX,
    )
    events = [event async for event in stream]
    text = "".join(event.text for event in events if isinstance(event, Tokens))
    started = [event for event in events if isinstance(event, Started)]
    pool_id = started[0].pool_id if started else ""
    pools = {pool.pool_id: pool for pool in await client.pools()}
    judged = pool_id in pools and _writes(pools[pool_id])
    found = _plumbing(events, text)
    if judged:
        found += haiku_rules.problems(text, minute)
    return Verdict(pool_id, judged, text, tuple(found))


def _plumbing(events: list[Event], text: str) -> list[str]:
    """What is wrong with the way of the job, whatever it says."""
    found = []
    if [type(event) for event in events].count(Started) != 1:
        found.append("it did not start exactly once")
    end = events[-1] if events else None
    if not isinstance(end, End):
        return [*found, "it did not end"]
    if not text:
        found.append("it said nothing")
    if end.text_bytes != len(text.encode()):
        found.append(f"{len(text.encode())} bytes came, {end.text_bytes} were sent")
    if not end.usage.tokens_out:
        found.append("nobody counted its tokens")
    return found


def _writes(pool: Pool) -> bool:
    """Whether a pool's model was trained on anything."""
    return pool.engine != "mock" and pool.model_digest not in _random_digests()


def _random_digests() -> frozenset[str]:
    if not _DIGESTS:
        with tempfile.TemporaryDirectory() as folder:
            for shape in (TINY, SLOW):
                file = Path(folder, "model.gguf")
                write_tiny_model(file, shape)
                _DIGESTS.add(f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}")
    return frozenset(_DIGESTS)


_DIGESTS: set[str] = set()


async def _main(arguments: argparse.Namespace) -> int:
    require_gpu = os.environ.get("REQUIRE_GPU", "") not in ("", "0")
    with tempfile.TemporaryDirectory() as folder:
        stack = None if arguments.server else Stack(StackOptions(Path(folder)))
        try:
            if stack is not None:
                await stack.start()
            address = stack.address if stack is not None else arguments.server
            options = ClientOptions(token=os.environ.get("LLORCH_TOKEN") or None)
            async with AsyncClient(address, options=options) as client:
                verdict = await check(client, require_gpu=require_gpu, model_id=arguments.model)
        except LlamaOrchError as error:
            sys.stderr.write(f"haiku: {error.message}\n")
            return 2
        finally:
            if stack is not None:
                await stack.stop()
    shown, told = verdict.text.strip(), ""
    if not verdict.judged:
        shown, told = f"{shown[:RANDOM_SHOWN]} ...", " (random words: what it says is not judged)"
    sys.stdout.write(f"{shown}\n\nby pool {verdict.pool_id or '-'}{told}\n")
    for problem in verdict.problems:
        sys.stderr.write(f"haiku: {problem}\n")
    return 1 if verdict.problems else 0


def main() -> int:
    """Runs the check against a service, or one of its own with the tiny model."""
    parser = argparse.ArgumentParser(prog="haiku", description=__doc__)
    parser.add_argument(
        "--server",
        default=os.environ.get("LLORCH_SERVER", ""),
        metavar="HOST:PORT",
        help="a service that runs; without one, a service with the tiny model is started",
    )
    parser.add_argument("--model", default="", metavar="ID", help="model to ask; any otherwise")
    return asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
