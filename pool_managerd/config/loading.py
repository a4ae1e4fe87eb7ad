"""Reads the configuration: one TOML file, and the environment. HME-003, ORCH-3030.

This module alone reads settings from the environment. `load_config` returns one frozen object or
raises `ConfigError` with every problem.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr, ValidationError

from pool_managerd.config.engines import EngineTable
from pool_managerd.config.launch import AttachingTable, LaunchTable
from pool_managerd.config.llama import LAUNCH_FILES, EmbeddedTable
from pool_managerd.config.problems import ConfigError, problem
from pool_managerd.config.schema import Config, PoolTable
from pool_managerd.config.security import resolved_access, resolved_files, trace_problems


def load_config(path: Path, environ: Mapping[str, str] | None = None) -> Config:
    """Reads and checks the configuration file `path`.

    Raises:
        ConfigError: naming every problem.
    """
    env = os.environ if environ is None else environ
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = "name one by --config FILE; `pool-managerd init` writes one for this machine"
        raise ConfigError([f"{path}: there is no such file: {hint}"]) from error
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror or error}"]) from error
    except UnicodeDecodeError as error:
        where = f"{path}: not valid TOML: byte {error.start + 1} is not UTF-8"
        raise ConfigError([f"{where}: save it as text in UTF-8, or name another file"]) from error
    except (ValueError, RecursionError) as error:
        # Also of numbers too long to be read, of arrays without end.
        raise ConfigError([f"{path}: not valid TOML: {error}"]) from error
    _refuse_file_secrets(raw)
    _refuse_zeros(raw, "")
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(
            [problem(item, Config) for item in error.errors(include_url=False)]
        ) from error
    return _with_environment(config, path.resolve().parent, env)


def _with_environment(config: Config, base: Path, env: Mapping[str, str]) -> Config:
    problems: list[str] = []
    pools = tuple(
        pool.model_copy(update={"engine": _resolved(pool, base, env, problems)})
        for pool in config.pools
    )
    endpoint, metrics_endpoint = (
        env.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        for signal in ("TRACES", "METRICS")
    )
    logs = config.engine_logs
    if logs.directory:
        logs = logs.model_copy(update={"directory": str(base / logs.directory)})
    folders = {name: getattr(config.models, name) for name in ("directory", "cache_directory")}
    models = config.models.model_copy(
        update={name: str(base / _at_home(name, path, problems)) for name, path in folders.items()}
    )
    named = config.outbound.hf_token_env
    token = _held("outbound.hf_token_env", named, env.get(named, ""), problems)
    problems.extend(trace_problems(config.link, config.auth, env))
    link = config.link.model_copy(update=resolved_access(config.link, base, env, problems))
    tls = config.tls.model_copy(update=resolved_files(config.tls, base))
    if problems:
        raise ConfigError(problems)
    return config.model_copy(
        update={
            "pools": pools,
            "link": link,
            "tls": tls,
            "engine_logs": logs,
            "models": models,
            "outbound": config.outbound.model_copy(update={"hf_token": token}),
            "otlp_endpoint": endpoint or "",
            "otlp_metrics_endpoint": metrics_endpoint or "",
        }
    )


def _at_home(key: str, path: str, problems: list[str]) -> Path:
    """A folder of models with the home folder in place of a `~`; there may be none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        problems.append(f"models.{key}: {path}: this home folder is not known; name another one")
        return Path(path)


def _resolved(
    pool: PoolTable, base: Path, env: Mapping[str, str], problems: list[str]
) -> EngineTable:
    match pool.engine:
        case EmbeddedTable() as engine:
            return engine.model_copy(update=_paths(engine, base))
        case AttachingTable() as engine:
            secret = _secret(pool, engine, env, problems)
            problems.extend(_unset(pool, engine, env))
            problems.extend(_untold(pool, engine))
            changes = {"api_key": secret, "launch": _launch(engine, base)}
            return engine.model_copy(update=changes | _paths(engine, base))
        case engine:
            return engine


def _paths(engine: EmbeddedTable | AttachingTable, base: Path) -> dict[str, object]:
    """Settings that name files, which begin at the folder of the configuration."""
    names = ("model_path", *LAUNCH_FILES)
    return {name: str(base / path) for name in names if (path := getattr(engine, name, ""))}


def _secret(
    pool: PoolTable, engine: AttachingTable, env: Mapping[str, str], problems: list[str]
) -> SecretStr:
    secret = env.get(engine.api_key_env, "") if engine.api_key_env else ""
    if engine.api_key_env and not secret:
        problems.append(
            f"pools.{pool.pool_id}.engine.api_key_env: the environment variable "
            f"{engine.api_key_env} is not set"
        )
    key = f"pools.{pool.pool_id}.engine.api_key_env"
    return _held(key, engine.api_key_env, secret, problems)


def _held(key: str, name: str, value: str, problems: list[str]) -> SecretStr:
    """The secret in a variable, without the line break that files and stores of secrets add."""
    secret = value.strip()
    if not (secret.isascii() and secret.isprintable()):
        problems.append(
            f"{key}: the environment variable {name} holds a character that no header takes"
        )
    return SecretStr(secret)


def _unset(pool: PoolTable, engine: AttachingTable, env: Mapping[str, str]) -> list[str]:
    names = engine.launch.pass_env if engine.launch is not None else ()
    return [
        f"pools.{pool.pool_id}.engine.launch.pass_env: the environment variable {name} is not set"
        for name in names
        if name not in env
    ]


def _untold(pool: PoolTable, engine: AttachingTable) -> list[str]:
    """A server that is not told its port is waited for at another one, for minutes."""
    if engine.launch is None or engine.launch.uses("port"):
        return []
    lacking = "neither command nor env holds {port}: the server has to be told which is chosen"
    return [f"pools.{pool.pool_id}.engine.launch: {lacking}"]


def _launch(engine: AttachingTable, base: Path) -> LaunchTable | None:
    if engine.launch is None or not engine.launch.cwd:
        return engine.launch
    return engine.launch.model_copy(update={"cwd": str(base / engine.launch.cwd)})


def _refuse_zeros(value: object, key: str) -> None:
    """Paths, programs and variables end at a character NUL, and raise errors without a name."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _refuse_zeros(name, f"{key}.{name}" if key else name)
            _refuse_zeros(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _refuse_zeros(inner, f"{key}[{number}]")
    elif isinstance(value, str) and "\0" in value:
        shown = key.replace("\0", "\\u0000")
        raise ConfigError([f"{shown}: holds a character NUL (\\u0000), which no setting may"])


def _refuse_file_secrets(raw: dict[str, object]) -> None:
    pools = raw.get("pools")
    for number, pool in enumerate(pools if isinstance(pools, list) else []):
        engine = pool.get("engine") if isinstance(pool, dict) else None
        if isinstance(engine, dict) and "api_key" in engine:
            key = f"pools[{number}].engine.api_key"
            raise ConfigError([f"{key}: set api_key_env: secrets come from the environment"])
    outbound = raw.get("outbound")
    if isinstance(outbound, dict) and "hf_token" in outbound:
        raise ConfigError(
            ["outbound.hf_token: set hf_token_env: secrets come from the environment"]
        )
    link = raw.get("link")
    if isinstance(link, dict) and "token" in link:
        raise ConfigError(["link.token: set token_env or token_file: no secret is in this file"])
    if raw.keys() & {"otlp_endpoint", "otlp_metrics_endpoint"}:
        raise ConfigError(["otlp_endpoint: set OTEL_EXPORTER_OTLP_ENDPOINT in the environment"])
