"""Turns configuration into engines and devices: the one place that knows every adapter."""

import functools
from pathlib import Path
from typing import assert_never

from pool_managerd.config.engines import MockTable, OllamaTable, OpenAiTable, TritonTable
from pool_managerd.config.launch import AttachingTable
from pool_managerd.config.llama import EmbeddedTable, LlamaServerTable
from pool_managerd.config.schema import Config, PoolTable
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
    return functools.partial(make_engine, logs=config.engine_logs)


def make_engine(  # noqa: PLR0911 - one return per kind
    table: PoolTable, model_ref: str, logs: EngineLogsTable | None = None
) -> Engine:
    """A new incarnation of the pool's engine.

    `model_ref` replaces the configured model unless empty.

    Raises:
        PreloadError: when the engine's model cannot be chosen by reference.
    """
    engine = table.engine
    log = _log_settings(table.pool_id, logs or EngineLogsTable())
    if isinstance(engine, AttachingTable) and engine.launch is not None:
        return launched(table, model_ref, log, lambda attached: make_engine(attached, ""))
    if model_ref and not isinstance(engine, EmbeddedTable):
        raise PreloadError([f"an engine of kind {engine.kind} loads no model by reference"])
    match engine:
        case EmbeddedTable():
            return _embedded(engine, model_ref, shown_devices(table), table.tensor_split, log)
        case LlamaServerTable():
            return _llama_server(engine)
        case OpenAiTable():
            return _openai(engine)
        case OllamaTable():
            return _ollama(engine)
        case MockTable():
            return _mock(engine)
        case TritonTable():
            return _triton(engine)
        case _:
            assert_never(engine)


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


def _llama_server(table: LlamaServerTable) -> Engine:
    return LlamaServerEngine(
        LlamaServerConfig(
            base_url=table.base_url,
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


def _openai(table: OpenAiTable) -> Engine:
    return OpenAiEngine(
        OpenAiConfig(
            base_url=table.base_url,
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


def _triton(table: TritonTable) -> Engine:
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
