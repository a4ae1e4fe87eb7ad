"""Configuration: sane defaults, one file, and every problem named with its key."""

from pathlib import Path

import pytest

from orchestrator_core.config.derived import core_config
from orchestrator_core.config.loading import load, load_config
from orchestrator_core.config.problems import ConfigError
from orchestrator_core.config.schema import Config
from orchestrator_core.config.text import reference, to_toml
from orchestrator_core.core.config import CoreConfig, Limits, QueuePolicy

DOCUMENT = Path(__file__).parents[4] / "docs" / "configuration.md"
OTLP = "http://127.0.0.1:4317"


def problems_of(text: str, tmp_path: Path, environ: dict[str, str] | None = None) -> str:
    """What is wrong with a file, one problem a line."""
    path = tmp_path / "o.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        load_config(path, environ or {})
    assert str(raised.value) == "\n".join(raised.value.problems)
    return str(raised.value)


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


def test_every_key_reaches_the_core(tmp_path: Path) -> None:
    """No bound of the core is out of an operator's reach."""
    path = tmp_path / "o.toml"
    path.write_text(
        """
        [queue]
        capacity = 2
        policy = "drop-lru"
        batch_every = 3
        interactive_weight = 4
        batch_weight = 3
        token_fairness = true
        timeout_ms = 4
        lanes_max = 5
        retry_after_min_ms = 6
        retry_after_max_ms = 7
        [admission]
        deadline_aware = true
        min_on_time_probability = 0.5
        token_bytes_max = 23
        price_micros_per_1k_tokens = 24
        [throttle]
        requests_per_min = 25
        [placement]
        performance_scoring = false
        scorer = "latency_target"
        decline_offers = false
        decline_max_ms = 23
        stale_after_ms = 8000
        refusal_backoff_ms = 9
        refusal_backoff_max_ms = 10
        [catalog]
        required = true
        unknown_digest = "refuse"
        models_max = 29
        [jobs]
        wall_timeout_ms = 11
        idle_timeout_ms = 12
        disconnect_grace_ms = 13
        retention_ms = 14
        finished_max = 15
        attempts_max = 16
        idempotency_ttl_ms = 17
        idempotency_max = 18
        [sessions]
        ttl_ms = 19
        max = 20
        turns_max = 26
        budget_tokens = 27
        [pools]
        reattach_grace_ms = 21
        retention_ms = 28
        cancel_timeout_ms = 24
        max = 22
        """,
        encoding="utf-8",
    )

    core, default = core_config(load_config(path, {})), CoreConfig()

    assert core.queue_policy is QueuePolicy.DROP_LRU
    same = [name for name in CoreConfig.__slots__ if getattr(core, name) == getattr(default, name)]
    assert same == []


def test_limits_of_one_identity_go_over_those_of_everybody(tmp_path: Path) -> None:
    """ORCH-3006: what is left out is as for everybody, and 0 lifts a limit."""
    path = tmp_path / "o.toml"
    path.write_text(
        """
        [throttle]
        requests_per_min = 1
        tokens_per_min = 2
        queued_jobs = 3
        identities_max = 4
        [throttle.identities.alice]
        tokens_per_min = 0
        [throttle.identities."bob@example"]
        queued_jobs = 30
        """,
        encoding="utf-8",
    )

    config = load_config(path, {})
    throttle = core_config(config).throttle

    assert throttle.limits("anybody") == Limits(1, 2, 3)
    assert throttle.limits("alice") == Limits(1, 0, 3)
    assert throttle.limits("bob@example") == Limits(1, 2, 30)
    assert throttle.identities_max == 4
    path.write_text(to_toml(config), encoding="utf-8")
    assert load_config(path, {}).throttle == config.throttle


def test_a_typing_mistake_in_an_identitys_table_is_named(tmp_path: Path) -> None:
    """HME-003: also in a table whose name the operator chose."""
    problem = problems_of("[throttle.identities.alice]\nqueued_job = 1", tmp_path)

    assert problem == (
        "throttle.identities.alice.queued_job: unknown key; did you mean "
        "throttle.identities.NAME.queued_jobs?"
    )


def test_reject_new_is_another_name_of_reject(tmp_path: Path) -> None:
    """Both names are in use elsewhere."""
    config = load_config(None, {}, ["queue.policy=reject-new"])

    assert core_config(config).queue_policy is QueuePolicy.REJECT


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


PUBLIC = ["0.0.0.0:7070", "[::]:7070", "192.168.1.2:0", "gpu-box:7070"]
TOKEN = f'[auth.tokens.gpu1]\nrole = "pool"\nsha256 = "{"0a" * 32}"\n'
CERTIFICATE = '[tls]\ncertificate = "a.pem"\nkey = "b.pem"\n'


@pytest.mark.parametrize("address", PUBLIC)
def test_other_machines_cannot_reach_an_unprotected_port(address: str, tmp_path: Path) -> None:
    """ORCH-3035, AUTH-1002: without tokens and TLS only the loopback is listened on."""
    without_tokens, without_tls = problems_of(f'listen = "{address}"', tmp_path).splitlines()

    assert without_tokens.startswith("listen: ")
    assert "orchestratord token" in without_tokens
    assert "tls.certificate" in without_tls
    assert "tls.allow_plaintext" in without_tls


