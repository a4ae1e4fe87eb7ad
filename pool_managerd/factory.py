"""Turns configuration into engines and devices: the one place that knows every adapter."""

import functools
import json
from pathlib import Path
from typing import assert_never
from urllib.parse import urlsplit

from pool_managerd.config.engines import (
    EngineTable,
    MockTable,
    OllamaTable,
    OpenAiTable,
    TritonTable,
)
from pool_managerd.config.launch import AttachingTable
from pool_managerd.config.llama import EmbeddedTable, LlamaServerTable
from pool_managerd.config.schema import Config, PoolTable
from pool_managerd.config.security import loopback
from pool_managerd.config.supervision import EngineLogsTable
from pool_managerd.core.mask import named_ids
from pool_managerd.devices.cpu import CpuDevices
from pool_managerd.devices.nvml import NvmlDevices
from pool_managerd.devices.port import DeviceSource
from pool_managerd.engines.embedded import EmbeddedConfig, EmbeddedEngine
from pool_managerd.engines.engine_log import LogSettings
from pool_managerd.engines.llama_server import LlamaServerConfig, LlamaServerEngine
from pool_managerd.engines.mock import MockConfig, MockEngine
from pool_managerd.engines.mock_script import MockScript
from pool_managerd.engines.ollama import OllamaConfig, OllamaEngine
from pool_managerd.engines.openai import OpenAiConfig, OpenAiEngine
from pool_managerd.engines.port import Engine, PreloadError
from pool_managerd.engines.triton import TritonConfig, TritonEngine
from pool_managerd.engines.triton_client import Target
from pool_managerd.launching import launched, shown_devices
from pool_managerd.pools.incarnation import EngineFactory
from pool_managerd.telemetry import Metrics


def make_devices(config: Config, metrics: Metrics | None = None) -> DeviceSource:
    """The configured source of devices; nothing is read yet."""
    if config.devices == "nvml":
        expected = {entry for pool in config.pools for entry in named_ids(pool.devices)}
        return NvmlDevices(config.device_interval_ms, metrics, sorted(expected))
    return CpuDevices()


def nvidia_devices() -> DeviceSource:
    """The GPUs of this machine, where nothing is configured yet; nothing is read yet."""
    return NvmlDevices()


def engine_factory(config: Config) -> EngineFactory:
    """Makes the engines of a host as it is configured."""
    return functools.partial(make_engine, logs=config.engine_logs, host_id=config.host_id)


def make_engine(
    table: PoolTable, model_ref: str, logs: EngineLogsTable | None = None, host_id: str = ""
) -> Engine:
    """A new incarnation of the pool's engine.

    `model_ref` replaces the configured model unless empty.

    Raises:
        PreloadError: when the engine's model cannot be chosen by reference.
    """
    engine = table.engine
    log = _log_settings(table.pool_id, logs or EngineLogsTable())
    if isinstance(engine, AttachingTable) and engine.launch is not None:
        command = engine.launch.command

        def attach(chosen: PoolTable) -> Engine:
            assert isinstance(chosen.engine, AttachingTable), "it is the same engine"
            # Its address is another one at each start, and it is the same server.
            own = (host_id, table.pool_id, chosen.engine.model_path, *command)
            return _attached(chosen.engine, json.dumps(own))

        return launched(table, model_ref, log, attach)
    if model_ref and not isinstance(engine, EmbeddedTable):
        raise PreloadError([f"an engine of kind {engine.kind} loads no model by reference"])
    match engine:
        case EmbeddedTable():
            return _embedded(engine, model_ref, shown_devices(table), table.tensor_split, log)
        case MockTable():
            return _mock(engine)
        case _:
            return _attached(engine, _where(engine, host_id))


def _attached(engine: EngineTable, identity: str) -> Engine:
    """The adapter of a server that has an address; `identity` tells it from all others."""
    match engine:
        case LlamaServerTable():
            return _llama_server(engine, identity)
        case OpenAiTable():
            return _openai(engine, identity)
        case OllamaTable():
            return _ollama(engine)
        case TritonTable():
            return _triton(engine, identity)
        case EmbeddedTable() | MockTable():
            raise AssertionError("it has no address")
        case _:
            assert_never(engine)


