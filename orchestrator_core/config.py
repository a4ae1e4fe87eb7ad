"""Configuration of orchestratord: defaults, one TOML file, `--set`, and OpenTelemetry's variables.

Only here the command line and the environment are read. `load` returns one frozen object or raises
`ConfigError` with every problem. HME-003, ORCH-3030.
"""

import argparse
import difflib
import importlib.metadata
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from orchestrator_core.auth.tokens import Role, TokenEntry, Tokens
from orchestrator_core.config_schema import (
    ENVIRONMENT_KEYS,
    AdmissionTable,
    Config,
    ThrottleTable,
)
from orchestrator_core.config_text import keys, reference, to_toml
from orchestrator_core.core.config import (
    CoreConfig,
    Guardrails,
    Limits,
    Price,
    QueuePolicy,
    Scorer,
    SessionBudgets,
    ThrottleConfig,
)

__all__ = [
    "Config",
    "ConfigError",
    "core_config",
    "load",
    "load_config",
    "reference",
    "to_toml",
    "tokens",
]

DEFAULT_FILE = Path("orchestratord.toml")
PROGRAM = "orchestratord"

# Source: gRPC 1.85, `http` and `call` print every header of every call.
GRPC_TRACE_PROBLEM = (
    "GRPC_TRACE: with this variable gRPC writes the tokens of all callers to the log: unset it, or "
    "look for what you look for without auth.tokens"
)
_ADDRESS_HINT = "write HOST:PORT, e.g. 127.0.0.1:7070"
# What was written instead is not shown: it may be the token.
_PATTERN_HINTS = {
    "sha256": "not a hash of 64 digits from 0 to f; `orchestratord token` prints one",
    "public_key": "not an Ed25519 key; `openssl pkey -pubout` prints it in PEM form",
    "[key]": "a name has 1 to 64 letters, digits, '.', '_' or '-'",
    "host_id": "1 to 128 characters of A-Z, a-z, 0-9, '.', '_', ':' and '-'",
}

_POLICIES = {**{policy.value: policy for policy in QueuePolicy}, "reject-new": QueuePolicy.REJECT}


class ConfigError(Exception):
    """The configuration cannot be used. `problems` names every key that is wrong, and why."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def tokens(config: Config) -> Tokens:
    """The tokens that a configuration names."""
    entries = (
        TokenEntry(
            name,
            Role(each.role),
            each.sha256,
            each.host_id,
            None if each.expires is None else each.expires.timestamp(),
        )
        for name, each in config.auth.tokens.items()
    )
    return Tokens(entries, jobs_shared=config.auth.jobs_visible_to == "all")


def core_config(config: Config) -> CoreConfig:
    """The bounds of the core that a configuration asks for."""
    queue, jobs, placement = config.queue, config.jobs, config.placement
    return CoreConfig(
        queue_capacity=queue.capacity,
        queue_policy=_POLICIES[queue.policy],
        lanes_max=queue.lanes_max,
        pools_max=config.pools.max,
        finished_jobs_max=jobs.finished_max,
        retention_ms=jobs.retention_ms,
        attempts_max=jobs.attempts_max,
        stale_after_ms=placement.stale_after_ms,
        reattach_grace_ms=config.pools.reattach_grace_ms,
        host_retention_ms=config.pools.retention_ms,
        cancel_timeout_ms=config.pools.cancel_timeout_ms,
        queue_timeout_ms=queue.timeout_ms,
        wall_timeout_ms=jobs.wall_timeout_ms,
        idle_timeout_ms=jobs.idle_timeout_ms,
        disconnect_grace_ms=jobs.disconnect_grace_ms,
        refusal_backoff_ms=placement.refusal_backoff_ms,
        refusal_backoff_max_ms=placement.refusal_backoff_max_ms,
        retry_after_min_ms=queue.retry_after_min_ms,
        retry_after_max_ms=queue.retry_after_max_ms,
        idempotency_ttl_ms=jobs.idempotency_ttl_ms,
        idempotency_max=jobs.idempotency_max,
        session_ttl_ms=config.sessions.ttl_ms,
        sessions_max=config.sessions.max,
        session_turns_max=config.sessions.turns_max,
        session_budgets=SessionBudgets(
            config.sessions.budget_tokens,
            config.sessions.budget_time_ms,
            config.sessions.budget_cost_micros,
        ),
        batch_every=queue.batch_every,
        class_weights=(
            (queue.interactive_weight, queue.batch_weight) if queue.batch_weight else None
        ),
        token_fairness=queue.token_fairness,
        performance_scoring=placement.performance_scoring,
        scorer=Scorer(placement.scorer),
        decline_offers=placement.decline_offers,
        decline_max_ms=placement.decline_max_ms,
        deadline_aware=config.admission.deadline_aware,
        min_on_time_probability=config.admission.min_on_time_probability,
        catalog_required=config.catalog.required,
        catalog_strict_digest=config.catalog.unknown_digest == "refuse",
        catalog_models_max=config.catalog.models_max,
        throttle=_throttle(config.throttle),
        guardrails=_guardrails(config.admission),
    )


def _guardrails(table: AdmissionTable) -> Guardrails:
    general = table.price_micros_per_1k_tokens
    prices = {
        model_id: Price(own.input_micros_per_1k_tokens, own.output_micros_per_1k_tokens)
        for model_id, own in table.prices.items()
    }
    return Guardrails(table.token_bytes_max, Price(general, general), prices)


def _throttle(table: ThrottleTable) -> ThrottleConfig:
    default = Limits(table.requests_per_min, table.tokens_per_min, table.queued_jobs)
    identities = {
        name: replace(default, **own.model_dump(exclude_none=True))
        for name, own in table.identities.items()
    }
    return ThrottleConfig(default, identities, table.identities_max)


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
            problems.extend(_problems(tuple(item["loc"]), str(item["type"]), str(item["msg"])))
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


# --- reading


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


# --- problems


def _problems(location: tuple[int | str, ...], kind: str, message: str) -> list[str]:
    name = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        return [f"{name}: unknown key; did you mean {_nearest(location)}?"]
    if not name:
        return message.removeprefix("Value error, ").split("\n")
    if kind == "string_pattern_mismatch":
        return [f"{name}: {_PATTERN_HINTS.get(str(location[-1]), _ADDRESS_HINT)}"]
    if location[-1] == "expires":
        return [f"{name}: write a date and time with its offset, e.g. 2027-01-31T00:00:00Z"]
    return [f"{name}: {message[0].lower()}{message[1:]}"]


def _nearest(location: tuple[int | str, ...]) -> str:
    """The same key in another table, else the key of its own table that looks most like it."""
    table, key = "".join(f"{part}." for part in location[:-1]), str(location[-1])
    known = [each.path for each in keys()]
    for name in known:
        if name.rpartition(".")[2] == key:
            return name
    beside = {
        table + name.removeprefix(table).partition(".")[0]: None
        for name in known
        if name.startswith(table)
    }
    return max(
        beside or known, key=lambda name: difflib.SequenceMatcher(a=table + key, b=name).ratio()
    )