def test_tokens_alone_do_not_open_a_port_to_others(tmp_path: Path) -> None:
    """AUTH-1002: a token that passes in the clear is everybody's."""
    problems = problems_of(f'listen = "0.0.0.0:7070"\n{TOKEN}', tmp_path)

    assert problems.startswith("listen: ")
    assert "pass in the clear" in problems


def test_tls_alone_does_not_open_a_port_to_others(tmp_path: Path) -> None:
    """AUTH-1002: encryption does not say who calls."""
    problems = problems_of(f'listen = "0.0.0.0:7070"\n{CERTIFICATE}', tmp_path)

    assert "nobody would be asked for a token" in problems


@pytest.mark.parametrize("tls", [CERTIFICATE, "[tls]\nallow_plaintext = true\n"])
def test_tokens_with_tls_or_a_stated_risk_open_a_port(tls: str, tmp_path: Path) -> None:
    """AUTH-1002: paths of certificates begin at the folder of the file."""
    path = tmp_path / "orchestratord.toml"
    path.write_text(f'listen = "0.0.0.0:7070"\n{TOKEN}{tls}', encoding="utf-8")

    config = load_config(path, {})

    assert config.listen == "0.0.0.0:7070"
    assert config.tls.certificate in ("", str(tmp_path / "a.pem"))


@pytest.mark.parametrize("address", PUBLIC)
def test_the_port_for_monitors_stays_on_this_machine(address: str, tmp_path: Path) -> None:
    """ORCH-3035: it asks nobody for a token, so tokens do not open it."""
    text = f'metrics_listen = "{address}"\n{TOKEN}{CERTIFICATE}'

    assert problems_of(text, tmp_path).startswith("metrics_listen: ")


def test_a_token_in_the_place_of_its_hash_is_not_repeated(tmp_path: Path) -> None:
    """AUTH-1008: an error names the key and the command, and shows nothing of the token."""
    text = '[auth.tokens.gpu1]\nrole = "pool"\nsha256 = "llorch_not-a-hash"\n'

    problem = problems_of(text, tmp_path)

    assert problem.startswith("auth.tokens.gpu1.sha256: ")
    assert "not-a-hash" not in problem


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[tls]\ncertificate = "a.pem"', "tls.key"),
        ('[tls]\nclient_ca = "a.pem"', "tls.client_ca"),
        (TOKEN + TOKEN.replace("gpu1", "gpu2"), "auth.tokens.gpu2"),
        (TOKEN.replace("gpu1", '"gpu 1"'), "auth.tokens.gpu 1"),
        (TOKEN.replace('"pool"', '"root"'), "auth.tokens.gpu1.role"),
    ],
)
def test_what_does_not_go_together_in_security_is_named(
    text: str, named: str, tmp_path: Path
) -> None:
    """One sentence names the key to change. AUTH-1001."""
    assert named in problems_of(text, tmp_path)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:7070", "localhost:7070", "127.9.9.9:1"])
def test_loopback_addresses_are_taken(address: str) -> None:
    """Port 0 asks for any free port."""
    assert load_config(None, {}, [f"listen={address}"]).listen == address


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


def test_the_printed_configuration_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is printed is a complete file, and the program goes no further."""
    monkeypatch.chdir(tmp_path)
    arguments = ["--set", "queue.capacity=3", "--set", 'store.path=a "b" \\c.db']
    config = load(arguments, {})

    with pytest.raises(SystemExit) as raised:
        load([*arguments, "--print-config"], {})

    assert raised.value.code == 0
    (tmp_path / "printed.toml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_config(tmp_path / "printed.toml", {}) == config


def test_a_configuration_cannot_be_changed() -> None:
    """It is read once and passed down."""
    with pytest.raises(ValueError, match="frozen"):
        Config().queue.capacity = 3  # type: ignore[misc]


def test_the_document_lists_every_key() -> None:
    """docs/configuration.md is generated: `make docs` when this fails."""
    document = DOCUMENT.read_text(encoding="utf-8")
    begin, end = "<!-- orchestratord: generated -->\n", "<!-- orchestratord: end -->"

    assert document.partition(begin)[2].partition(end)[0].strip() == reference().strip()


def test_the_document_says_which_keys_have_no_default() -> None:
    """HME-003: a price table needs both prices; no name of the validator's gets into the page."""
    rows = {line.split("|")[1].strip(): line for line in reference().splitlines()}

    assert "| required | 0 to" in rows["`admission.prices.NAME.input_micros_per_1k_tokens`"]
    assert "| unset |" in rows["`throttle.identities.NAME.queued_jobs`"]
    assert not any(word in reference() for word in ("Pydantic", "<", "None", "factory"))


def test_patterns_that_fit_nothing_are_refused(tmp_path: Path) -> None:
    """ORCH-3080: a port in `deny` would never match, and so deny nothing."""
    text = "[outbound]\nallow = ['*.ok.example', 'https://ok.example']\ndeny = ['bad.example:443']"

    assert problems_of(text, tmp_path) == (
        "outbound.deny: 'bad.example:443' must be HOST, *.HOST or *, with SCHEME:// before it or "
        "not, without a port"
    )


def test_lists_are_printed_and_read_back(tmp_path: Path) -> None:
    """`--print-config` is a complete file, lists too."""
    config = load_config(None, {}, ['outbound.allow=["a.example", "*.b.example"]'])
    path = tmp_path / "printed.toml"

    path.write_text(to_toml(config), encoding="utf-8")

    assert load_config(path, {}).outbound.allow == ("a.example", "*.b.example")


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