def _where(engine: AttachingTable, host_id: str) -> str:
    """The address of a server, with its host's id where every host has such an address."""
    address = str(getattr(engine, engine.ADDRESS_KEY))
    host = urlsplit(address if "://" in address else f"//{address}").hostname
    return f"{host_id} {address}" if loopback(f"{host}:0") else address


def _log_settings(pool_id: str, logs: EngineLogsTable) -> LogSettings:
    path = Path(logs.directory) / f"{pool_id}.log" if logs.directory else None
    return LogSettings(lines=logs.lines, path=path, file_bytes=logs.file_bytes, files=logs.files)


def _embedded(
    table: EmbeddedTable,
    model_ref: str,
    devices: tuple[str, ...],
    tensor_split: tuple[int, ...],
    log: LogSettings,
) -> Engine:
    return EmbeddedEngine(
        EmbeddedConfig(
            model_path=model_ref.removeprefix("file:") or table.model_path,
            model_id=table.model_id,
            slots=table.slots,
            ctx_per_slot=table.ctx_per_slot,
            threads=table.threads,
            deterministic=table.deterministic,
            gpu_layers=table.gpu_layers,
            devices=devices,
            tensor_split=tensor_split,
            model_digest=table.model_digest,
            kv_type=table.kv_type,
            draft_model_path=table.draft_model_path,
            log=log,
        )
    )


def _llama_server(table: LlamaServerTable, identity: str) -> Engine:
    return LlamaServerEngine(
        LlamaServerConfig(
            base_url=table.base_url,
            identity=identity,
            api_key=table.api_key.get_secret_value(),
            model_id=table.model_id,
            slots=table.slots,
            deterministic=table.deterministic,
            model_digest=table.model_digest,
            model_path=table.model_path,
            kv_type=table.kv_type,
            drafts=bool(table.draft_model_path),
            silence_timeout_ms=table.silence_timeout_ms,
        )
    )


def _openai(table: OpenAiTable, identity: str) -> Engine:
    return OpenAiEngine(
        OpenAiConfig(
            base_url=table.base_url,
            identity=identity,
            flavor=table.flavor,
            api_key=table.api_key.get_secret_value(),
            model_id=table.model_id,
            served_model=table.served_model,
            slots=table.slots,
            ctx_max=table.ctx_max,
            deterministic=table.deterministic,
            engine_version=table.engine_version,
            model_digest=table.model_digest,
            kv_type=table.kv_type,
            drafts=bool(table.draft_model_path),
            silence_timeout_ms=table.silence_timeout_ms,
        )
    )


def _ollama(table: OllamaTable) -> Engine:
    return OllamaEngine(
        OllamaConfig(
            base_url=table.base_url,
            api_key=table.api_key.get_secret_value(),
            model_id=table.model_id,
            ollama_model=table.ollama_model,
            slots=table.slots,
            ctx_max=table.ctx_max,
            keep_alive=table.keep_alive,
            silence_timeout_ms=table.silence_timeout_ms,
        )
    )


def _mock(table: MockTable) -> Engine:
    return MockEngine(
        MockConfig(
            model_id=table.model_id,
            slots=table.slots,
            ctx_max=table.ctx_max,
            script=MockScript(**table.script.model_dump()),
            preload_shortfalls=table.preload_shortfalls,
        )
    )


def _triton(table: TritonTable, identity: str) -> Engine:
    target = Target(
        address=table.address,
        model=table.model,
        model_version=table.model_version,
        tls=table.tls,
        api_key=table.api_key.get_secret_value(),
        api_key_name=table.api_key_name,
        silence_timeout_ms=table.silence_timeout_ms,
    )
    return TritonEngine(
        TritonConfig(
            target=target,
            identity=identity,
            model_id=table.model_id,
            slots=table.slots,
            ctx_max=table.ctx_max,
            profile=table.profile,
            tensors=table.tensors,
            ignore_seed=table.ignore_seed,
            deterministic=table.deterministic,
            load=table.load,
            model_digest=table.model_digest,
            metrics_url=table.metrics_url,
            busy_metric=table.busy_metric,
            cancel_settle_ms=table.cancel_settle_ms,
        )
    )
