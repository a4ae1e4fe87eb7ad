"""Both services as processes on simulated GPUs, and clients that keep them busy.

The GPUs are a scripted `libnvidia-ml.so.1` below the real binding, and the engines are mocks that
write words at a scripted pace. Everything else is what runs on a GPU host.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from demo.services import Service
from llamaorch_client import AsyncClient, LlamaOrchError, Priority, Sampling
from tests.nvml_stub.stub import GIB, Gpu, StubDriver, build

CLIENTS = 18
# Name, memory in GiB: total and used, busy %, temperature in C, power in mW; None: not reported.
CARDS = (
    ("NVIDIA GeForce RTX 3090", 24, 19.4, "87", "66", "318000"),
    ("NVIDIA GeForce RTX 3090", 24, 18.9, "91", "69", "334000"),
    ("NVIDIA GeForce RTX 3060", 12, 8.1, "64", "58", "141000"),
    ("NVIDIA GeForce GTX 1080", 8, 1.2, None, "41", None),
)
# Pool, GPU, model, slots, tokens per second of a stream, first token in ms.
POOLS = (
    ("3090-a", 0, "qwen3-8b", 4, 40.0, 180),
    ("3090-b", 1, "qwen3-8b", 4, 40.0, 180),
    ("3060", 2, "qwen3-8b", 2, 19.0, 340),
    ("1080-embed", 3, "llama3.2-1b", 2, 30.0, 120),
)


def cards(*, lost: bool = False) -> tuple[Gpu, ...]:
    """The GPUs of the script; with `lost` the last one has fallen off the bus."""
    made = []
    for number, (name, total, used, busy, heat, power) in enumerate(CARDS):
        gpu = Gpu(f"GPU-{number:08d}-0000-4000-8000-000000000000").having(
            name=name,
            capability="8 6",
            memory=f"{total * GIB} {int((total - used) * GIB)} {int(used * GIB)} 0",
            utilization=busy,
            temperature=heat,
            power=power,
        )
        made.append(gpu)
    if lost:
        made[-1] = made[-1].having(lost="15")
    return tuple(made)


def pool_toml(orchestrator: str) -> str:
    """The configuration of pool-managerd."""
    tables = [
        f"""
[[pools]]
pool_id = "{pool_id}"
devices = ["{cards()[gpu].uuid}"]
perf_tokens_per_s = {rate}
first_token_ms = {first_ms}
prefill_tokens_per_s = {rate * 25}
engine = {{ kind = "mock", model_id = "{model}", slots = {slots}, script = {{ token_count = 4000, \
first_token_delay_ms = {first_ms}, token_interval_ms = {int(1000 / rate)} }} }}
"""
        for pool_id, gpu, model, slots, rate, first_ms in POOLS
    ]
    head = (
        f'orchestrator = "{orchestrator}"\nlisten = "127.0.0.1:0"\nhost_id = "gpu-box"\n'
        'devices = "nvml"\n'
    )
    return head + "".join(tables)


class Fleet:
    """What runs: the address of the page, and the driver's script."""

    def __init__(self, url: str, address: str, driver: StubDriver) -> None:
        self.url = url
        self.address = address
        self.driver = driver

    async def load(self) -> None:
        """Clients that send one job after the other, until cancelled."""
        async with AsyncClient(self.address) as client, asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(_client(client, number))


async def _client(client: AsyncClient, number: int) -> None:
    chance = random.Random(number)  # noqa: S311 - a load that is the same in every run
    while True:
        batch = number % 3 == 0
        tokens = chance.randint(120, 420) if batch else chance.randint(40, 160)
        words = " ".join(["word"] * chance.randint(50, 600))
        script = {"token_count": int(tokens * chance.uniform(0.7, 1.2))}
        if chance.random() < 0.06:
            script["fail_after_tokens"] = 20
        with suppress(LlamaOrchError):
            receipt = await client.enqueue(
                model_id="qwen3-8b",
                prompt=words,
                priority=Priority.BATCH if batch else Priority.INTERACTIVE,
                session_id=f"chat-{number}" if number % 4 == 1 else "",
                expected_tokens=tokens,
                sampling=Sampling(max_tokens=tokens, engine_options={"mock": script}),
            )
            if chance.random() < 0.08:
                await asyncio.sleep(1.0)
                await client.cancel(receipt.job_id)
            async for _ in client.stream(receipt.job_id):
                pass


@asynccontextmanager
async def simulated_fleet(directory: Path) -> AsyncIterator[Fleet]:
    """Starts both services; they stop at the end. Raises RuntimeError without a C compiler."""
    driver = StubDriver(directory, build(directory / "lib"))
    driver.set(*cards())
    (directory / "orchestratord.toml").write_text(
        'listen = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\n'
    )
    first = await Service.start(
        "orchestratord",
        ("orchestrator_core", "--config", str(directory / "orchestratord.toml")),
        directory,
        {},
    )
    second = None
    try:
        listening = await first.event("listening")
        address = str(listening["address"])
        (directory / "pool-managerd.toml").write_text(pool_toml(address))
        second = await Service.start(
            "pool-managerd",
            ("pool_managerd", "--config", str(directory / "pool-managerd.toml")),
            directory,
            driver.environment,
        )
        await first.event("host_up")
        yield Fleet(f"http://127.0.0.1:{listening['metrics_port']}/", address, driver)
    finally:
        await first.stop()
        if second is not None:
            await second.stop()
