"""A server that we start ourselves, and an adapter that attaches to it. ORCH-3200, ORCH-3001.

An adapter knows an engine's API and no process; this wrapper knows a process and no API. Both
together are one managed engine. The command runs below a warden (`warden.py`), in a session of its
own: it and everything it starts end when the engine is stopped, when the pool manager dies in any
way, and when the engine's first process ends. ORCH-3203.
"""

import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
import socket
from collections.abc import AsyncGenerator, Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pool_managerd.core.redaction import masked
from pool_managerd.engines import exit_news, warden
from pool_managerd.engines.engine_log import LOG_LINES, LogSettings
from pool_managerd.engines.environment import names_secret, passed_on
from pool_managerd.engines.exit_news import LINES_IN_MESSAGES, LastWords, OpenRequests
from pool_managerd.engines.host_memory import OomKills, oom_kills
from pool_managerd.engines.port import (
    Ended,
    Engine,
    EngineInfo,
    Failed,
    Failure,
    GenerationEvent,
    GenerationRequest,
    PreloadError,
)
from pool_managerd.engines.worker_process import WorkerProcess, ended_with

PORTS = ("port", "port_2", "port_3")
"""Placeholders for loopback ports that were free a moment ago."""

PORT_TRIES = 3
"""Runs of a command, each with other ports, while it ends because one of them is taken."""

PORT_CHOICES_MAX = 100
"""Ports that are looked at for one that no other engine of this process was given."""

_HOST = "127.0.0.1"
_GIVEN: set[str] = set()
_TAKEN = re.compile(
    r"(?i)already in use|EADDRINUSE|(?:could(?: no|n')t|failed to|unable to|attempting to) bind"
)
"""What servers write who find their port taken. Source: errno(3); llama-server, uvicorn, Triton."""
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_FIRST_LOOK_S, _LAST_LOOK_S = 0.02, 0.1
_FIRST_TRY_S = 0.1
# What an ended engine wrote is in the pipe; heirs that still hold it are not waited for.
_LOG_SETTLES_S = 0.02
_DETACH_TIMEOUT_S = 2.0

