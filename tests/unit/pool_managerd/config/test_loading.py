"""What the configuration accepts, and what it says when it does not."""

import tomllib
from pathlib import Path

import pytest

from pool_managerd.auth.credentials import LinkCredentials
from pool_managerd.config.engines import OllamaTable, OpenAiTable
from pool_managerd.config.llama import EmbeddedTable, LlamaServerTable
from pool_managerd.config.loading import load_config
from pool_managerd.config.problems import ConfigError
from pool_managerd.config.text import configuration_table, to_toml

MINIMAL = """
devices = "cpu"
[[pools]]
pool_id = "p0"
engine = { kind = "embedded", model_path = "m.gguf", model_id = "tiny" }
"""
DOCS = Path(__file__).parents[4] / "docs" / "pool-managerd.md"


def problems(tmp_path: Path, text: str) -> tuple[str, ...]:
    """What is wrong with a configuration file that holds `text`."""
    path = tmp_path / "pool-managerd.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    return caught.value.problems


def test_a_host_comes_back_well_within_the_grace_of_the_orchestrator(tmp_path: Path) -> None:
    """By default the longest wait fits four times into the ten seconds of the orchestrator."""
    path = tmp_path / "c.toml"
    path.write_text(MINIMAL, encoding="utf-8")

    assert 4 * load_config(path, {}).link.backoff.cap_ms <= 10_000


def test_defaults_are_loopback_and_bounded(tmp_path: Path) -> None:
    """A minimal file gives a complete configuration on the loopback address. HME-002, ORCH-3035."""
    path = tmp_path / "c.toml"
    path.write_text(MINIMAL, encoding="utf-8")

    config = load_config(path, {})

    assert (config.orchestrator, config.listen) == ("127.0.0.1:7070", "127.0.0.1:7071")
    engine = config.pools[0].engine
    assert isinstance(engine, EmbeddedTable)
    assert engine.model_path == str(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'orchestrater = "x:1"\n' + MINIMAL,
            'orchestrater: unknown key; did you mean "orchestrator"?',
        ),
        (
            MINIMAL + "[limits]\nheld_bytes_totl = 1\n",
            'limits.held_bytes_totl: unknown key; did you mean "held_bytes_total"?',
        ),
        (
            MINIMAL.replace("model_id", "slotz = 1, model_id"),
            'pools[0].engine.slotz: unknown key; did you mean "slots"?',
        ),
        (
            MINIMAL + "[supervision.backoff]\ninital_ms = 4\n",
            'supervision.backoff.inital_ms: unknown key; did you mean "initial_ms"?',
        ),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_valid_one(
    tmp_path: Path, text: str, expected: str
) -> None:
    """A typing error is answered with the key that was meant. HME-003, ORCH-3030."""
    assert problems(tmp_path, text) == (expected,)


def test_every_problem_is_listed(tmp_path: Path) -> None:
    """One run shows all problems of a file."""
    found = problems(
        tmp_path,
        'listen = "nowhere"\ncoalesce_ms = 9\n' + MINIMAL.replace('"embedded"', '"embedde"'),
    )

    assert [problem.split(":")[0] for problem in found] == [
        "listen",
        "coalesce_ms",
        "pools[0].engine.kind",
    ]


TOKEN = f'\n[auth.tokens.me]\nrole = "admin"\nsha256 = "{"0a" * 32}"\n'
CERTIFICATE = '\n[tls]\ncertificate = "a.pem"\nkey = "b.pem"\n'


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "gpu-box", "[::]"])  # noqa: S104 - refused
@pytest.mark.parametrize(
    ("tables", "named"),
    [("", "orchestratord token"), (CERTIFICATE, "auth.tokens"), (TOKEN, "tls.allow_plaintext")],
)
def test_a_bind_beyond_loopback_is_refused(
    tmp_path: Path, host: str, tables: str, named: str
) -> None:
    """Without tokens and TLS nobody else may connect, and the message says so. AUTH-1002."""
    found = problems(tmp_path, f'listen = "{host}:7071"\n' + MINIMAL + tables)

    assert found[0].startswith("listen: ")
    assert named in found[0]


