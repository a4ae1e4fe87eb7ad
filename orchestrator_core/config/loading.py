"""Configuration of orchestratord: defaults, one TOML file, `--set`, and OpenTelemetry's variables.

Only here the command line and the environment are read. `load` returns one frozen object or raises
`ConfigError` with every problem. HME-003, ORCH-3030.
"""

import argparse
import importlib.metadata
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from orchestrator_core.config.problems import ConfigError, sentences
from orchestrator_core.config.schema import ENVIRONMENT_KEYS, Config
from orchestrator_core.config.text import to_toml

DEFAULT_FILE = Path("orchestratord.toml")
PROGRAM = "orchestratord"

# Source: gRPC 1.85, `http` and `call` print every header of every call.
GRPC_TRACE_PROBLEM = (
    "GRPC_TRACE: with this variable gRPC writes the tokens of all callers to the log: unset it, or "
    "look for what you look for without auth.tokens"
)


@dataclass(slots=True)
class ConfigSource:
    """Where settings come from: a file, what goes over it, and the environment.

    Without a `path` the default file counts from the moment when there is one.
    """

    path: Path | None
    environ: Mapping[str, str]
    overrides: Sequence[str] = ()

    def read(self) -> Config:
        """Reads and checks everything anew.

        Raises:
            ConfigError: naming every problem.
        """
        if self.path is None and DEFAULT_FILE.is_file():
            self.path = DEFAULT_FILE.resolve()
        return load_config(self.path, self.environ, self.overrides)


def load(argv: Sequence[str], environ: Mapping[str, str]) -> Config:
    """Reads the command line (without the program's name), the file it names and the environment.

    `--help` and `--print-config` write to stdout and raise `SystemExit(0)`; a wrong command line
    raises `SystemExit(2)`.

    Raises:
        ConfigError: naming every problem.
    """
    return load_source(argv, environ)[1]


def load_source(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[ConfigSource, Config]:
    """As `load`; also tells from where the settings can be read again."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Admits, places and relays LLM jobs on the GPUs of a fleet."
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"configuration (TOML); default: {DEFAULT_FILE} if it exists, else the defaults",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set one key over the file, e.g. --set queue.capacity=500; may be repeated",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the effective configuration and exit"
    )
    version = f"%(prog)s {importlib.metadata.version('llamaorch')}"
    parser.add_argument("--version", action="version", version=version)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        named = "A configuration is named by --config FILE, a setting by --set KEY=VALUE"
        parser.error(f"what is {' '.join(unknown)}? {named}")
    source = ConfigSource(args.config and args.config.absolute(), environ, args.set)
    config = source.read()
    if args.print_config:
        sys.stdout.write(to_toml(config))
        raise SystemExit(0)
    return source, config


def load_config(
    path: Path | None, environ: Mapping[str, str], overrides: Sequence[str] = ()
) -> Config:
    """Reads and checks a file (None: only defaults), then `KEY=VALUE` overrides, then OTEL_*.

    Raises:
        ConfigError: naming every problem.
    """
    raw = {} if path is None else _read(path)
    problems: list[str] = []
    for override in overrides:
        _override(raw, override, problems)
    for key in sorted(ENVIRONMENT_KEYS & raw.keys()):
        raw.pop(key)
        problems.append(f"{key}: set OTEL_EXPORTER_OTLP_ENDPOINT in the environment instead")
    endpoints = _endpoints(environ, problems)
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            problems.extend(sentences(tuple(item["loc"]), str(item["type"]), str(item["msg"])))
        raise ConfigError(problems) from error
    if config.auth.tokens and environ.get("GRPC_TRACE"):
        problems.append(GRPC_TRACE_PROBLEM)
    if problems:
        raise ConfigError(problems)
    base = path.resolve().parent if path is not None else Path.cwd()
    store = config.store.model_copy(update={"path": str(base / config.store.path)})
    recorder = config.recorder
    if recorder.path:
        recorder = recorder.model_copy(update={"path": str(base / recorder.path)})
    artifacts = config.artifacts
    if artifacts.path:
        artifacts = artifacts.model_copy(update={"path": str(base / artifacts.path)})
    files = {name: getattr(config.tls, name) for name in ("certificate", "key", "client_ca")}
    tls = config.tls.model_copy(update={n: str(base / file) for n, file in files.items() if file})
    found = {"store": store, "recorder": recorder, "artifacts": artifacts, "tls": tls}
    return config.model_copy(update={**found, **endpoints})


def _read(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror or error}"]) from error
    except UnicodeDecodeError as error:
        where = f"{path}: not valid TOML: byte {error.start + 1} is not UTF-8"
        raise ConfigError([f"{where}: save it as text in UTF-8, or name another file"]) from error
    except (ValueError, RecursionError) as error:
        # Also of numbers too long to be read, of arrays without end.
        raise ConfigError([f"{path}: not valid TOML: {error}"]) from error


def _override(raw: dict[str, object], override: str, problems: list[str]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        problems.append(f"--set {override}: write KEY=VALUE, e.g. queue.capacity=500")
        return
    try:
        value: object = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, last = key.strip().split(".")
    for table in tables:
        inner = raw.setdefault(table, {})
        if not isinstance(inner, dict):
            problems.append(f"--set {override}: {table} is not a table")
            return
        raw = inner
    raw[last] = value


def _endpoints(environ: Mapping[str, str], problems: list[str]) -> dict[str, str]:
    """Where spans and metrics go; empty: nowhere. Source: OpenTelemetry's OTLP exporter spec."""
    endpoints = {}
    for signal, key in (("TRACES", "otlp_traces_endpoint"), ("METRICS", "otlp_metrics_endpoint")):
        general, own = "OTEL_EXPORTER_OTLP_", f"OTEL_EXPORTER_OTLP_{signal}_"
        endpoint = environ.get(f"{own}ENDPOINT") or environ.get(f"{general}ENDPOINT") or ""
        disabled = (
            environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
            or environ.get(f"OTEL_{signal}_EXPORTER", "").lower() == "none"
        )
        if disabled or not endpoint:
            endpoints[key] = ""
            continue
        name = f"{own}PROTOCOL" if environ.get(f"{own}PROTOCOL") else f"{general}PROTOCOL"
        problem = f"{name}: {environ.get(name)} is not supported; use grpc"
        if environ.get(name, "grpc") not in ("", "grpc") and problem not in problems:
            problems.append(problem)
        endpoints[key] = endpoint
    return endpoints
