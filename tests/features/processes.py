"""The services as processes of their own, which can be killed."""

import asyncio
import json
import signal
from dataclasses import dataclass, field
from typing import Any

from demo import services
from llamaorch_client import RetryOptions
from tests.features.service import MODEL, Service

# A server that was killed is asked again until it is back.
PATIENT = RetryOptions(retry_rejected=False)


@dataclass
class ProcessService(Service):
    """Both services as an operator runs them; a restart is a kill without warning."""

    processes: dict[str, services.Service] = field(default_factory=dict)
    retry: RetryOptions = PATIENT
    _address: str = "127.0.0.1:0"

    @property
    def address(self) -> str:
        """Where clients reach it; the same after a restart."""
        return self._address

    async def start(self) -> None:
        """Starts orchestratord on its journal."""
        config = self.directory / "orchestratord.toml"
        config.write_text(f'listen = "{self._address}"\n', encoding="utf-8")
        arguments = ("orchestrator_core", "--config", str(config))
        started = await services.Service.start("orchestratord", arguments, self.directory, {})
        self.processes["orchestratord"] = started
        self._address = str((await started.event("listening"))["address"])

    async def restart(self) -> None:
        """SIGKILL, then a new one at the same address; returns once the host is back."""
        process = self.processes["orchestratord"].process
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await self.start()
        await self.processes["orchestratord"].event("host_up")

    async def add_host(self, host_id: str, *pools: dict[str, Any]) -> None:
        """Starts a pool-managerd with mock engines in real time."""
        head = {"orchestrator": self.address, "listen": "127.0.0.1:0", "host_id": host_id}
        lines = [f"{key} = {json.dumps(value)}" for key, value in head.items()]
        lines += ['devices = "cpu"']
        for pool in pools:
            engine = {"kind": "mock", "model_id": MODEL} | pool
            lines += ["[[pools]]", f"pool_id = {json.dumps(engine.pop('pool_id'))}"]
            lines += ["[pools.engine]"]
            lines += [f"{key} = {json.dumps(value)}" for key, value in engine.items()]
        config = self.directory / f"{host_id}.toml"
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        arguments = ("pool_managerd", "--config", str(config))
        self.processes[host_id] = await services.Service.start(
            host_id, arguments, self.directory, {}
        )
        await self._known(frozenset(str(pool["pool_id"]) for pool in pools))

    async def close(self) -> None:
        """Ends everything."""
        for client in self._clients.values():
            await client.close()
        await asyncio.gather(*(process.stop() for process in self.processes.values()))
