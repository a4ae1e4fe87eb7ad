"""The operator of a run: changes the catalog, drains and reloads pools, has the file read again.

Acts go through the client library, one call each, and are not repeated: so each answer is about
that act. They overlap where the first is slow. What goes on in the meantime is looked at, too.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from faults import operator_events as o
from faults.simulation.operator_plan import ALIAS, MODEL, OTHER, Act, Deed
from faults.simulation.orchestrator import ADDRESS
from faults.simulation.recorder import Recorder
from faults.simulation.settings import SettingsFile
from faults.simulation.virtual_time import Process
from llamaorch_client import errors
from llamaorch_client.aio import AsyncClient
from llamaorch_client.catalog import AsyncCatalog
from llamaorch_client.model_catalog import CatalogModel
from llamaorch_client.model_fleet import ReloadOutcome
from llamaorch_client.options import ClientOptions, RetryOptions, Timing

_REFUSALS = (
    errors.RejectedError,
    errors.InvalidParamsError,
    errors.DuplicateError,
    errors.NotFoundError,
    errors.CatalogError,
)
"""Errors that say that nothing was changed."""

_TRIES_MAX = 200


class Operator:
    """Carries out its deeds; `tidy_up`, once all is healed, lets every pool take work again."""

    def __init__(
        self,
        deeds: Sequence[Deed],
        pools: Sequence[str],
        file: SettingsFile,
        recorder: Recorder,
    ) -> None:
        self.process = Process("operator")
        self._deeds = deeds
        self._pools = pools
        self._file = file
        self._editing = asyncio.Lock()
        self._recorder = recorder
        self._revisions: dict[str, int] = {}
        self._undrained = 0
        self._options = ClientOptions(
            retry=RetryOptions(attempts_max=1),
            rpc_timeout_ms=8_000,
            timing=Timing(lambda: recorder.now_ms, _sleep_ms, lambda: 0.5),
        )

    async def run(self) -> None:
        """Does everything at its time."""
        async with AsyncClient(ADDRESS, options=self._options) as client:
            await asyncio.gather(*(self._do(client, deed) for deed in self._deeds))

    async def tidy_up(self) -> None:
        """Lets every pool that was drained take work again."""
        drained = {deed.subject for deed in self._deeds if deed.act is Act.DRAIN}
        async with AsyncClient(ADDRESS, options=self._options) as client:
            await asyncio.gather(*(self._undrain(client, pool) for pool in sorted(drained)))

    async def _undrain(self, client: AsyncClient, pool: str) -> None:
        for _ in range(_TRIES_MAX):
            self._undrained += 1
            name = f"t{self._undrained}"
            if await self._told(name, Act.UNDRAIN, pool, client.undrain_pool(pool)):
                return
            await asyncio.sleep(0.5)

    async def _do(self, client: AsyncClient, deed: Deed) -> None:
        await asyncio.sleep(deed.at_ms / 1000)
        await asyncio.gather(
            self._act(client, deed), *(self._look(client, look_ms) for look_ms in deed.looks_ms)
        )

    async def _act(self, client: AsyncClient, deed: Deed) -> None:
        if deed.act is Act.RELOAD:
            async with self._editing:
                await self._reload(client, deed)
        else:
            await self._told(deed.name, deed.act, deed.subject, self._call(client, deed))

    async def _told(self, name: str, act: Act, subject: str, call: Awaitable[object]) -> bool:
        """Notes what is asked and answered; False when no answer came."""
        self._tell(o.ActSent, act=name, kind=act.value, subject=subject)
        asked_ms = self._recorder.now_ms
        try:
            await call
        except _REFUSALS as error:
            self._tell(o.ActRefused, act=name, reason=error.reason)
        except errors.LlamaOrchError as error:
            self._tell(o.ActUnknown, act=name, reason=error.reason)
            return False
        else:
            done = {"act": name, "kind": act.value, "subject": subject}
            self._tell(o.ActDone, **done, asked_ms=asked_ms)
        return True

    def _call(self, client: AsyncClient, deed: Deed) -> Awaitable[object]:
        match deed.act:
            case Act.DRAIN:
                pool = "nowhere" if deed.wrong else deed.subject
                return client.drain_pool(pool, timeout_s=deed.after_ms / 1000)
            case Act.UNDRAIN:
                return client.undrain_pool(deed.subject)
            case Act.RENEW:
                pool = "nowhere" if deed.wrong else deed.subject
                return _renewed(client, pool, deed.after_ms / 1000)
            case _:
                seen = self._revisions.get(deed.subject, 1)
                revision = 0 if deed.ahead is None else seen + deed.ahead
                return _change(client.catalog, deed, revision)

    async def _reload(self, client: AsyncClient, deed: Deed) -> None:
        """Edits the file and has it read; a file that was wrong becomes what it was."""
        mark = self._file.edit(capacity=deed.capacity, wrong=deed.wrong)
        self._tell(o.FileWritten, mark=mark, good=not deed.wrong)
        await self._told(deed.name, deed.act, mark, _reloaded(client))
        if deed.wrong:
            self._tell(o.FileWritten, mark=self._file.mend(), good=True)

    # --- looking

    async def _look(self, client: AsyncClient, after_ms: int) -> None:
        await asyncio.sleep(after_ms / 1000)
        await asyncio.gather(
            self._look_at_pools(client), *(self._look_at(client, each) for each in (MODEL, OTHER))
        )

    async def _look_at(self, client: AsyncClient, model: str) -> None:
        seen = {"model": model, "asked_ms": self._recorder.now_ms}
        try:
            found = await client.catalog.get(model)
        except errors.NotFoundError:
            self._tell(o.ModelSeen, **seen, state="", revision=0)
        except errors.LlamaOrchError:
            return
        else:
            self._revisions[model] = found.revision
            if found.model_id == model:
                state = found.state.value
                self._tell(o.ModelSeen, **seen, state=state, revision=found.revision)

    async def _look_at_pools(self, client: AsyncClient) -> None:
        asked_ms = self._recorder.now_ms
        try:
            pools = await client.pools()
        except errors.LlamaOrchError:
            return
        for pool in pools:
            if "a restart would forget it" not in pool.state_reason:
                draining = pool.drain is not None
                self._tell(o.PoolSeen, pool=pool.pool_id, draining=draining, asked_ms=asked_ms)

    def _tell(self, event: Callable[..., o.OperatorEvent], /, **fields: object) -> None:
        self._recorder.record(self.process, event, **fields)


def _change(catalog: AsyncCatalog, deed: Deed, revision: int) -> Awaitable[object]:
    """A change of the catalog; 0 is whatever revision there is."""
    model = deed.subject
    match deed.act:
        case Act.REGISTER:
            return catalog.register(_model(deed))
        case Act.UPDATE:
            return catalog.update(_model(deed, revision))
        case Act.RETIRE:
            grace_s = deed.after_ms / 1000
            return catalog.retire(model, grace_s=grace_s, replaced_by=deed.name, revision=revision)
        case Act.ACTIVATE:
            return catalog.activate(model, revision=revision)
        case _:
            return catalog.delete(model, revision=revision, force=deed.capacity > 1)


async def _reloaded(client: AsyncClient) -> None:
    """Raises where the file has problems: then nothing has changed."""
    reload = await client.reload_config()
    if reload.problems:
        message = "; ".join(reload.problems)
        raise errors.InvalidParamsError(errors.ErrorDetail(message, "INVALID_CONFIG"))


async def _renewed(client: AsyncClient, pool: str, timeout_s: float) -> None:
    """Raises where the pool is not known to have another engine."""
    reloaded = await client.reload_pool(pool, timeout_s=timeout_s)
    if reloaded.outcome is not ReloadOutcome.DONE:
        detail = errors.ErrorDetail(reloaded.detail, reloaded.outcome.value)
        raise errors.UnavailableError(detail)


def _model(deed: Deed, revision: int = 0) -> CatalogModel:
    """What is stated of a model, with the act that states it."""
    return CatalogModel(
        model_id=deed.subject,
        aliases=(ALIAS,) if deed.capacity > 1 else (),
        engines=("simulated",) if deed.subject == MODEL and deed.after_ms else (),
        labels={"act": deed.name},
        revision=revision,
    )


async def _sleep_ms(delay_ms: float) -> None:
    await asyncio.sleep(delay_ms / 1000)
