"""Turns a `launch` table into an engine that runs below us: one way for all attaching adapters."""

import secrets
from collections.abc import Callable, Mapping

from pydantic import SecretStr

from pool_managerd.config.launch import AttachingTable
from pool_managerd.config.schema import PoolTable
from pool_managerd.devices.cpu import DEVICE_ID as CPU_DEVICE_ID
from pool_managerd.engines.engine_log import LogSettings
from pool_managerd.engines.launched import LaunchedEngine, LaunchSpec, filled
from pool_managerd.engines.port import Engine, PreloadError

MakeAttached = Callable[[PoolTable], Engine]
"""Makes the adapter of a pool whose engine has an address and no `launch` table."""


def launched(table: PoolTable, model_ref: str, log: LogSettings, attach: MakeAttached) -> Engine:
    """A new incarnation of a pool's server; `model_ref` replaces its model unless empty.

    Raises:
        PreloadError: when the command takes no model, or would take this one for an option.
    """
    engine = table.engine
    assert isinstance(engine, AttachingTable), "only an engine with an address is launched"
    launch = engine.launch
    assert launch is not None, "it has a launch table"
    if model_ref and not launch.uses("model_path"):
        raise PreloadError(
            [f"pool {table.pool_id} loads no model by reference: its command has no {{model_path}}"]
        )
    model_path = model_ref.removeprefix("file:") or engine.model_path
    if model_ref and model_path.startswith("-"):
        # It may come from afar, and the server would take it for one of its options.
        raise PreloadError([f"a model reference must not begin with a hyphen: {model_path}"])
    api_key = engine.api_key.get_secret_value()
    if not api_key and launch.uses("api_key"):
        # Nobody else is to use a server that is ours.
        api_key = secrets.token_urlsafe(32)
    shown = shown_devices(table)
    devices = ",".join(shown)
    values = {
        **table.launch_values(),
        "model_path": model_path,
        "model_id": engine.model_id,
        "slots": str(engine.slots or 1),
        "devices": devices,
        "device_count": str(max(1, len(shown))),
        "api_key": api_key,
        "pool_id": table.pool_id,
    }
    visible = {"CUDA_VISIBLE_DEVICES": devices} if devices else {}
    spec = LaunchSpec(
        command=launch.command,
        values=values,
        env={**visible, **launch.env},
        pass_env=launch.pass_env,
        cwd=launch.cwd,
        secrets=(api_key,) if api_key else (),
        attach_timeout_ms=launch.attach_timeout_ms,
        stop_grace_ms=launch.stop_grace_ms,
        log=log,
    )
    changed = engine.model_copy(
        update={"model_path": model_path, "api_key": SecretStr(api_key), "launch": None}
    )
    return LaunchedEngine(
        spec, lambda chosen: attach(table.model_copy(update={"engine": _at(changed, chosen)}))
    )


def shown_devices(table: PoolTable) -> tuple[str, ...]:
    """The pool's devices as a driver is told to show them: the processor is none of them."""
    return tuple(device for device in table.devices if device != CPU_DEVICE_ID)


def _at(engine: AttachingTable, values: Mapping[str, str]) -> AttachingTable:
    """The engine with its addresses, in whatever keys they stand, as they were chosen."""
    texts = {
        name: value
        for name in type(engine).model_fields
        if isinstance(value := getattr(engine, name), str)
    }
    texts[engine.ADDRESS_KEY] = texts[engine.ADDRESS_KEY] or engine.OWN_ADDRESS
    return engine.model_copy(
        update={name: filled(text, values) for name, text in texts.items() if "{" in text}
    )