@pytest.mark.parametrize("tls", [CERTIFICATE, "\n[tls]\nallow_plaintext = true\n"])
def test_tokens_with_tls_or_a_stated_risk_open_a_port(tmp_path: Path, tls: str) -> None:
    """AUTH-1002: paths of certificates begin at the folder of the file."""
    path = tmp_path / "c.toml"
    path.write_text('listen = "0.0.0.0:7071"\n' + MINIMAL + TOKEN + tls, encoding="utf-8")

    assert load_config(path, {}).tls.certificate in ("", str(tmp_path / "a.pem"))


def test_the_port_for_monitors_stays_on_this_machine(tmp_path: Path) -> None:
    """ORCH-3035: it asks nobody for a token, so tokens do not open it."""
    text = 'metrics_listen = "0.0.0.0:7073"\n' + MINIMAL + TOKEN + CERTIFICATE

    assert problems(tmp_path, text)[0].startswith("metrics_listen: ")


@pytest.mark.parametrize(
    ("link", "named"),
    [
        ("", "link.tls.ca"),
        ('token_env = "T"\ntls = { ca = "ca.pem" }', "link.token_env: the environment variable T"),
        ('token = "hidden"\ntls = { ca = "ca.pem" }', "link.token: set token_env or token_file"),
        ('token_env = "T"\ntoken_file = "t"\ntls = { ca = "ca.pem" }', "set one"),
        ('tls = { certificate = "a.pem" }', "link.tls.key"),
    ],
)
def test_what_the_way_to_another_machine_lacks_is_named(
    tmp_path: Path, link: str, named: str
) -> None:
    """AUTH-1002, AUTH-1007: no token in the file, none in the clear."""
    text = 'orchestrator = "10.0.0.1:7070"\n' + MINIMAL + f"\n[link]\n{link}\n"

    found = problems(tmp_path, text)

    assert named in found[0]
    assert "hidden" not in found[0]


async def test_the_token_of_the_host_is_read_from_the_environment_and_never_shown(
    tmp_path: Path,
) -> None:
    """AUTH-1007, AUTH-1008."""
    path = tmp_path / "c.toml"
    access = '\n[link]\ntoken_env = "T"\ntls = { ca = "ca.pem" }\n'
    path.write_text('orchestrator = "10.0.0.1:7070"\n' + MINIMAL + access, encoding="utf-8")

    config = load_config(path, {"T": "a-secret-token\n"})

    assert await LinkCredentials().metadata(config) == (("authorization", "Bearer a-secret-token"),)
    assert config.link.tls.ca == str(tmp_path / "ca.pem")
    assert "a-secret-token" not in to_toml(config) + repr(config)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_loopback_addresses_are_accepted(tmp_path: Path, host: str) -> None:
    """All spellings of loopback, and port 0."""
    path = tmp_path / "c.toml"
    path.write_text(f'listen = "{host}:0"\n' + MINIMAL, encoding="utf-8")

    assert load_config(path, {}).listen == f"{host}:0"


@pytest.mark.parametrize("kind", ['"llama_server"', '"ollama"', '"openai", flavor = "vllm"'])
def test_secrets_come_from_the_environment_only(tmp_path: Path, kind: str) -> None:
    """A key in the file is refused; the variable is read once and never shown."""
    text = MINIMAL.replace(
        'kind = "embedded", model_path = "m.gguf"',
        f'kind = {kind}, base_url = "http://127.0.0.1:1", api_key_env = "KEY"',
    )
    path = tmp_path / "c.toml"
    path.write_text(text, encoding="utf-8")

    config = load_config(path, {"KEY": "hunter2"})

    engine = config.pools[0].engine
    assert isinstance(engine, LlamaServerTable | OllamaTable | OpenAiTable)
    assert engine.api_key.get_secret_value() == "hunter2"
    assert "hunter2" not in to_toml(config) + repr(config)
    assert "KEY is not set" in problems(tmp_path, text)[0]
    in_file = problems(tmp_path, text.replace("api_key_env", "api_key"))
    assert in_file == (
        "pools[0].engine.api_key: set api_key_env: secrets come from the environment",
    )