Attach = Callable[[Mapping[str, str]], Engine]
"""Makes an adapter that is not started, from the values of the placeholders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """A command to run.

    Attributes:
        command: Program and arguments; `{name}` stands for a value.
        values: What the placeholders stand for. `PORTS` are chosen unless given here.
        env: Set in the engine's environment; may hold placeholders.
        pass_env: Variables of the pool manager's environment that it gets beside the usual ones.
        cwd: Directory to run in; empty: that of the pool manager's package.
        secrets: Values that no sentence and no log line may show.
        load_timeout_ms: Longest time until the adapter has started.
        attach_timeout_ms: Longest time in which a server that accepts connections may still
            answer as if it were another one.
        stop_grace_ms: Time between SIGTERM and SIGKILL.
        log: Bounds of what is kept of its output.
    """

    command: tuple[str, ...]
    values: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    pass_env: tuple[str, ...] = ()
    cwd: str = ""
    secrets: tuple[str, ...] = ()
    load_timeout_ms: int = 600_000
    attach_timeout_ms: int = 10_000
    stop_grace_ms: int = 10_000
    log: LogSettings = field(default_factory=LogSettings)

    def __post_init__(self) -> None:
        """Refuses a command without a program, and waits without a bound."""
        if not self.command:
            raise ValueError("command must name a program")
        if min(self.load_timeout_ms, self.attach_timeout_ms, self.stop_grace_ms) < 1:
            raise ValueError("every time of a LaunchSpec must be at least 1 ms")


class LaunchedEngine:
    """One run of a command with one adapter; satisfies `port.Engine`."""

    def __init__(self, spec: LaunchSpec, attach: Attach) -> None:
        self._spec = spec
        self._attach = attach
        self._worker: WorkerProcess | None = None
        self._adapter: Engine | None = None
        self._pid: int | None = None
        self._exit: asyncio.Task[Ended] | None = None
        self._before = OomKills()
        self._serving_since_line: int | None = None
        self._requests = OpenRequests()
        self._stopped = self._stop_began = False
        self._ports: set[str] = set()
        passed = [os.environ.get(name, "") for name in spec.pass_env if names_secret(name)]
        self._secrets = (*spec.secrets, *passed)

    @property
    def pid(self) -> int | None:
        """Process id of the engine; None before the start."""
        return self._pid

    @property
    def log_tail(self) -> tuple[str, ...]:
        """The last lines that it wrote, oldest first; they may quote requests."""
        return self._worker.log.last(LOG_LINES) if self._worker else ()

    async def start(self) -> EngineInfo:
        """Runs the command and waits until the adapter has started. See `port.Engine.start`."""
        try:
            async with asyncio.timeout(self._spec.load_timeout_ms / 1000):
                info = await self._serving()
        except TimeoutError:
            problem = f"the engine did not answer within {self._spec.load_timeout_ms} ms"
            await self.stop()
            raise PreloadError([self._with_log(problem)]) from None
        except OSError as error:
            await self.stop()
            raise PreloadError([f"the engine cannot be started: {error}"]) from error
        except BaseException:
            await self.stop()
            raise
        assert self._worker is not None, "it was launched"
        self._serving_since_line = self._worker.log.lines_total
        return info

    async def _serving(self) -> EngineInfo:
        """Runs the command with other ports where another program took one of them first."""
        for _ in range(PORT_TRIES - 1):
            try:
                return await self._run()
            except PreloadError:
                if not self._lost_its_port():
                    raise
                assert self._worker is not None, "it wrote so"
                await self._worker.stop()
        return await self._run()

    async def _run(self) -> EngineInfo:
        # A server that is slow to open its port must not be taken for another pool's that has it.
        self._give_ports_back()
        chosen = free_ports(_GIVEN)
        self._ports.update(chosen.values())
        _GIVEN.update(self._ports)
        values = {**chosen, **self._spec.values}
        await self._launch(values)
        return await self._until_attached(values)

    def _lost_its_port(self) -> bool:
        """True when the engine ended, said that it could not bind, and may choose other ports."""
        if self._exit is None or not self._exit.done() or self._stopped or self._worker is None:
            return False
        chosen = any(name not in self._spec.values for name in PORTS)
        return chosen and any(_TAKEN.search(line) for line in self._worker.log.last(LOG_LINES))

    async def _launch(self, values: Mapping[str, str]) -> None:
        spec = self._spec
        order = {
            "command": [filled(part, values) for part in spec.command],
            "env": {name: filled(value, values) for name, value in spec.env.items()},
            "cwd": spec.cwd,
            "stop_grace_ms": spec.stop_grace_ms,
        }
        self._before = await asyncio.to_thread(oom_kills)
        arguments = ("-I", "-S", str(Path(warden.__file__)))
        env = passed_on(os.environ, spec.pass_env)
        self._worker = await WorkerProcess.spawn(arguments, spec.log, env=env)
        if self._stopped:
            raise PreloadError(["the engine was stopped during its start"])
        report = _parsed(await self._worker.ask(json.dumps(order).encode()))
        if "pid" not in report:
            problem = report.get("error") or await self._worker.wait_exit()
            raise PreloadError([str(problem)])
        self._pid = int(report["pid"])
        self._exit = asyncio.create_task(self._watch(self._worker))

    async def _until_attached(self, values: Mapping[str, str]) -> EngineInfo:
        assert self._exit is not None, "it was launched"
        attaching = asyncio.create_task(self._attached(int(values["port"]), values))
        try:
            await asyncio.wait({attaching, self._exit}, return_when=asyncio.FIRST_COMPLETED)
            if not attaching.done():
                ended = self._exit.result()
                raise PreloadError([f"{ended.message}, before it served"], ended.failure)
            return await attaching
        finally:
            attaching.cancel()
            await asyncio.gather(attaching, return_exceptions=True)

    async def _attached(self, port: int, values: Mapping[str, str]) -> EngineInfo:
        """Tries until the adapter starts: nobody tells when a server has opened its port."""
        await _accepting(port)
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + self._spec.attach_timeout_ms / 1000
        wait_s = _FIRST_TRY_S
        while True:
            adapter = self._attach(values)
            try:
                info = await adapter.start()
            except PreloadError as error:
                await adapter.stop()
                if loop.time() + wait_s > give_up_s:
                    raise PreloadError([self._with_log(str(error))], error.failure) from error
                await asyncio.sleep(wait_s)
                wait_s *= 2
            except BaseException:
                await adapter.stop()
                raise
            else:
                self._adapter = adapter
                return info

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """See `port.Engine.generate`."""
        adapter, ended = self._started()
        if ended.done():
            yield Failed(Failure.ENGINE_DIED, ended.result().message)
            return
        with self._requests.holding(request):
            async with contextlib.aclosing(adapter.generate(request)) as events:
                async for event in events:
                    if isinstance(event, Failed) and event.failure is Failure.ENGINE_DIED:
                        yield await exit_news.with_exit_news(event, self.wait_exit)
                    else:
                        yield event

    async def confirm_idle(self, request_id: str, timeout_ms: int) -> None:
        """Returns also when the process is gone. See `port.Engine.confirm_idle`."""
        adapter, _ = self._started()
        await exit_news.idle_or_gone(adapter.confirm_idle(request_id, timeout_ms), self.wait_exit)

    async def healthy(self) -> bool:
        """See `port.Engine.healthy`."""
        if self._adapter is None or self._exit is None or self._exit.done():
            return False
        return await self._adapter.healthy()

    async def wait_exit(self) -> Ended:
        """See `port.Engine.wait_exit`."""
        assert self._exit is not None, "start() comes first"
        return await asyncio.shield(self._exit)

    async def stop(self) -> None:
        """Ends the process and all it started: SIGTERM, a grace, SIGKILL. See `port.Engine.stop`.

        When it is cancelled, SIGKILL comes at once, and another call waits for its effect.
        """
        self._stopped = True
        order, grace_s = b"stop", self._spec.stop_grace_ms / 1000
        if self._stop_began:
            order, grace_s = b"", 0.0
        self._stop_began = True
        try:
            if self._adapter is not None:
                # An adapter that hangs must not keep SIGTERM from the engine.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_DETACH_TIMEOUT_S):
                        await self._adapter.stop()
            if self._worker is not None:
                await self._worker.stop(order, grace_s)
        finally:
            self._give_ports_back()
            if self._worker is not None:
                self._worker.abandon()

    def _give_ports_back(self) -> None:
        _GIVEN.difference_update(self._ports)
        self._ports.clear()

    async def _watch(self, worker: WorkerProcess) -> Ended:
        """Waits for the end of the engine, or of its warden."""
        report = _parsed(await worker.hear())
        await worker.settle(_LOG_SETTLES_S)
        name = Path(self._spec.command[0]).name
        if "status" in report:
            status = int(report["status"])
            sentence = f"the engine ({name}, pid {self._pid}) {ended_with(status)}"
        else:
            status = 0
            sentence = f"the warden of the engine ({name}): {await worker.wait_exit()}"
            # The engine died with its warden; what it had started in its group did not.
            _kill_group(self._pid)
        words = LastWords(
            sentence=sentence,
            status=None if self._stopped else status,
            lines=self._tellable(),
            before=self._before,
            secrets=self._secrets,
        )
        return await exit_news.judged(words)

    def _tellable(self) -> tuple[str, ...]:
        """Lines for people: of the start all, of what came later those that tell of a failure."""
        assert self._worker is not None, "a worker wrote them"
        log = self._worker.log
        if self._serving_since_line is None:
            return log.last(LOG_LINES)
        return self._requests.failures_in(log.since(self._serving_since_line))

    def last_words(self) -> str:
        """See `port.Writing.last_words`."""
        lines = self._tellable()[-LINES_IN_MESSAGES:] if self._worker else ()
        return " | ".join(masked(line, self._secrets) for line in lines)

    def _with_log(self, problem: str) -> str:
        quoted = self.last_words()
        return f"{problem} ({quoted})" if quoted else problem

    def _started(self) -> tuple[Engine, asyncio.Task[Ended]]:
        assert self._adapter is not None, "start() comes first"
        assert self._exit is not None, "start() comes first"
        return self._adapter, self._exit


def filled(text: str, values: Mapping[str, str]) -> str:
    """The text with the values in place of `{name}`; braces around anything else stay.

    In one pass: what a value holds is never filled itself, for a model's name may come from afar.
    """
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text)


def free_ports(besides: Container[str] = ()) -> dict[str, str]:
    """Loopback ports that nobody listens on now and that are not `besides`, by placeholder.

    Another process may take one before the engine does; the engine then ends, and is run again with
    others, `PORT_TRIES` times in all.
    """
    with contextlib.ExitStack() as held:
        # The system gives no port twice while it is held.
        looked_at = (_held(held.enter_context(socket.socket())) for _ in range(PORT_CHOICES_MAX))
        chosen = itertools.islice((port for port in looked_at if port not in besides), len(PORTS))
        return dict(zip(PORTS, chosen, strict=True))


def _held(one: socket.socket) -> str:
    one.bind((_HOST, 0))
    return str(one.getsockname()[1])


async def _accepting(port: int) -> None:
    """Returns once somebody accepts connections there; the caller bounds the wait."""
    wait_s = _FIRST_LOOK_S
    while True:
        try:
            _, writer = await asyncio.open_connection(_HOST, port)
        except OSError:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LAST_LOOK_S)
        else:
            writer.close()
            return


def _kill_group(pid: int | None) -> None:
    with contextlib.suppress(OSError):
        if pid is not None:
            os.killpg(pid, signal.SIGKILL)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        report = json.loads(line)
    except ValueError:
        return {}
    return report if isinstance(report, dict) else {}
