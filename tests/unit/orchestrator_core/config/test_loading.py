"""Configuration: sane defaults, one file, and every problem named with its key."""

from pathlib import Path

import pytest

from orchestrator_core.config.derived import core_config
from orchestrator_core.config.loading import load, load_config
from orchestrator_core.config.problems import ConfigError
from orchestrator_core.config.schema import Config
from orchestrator_core.core.config import CoreConfig
from tests.unit.orchestrator_core.config.problems import problems_of

OTLP = "http://127.0.0.1:4317"


def test_without_a_file_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The core's bounds have one home each: both defaults agree."""
    monkeypatch.chdir(tmp_path)

    config = load([], {})

    assert core_config(config) == CoreConfig()
    assert config.listen == "127.0.0.1:7070"
    assert config.metrics_listen == ""
    assert config.store.path == str(tmp_path / "orchestratord.db")
    assert config.jobs.output_bytes_per_job == 1024 * 1024


def test_the_file_in_the_working_directory_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like pool-managerd, and without an argument."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "orchestratord.toml").write_text("[queue]\ncapacity = 7\n", encoding="utf-8")

    assert load([], {}).queue.capacity == 7
    assert load(["--set", "queue.capacity=9"], {}).queue.capacity == 9


def test_a_typing_mistake_in_an_identitys_table_is_named(tmp_path: Path) -> None:
    """HME-003: also in a table whose name the operator chose."""
    problem = problems_of("[throttle.identities.alice]\nqueued_job = 1", tmp_path)

    assert problem == (
        "throttle.identities.alice.queued_job: unknown key; did you mean "
        "throttle.identities.NAME.queued_jobs?"
    )


@pytest.mark.parametrize(
    ("text", "key", "suggestion"),
    [
        ("lisen = 'x'", "lisen", "listen"),
        ("[queue]\ncapcity = 1", "queue.capcity", "queue.capacity"),
        ("[quue]\ncapacity = 1", "quue", "queue"),
        ("stale_after_ms = 1", "stale_after_ms", "placement.stale_after_ms"),
        ("[jobs]\ncapacity = 1", "jobs.capacity", "queue.capacity"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(
    text: str, key: str, suggestion: str, tmp_path: Path
) -> None:
    """HME-003: a typing mistake never runs with a default."""
    assert problems_of(text, tmp_path) == f"{key}: unknown key; did you mean {suggestion}?"


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    """Nobody fixes one only to meet the next."""
    text = """
    listen = "here"
    log_level = "loud"
    [queue]
    capacity = 0
    policy = "random"
    [jobs]
    attempts_max = "many"
    """

    lines = problems_of(text, tmp_path).splitlines()

    keys = {line.partition(":")[0] for line in lines}
    assert keys == {"listen", "log_level", "queue.capacity", "queue.policy", "jobs.attempts_max"}


def test_a_stale_bound_below_two_reports_names_both_keys(tmp_path: Path) -> None:
    """One late report must not look like an outage."""
    text = "[placement]\nstale_after_ms = 1999\n[pools]\nheartbeat_timeout_ms = 1500"

    problems = problems_of(text, tmp_path).splitlines()

    assert [problem.partition(":")[0] for problem in problems] == [
        "placement.stale_after_ms",
        "pools.heartbeat_timeout_ms",
    ]
    assert all("pools.report_interval_ms" in problem for problem in problems)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ("queue.retry_after_min_ms", "queue.retry_after_max_ms"),
        ("placement.refusal_backoff_ms", "placement.refusal_backoff_max_ms"),
        ("jobs.output_bytes_per_job", "jobs.output_bytes_total"),
    ],
)
def test_a_least_value_above_the_largest_names_both_keys(low: str, high: str) -> None:
    """A pair of bounds must leave room."""
    with pytest.raises(ConfigError, match=f"{low}.*{high}"):
        load_config(None, {}, [f"{low}=5000", f"{high}=4999"])


def test_a_port_beyond_the_last_is_refused() -> None:
    """The pattern alone would let it through."""
    with pytest.raises(ConfigError, match="listen: 70000 is not a port"):
        load_config(None, {}, ["listen=127.0.0.1:70000"])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Absent, and not TOML."""
    with pytest.raises(ConfigError, match=r"absent\.toml: No such file"):
        load_config(tmp_path / "absent.toml", {})
    assert "not valid TOML" in problems_of("listen =", tmp_path)
    binary = tmp_path / "b.toml"
    binary.write_bytes(b"# a\xff")
    with pytest.raises(ConfigError, match="not valid TOML: byte 4 is not UTF-8: save it as text"):
        load_config(binary, {})


def test_the_journal_lies_beside_the_file_that_names_it(tmp_path: Path) -> None:
    """The same file finds the same journal from every working directory."""
    path = tmp_path / "o.toml"
    path.write_text("[store]\npath = 'state/jobs.db'\n", encoding="utf-8")

    assert load_config(path, {}).store.path == str(tmp_path / "state" / "jobs.db")


@pytest.mark.parametrize(
    ("environ", "traces", "metrics"),
    [
        ({}, "", ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": OTLP}, OTLP, OTLP),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": OTLP}, OTLP, ""),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": OTLP}, "", OTLP),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": OTLP, "OTEL_METRICS_EXPORTER": "none"}, OTLP, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": OTLP, "OTEL_SDK_DISABLED": "true"}, "", ""),
    ],
)
def test_exporters_are_on_when_the_environment_names_an_endpoint(
    environ: dict[str, str], traces: str, metrics: str
) -> None:
    """OpenTelemetry's own variables, as its specification has them."""
    config = load_config(None, environ)

    assert (config.otlp_traces_endpoint, config.otlp_metrics_endpoint) == (traces, metrics)


def test_a_protocol_that_is_not_there_is_refused() -> None:
    """Better than spans that nobody receives."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": OTLP, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}

    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_PROTOCOL: http/protobuf") as raised:
        load_config(None, environ)

    assert len(raised.value.problems) == 1


def test_endpoints_do_not_belong_into_the_file(tmp_path: Path) -> None:
    """The message says where they belong."""
    text = problems_of("otlp_traces_endpoint = 'x'", tmp_path)

    assert text.startswith("otlp_traces_endpoint: set OTEL_EXPORTER_OTLP_ENDPOINT")


@pytest.mark.parametrize("override", ["queue.capacity", "=3", "listen.port=3"])
def test_a_malformed_override_is_named(override: str) -> None:
    """An operator sees what to write."""
    with pytest.raises(ConfigError, match=f"--set {override}: "):
        load_config(None, {}, ["listen=127.0.0.1:1", override])


def test_a_configuration_cannot_be_changed() -> None:
    """It is read once and passed down."""
    with pytest.raises(ValueError, match="frozen"):
        Config().queue.capacity = 3  # type: ignore[misc]


@pytest.mark.parametrize("word", ["mine.toml", "start", "--port"])
def test_a_word_that_means_nothing_is_answered_with_what_may_be_meant(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A configuration or a setting."""
    with pytest.raises(SystemExit) as caught:
        load([word], {})

    assert caught.value.code == 2
    assert f"what is {word}? A configuration is named by --config FILE, a setting by --set" in (
        capsys.readouterr().err
    )