def test_files_of_an_engine_begin_at_the_folder_of_the_configuration(tmp_path: Path) -> None:
    """The model, and what is loaded besides."""
    text = MINIMAL.replace(
        'kind = "embedded", model_path = "m.gguf"',
        'kind = "embedded", model_path = "m.gguf", draft_model_path = "d.gguf"',
    )
    (tmp_path / "c.toml").write_text(text, encoding="utf-8")

    engine = load_config(tmp_path / "c.toml", {}).pools[0].engine

    assert isinstance(engine, EmbeddedTable)
    assert engine.model_path == str(tmp_path / "m.gguf")
    assert engine.draft_model_path == str(tmp_path / "d.gguf")


def test_a_variable_that_is_to_be_passed_on_has_to_be_set(tmp_path: Path) -> None:
    """An engine that misses its token fails late, and says less."""
    text = MINIMAL.replace(
        'kind = "embedded", model_path = "m.gguf"',
        'kind = "llama_server", launch = {command = ["x", "{port}"], pass_env = ["MY_TOKEN"]}',
    )
    path = tmp_path / "c.toml"
    path.write_text(text, encoding="utf-8")

    assert (
        "launch.pass_env: the environment variable MY_TOKEN is not set"
        in (problems(tmp_path, text)[0])
    )
    assert "hunter2" not in to_toml(load_config(path, {"MY_TOKEN": "hunter2"}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MINIMAL + MINIMAL.partition('"cpu"')[2], "pool_id used twice: p0"),
        (MINIMAL.replace('"tiny"', '"tiny", slots = 2, deterministic = true'), "needs slots = 1"),
        ('devices = "cpu"\n', "at least one [[pools]] table"),
        ("devices = \n", "not valid TOML"),
        (MINIMAL + "[link.backoff]\ninitial_ms = 9\ncap_ms = 8\n", "must not be below"),
        (MINIMAL + '[models]\ndirectory = "~nobody-is-called-so/m"\n', "models.directory: "),
        (MINIMAL + '[models]\ncache_directory = "~nobody-is-called-so/m"\n', "models.cache_dir"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    """Contradictions are named."""
    assert expected in "\n".join(problems(tmp_path, text))


SERVER = 'kind = "llama_server", model_id = "m", '


def with_engine(engine: str) -> str:
    """A file whose pool has this engine."""
    head, _, _ = MINIMAL.partition("engine =")
    return f"{head}engine = {{ {engine} }}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'listen = "127.0.0.1:70710"\n' + MINIMAL,
            "listen: 127.0.0.1:70710 has a port above 65535",
        ),
        ('metrics_listen = "127.0.0.1:65536"\n' + MINIMAL, "metrics_listen: 127.0.0.1:65536 has a"),
        ('orchestrator = "127.0.0.1:99999"\n' + MINIMAL, "orchestrator: 127.0.0.1:99999 has a po"),
        ('orchestrator = "127.0.0.1:0"\n' + MINIMAL, "orchestrator: 127.0.0.1:0 has the port 0"),
        (
            with_engine(SERVER + 'base_url = "http://127.0.0.1:99999"'),
            "pools[0].engine.base_url: http://127.0.0.1:99999 is no address: Port out of range",
        ),
        (with_engine(SERVER + 'base_url = "http://"'), "engine.base_url: http:// is no address"),
        (with_engine(SERVER + 'base_url = "http://a..b"'), "no host can have that name"),
        (with_engine(SERVER + 'base_url = "http://a b:80"'), "HOST:PORT, without blanks"),
        (with_engine(SERVER + 'base_url = "http://h:{port}"'), "only a launch table chooses"),
        (
            with_engine('kind = "ollama", model_id = "m", base_url = "http://h:x"'),
            "pools[0].engine.base_url: http://h:x is no address",
        ),
        (
            with_engine(SERVER + 'launch = { command = ["x"], env = { "A=B" = "c" } }'),
            "pools[0].engine.launch: env: 'A=B' is no name of a variable",
        ),
        (with_engine(SERVER + 'launch = { command = [""] }'), "names no program"),
        (
            with_engine(SERVER + 'launch = { command = ["x"] }'),
            "pools.p0.engine.launch: neither command nor env holds {port}: the server has to be",
        ),
        (
            with_engine(SERVER + 'launch = { command = ["x", "a\\u0000b"] }'),
            "pools[0].engine.launch.command[1]: holds a character NUL",
        ),
        (MINIMAL + '[engine_logs]\ndirectory = "a\\u0000"\n', "engine_logs.directory: holds a"),
        (
            MINIMAL.replace("engine =", "perf_tokens_per_s = 1e-4\nengine ="),
            "pools[0].perf_tokens_per_s: Input should be greater than or equal to 0.001",
        ),
    ],
)
def test_what_could_not_work_is_refused_with_its_key(
    tmp_path: Path, text: str, expected: str
) -> None:
    """Not when an engine is to start, or a connection to be made, in words of a library."""
    assert expected in "\n".join(problems(tmp_path, text))


def test_secrets_come_without_the_line_break_that_stores_of_secrets_add(tmp_path: Path) -> None:
    """One that no header takes would break at the first request, and say nothing of a setting."""
    path = tmp_path / "c.toml"
    path.write_text(
        with_engine(SERVER + 'base_url = "http://h:1", api_key_env = "KEY"')
        + '[link]\ntoken_env = "TOKEN"\n',
        encoding="utf-8",
    )

    config = load_config(path, {"KEY": "k\n", "HF_TOKEN": "hf_x\n", "TOKEN": "t\n"})
    engine = config.pools[0].engine
    assert isinstance(engine, LlamaServerTable)
    secrets = (engine.api_key, config.outbound.hf_token, config.link.token)
    assert [secret.get_secret_value() for secret in secrets] == ["k", "hf_x", "t"]
    with pytest.raises(ConfigError) as caught:
        load_config(path, {"KEY": "k\nl", "HF_TOKEN": "hf\tx", "TOKEN": "t\u00f6"})

    named = [problem.partition(": ")[0] for problem in caught.value.problems]
    assert named == ["pools.p0.engine.api_key_env", "outbound.hf_token_env", "link.token_env"]


def test_a_machine_whose_name_is_no_id_is_asked_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The orchestrator would refuse it, again and again."""
    path = tmp_path / "c.toml"
    path.write_text(MINIMAL, encoding="utf-8")
    monkeypatch.setattr("socket.gethostname", lambda: "my host")

    with pytest.raises(ConfigError, match="host_id: the name of this machine, 'my host', is none"):
        load_config(path, {})

    path.write_text('host_id = "mine"\n' + MINIMAL, encoding="utf-8")
    assert load_config(path, {}).host_id == "mine"


def test_fetched_models_lie_where_they_lie_whatever_folder_a_command_runs_in(
    tmp_path: Path,
) -> None:
    """`pool-managerd fetch` in a terminal, and the service, have one cache."""
    path = tmp_path / "c.toml"
    path.write_text(MINIMAL + '[models]\ncache_directory = "cache"\n', encoding="utf-8")

    assert load_config(path, {}).models.cache_directory == str(tmp_path / "cache")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The path is in the message."""
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        load_config(tmp_path / "absent.toml", {})
    (tmp_path / "b.toml").write_bytes(b"# a\xff")
    with pytest.raises(ConfigError, match="not valid TOML: byte 4 is not UTF-8: save it as text"):
        load_config(tmp_path / "b.toml", {})


def test_the_printed_configuration_can_be_loaded_again(tmp_path: Path) -> None:
    """--print-config prints TOML that gives the same configuration."""
    path = tmp_path / "c.toml"
    path.write_text(MINIMAL, encoding="utf-8")
    config = load_config(path, {})

    path.write_text(to_toml(config), encoding="utf-8")

    assert load_config(path, {}) == config
    assert tomllib.loads(to_toml(config))["pools"][0]["pool_id"] == "p0"


def test_the_documented_table_is_that_of_the_schema() -> None:
    """docs/pool-managerd.md shows every key, default and bound as they are."""
    assert configuration_table() in DOCS.read_text(encoding="utf-8")


def test_a_file_that_is_not_there_comes_with_the_next_step(tmp_path: Path) -> None:
    """Of the command and of `check` alike."""
    with pytest.raises(ConfigError, match=r"there is no such file: name one by --config FILE"):
        load_config(tmp_path / "pool-managerd.toml")


def test_a_kind_of_engine_that_there_is_not_is_told_with_those_that_there_are(
    tmp_path: Path,
) -> None:
    """A slip of the pen is answered with what may be meant."""
    (said,) = problems(tmp_path, MINIMAL.replace('"embedded"', '"embeded"'))

    assert said.startswith('pools[0].engine.kind: "embeded" is none of embedded, llama_server, ')
    assert said.endswith('; did you mean "embedded"?')
