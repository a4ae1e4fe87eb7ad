"""The catalog from outside: `llorch models`, the client library, and the document's example.

ORCH-3031, ORCH-3037.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from llamaorch_client import (
    AsyncClient,
    CatalogError,
    CatalogModel,
    Client,
    DigestVerdict,
    DuplicateError,
    ModelDimensions,
    ModelState,
    NotFoundError,
    Requirements,
)
from orchestrator_core.config.schema import Config
from orchestrator_core.server import OrchestratorServer
from tests.integration.clients.llorch import within as llorch
from tests.integration.orchestrator.scripted_host import ScriptedHost, snapshot

DOCUMENT = Path(__file__).parents[3] / "docs" / "catalog.md"
DIGEST = "sha256:" + "ab" * 32


@dataclass(frozen=True, slots=True)
class Served:
    """An orchestrator with one pool, `gpu-a`, that serves `qwen3-8b`."""

    address: str
    host: ScriptedHost


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A server in this process, whose log lines are kept apart, and a host that is scripted."""
    tables = {"listen": "127.0.0.1:0", "store": {"kind": "memory"}}
    server = OrchestratorServer(Config.model_validate(tables))
    with capture_logs():
        await server.start()
        channel = grpc.aio.insecure_channel(str(server.address))
        host = ScriptedHost(channel, "host-1", "boot")
        await host.register(snapshot("gpu-a", model_id="qwen3-8b", model_digest=DIGEST))
        yield Served(str(server.address), host)
        await host.close()
        await channel.close()
        await server.stop()


def example() -> list[tuple[list[str], list[str]]]:
    """The commands of the document, and the lines that follow each."""
    block = DOCUMENT.read_text().split("```console\n", 1)[1].split("```", 1)[0]
    played: list[tuple[list[str], list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ llorch "):
            played.append((line.removeprefix("$ llorch ").split(), []))
        else:
            played[-1][1].append(line)
    return played


async def answer(host: ScriptedHost, text: str) -> None:
    """Runs the next job."""
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, text)
    await host.finish(start.handle)


async def test_the_example_of_the_document_does_what_it_says(served: Served) -> None:
    """Each command, in order; "…" stands for what differs from day to day."""
    played = example()
    assert len(played) == 10
    for words, lines in played:
        runs = words[0] == "run" and not lines[0].startswith("llorch:")
        answering = asyncio.create_task(answer(served.host, lines[0])) if runs else None
        said = await llorch(served.address, *words)
        if answering is not None:
            await answering

        shown = [line.rstrip() for text in (said.stdout, said.stderr) for line in text.splitlines()]
        expected = [re.escape(line).replace("…", ".+") for line in lines]
        assert len(shown) == len(expected), (words, shown)
        for pattern, line in zip(expected, shown, strict=True):
            assert re.fullmatch(pattern, line), (words, shown)


async def test_a_file_states_a_model_and_options_go_before_it(
    served: Served, tmp_path: Path
) -> None:
    """TOML or JSON, by the names of the wire; `update` changes what is named alone."""
    file = tmp_path / "model.toml"
    file.write_text(
        f"""
        aliases = ["chat"]
        digest = "{DIGEST}"
        ctx_max = 1024
        [requirements]
        quantization = "Q4_K_M"
        [dimensions]
        layers = 36
        kv_heads = 8
        key_length = 128
        value_length = 128
        """
    )
    change = tmp_path / "change.json"
    change.write_text(json.dumps({"labels": {"team": "a"}}))
    words = ("models", "register", "qwen3-8b", "--file", str(file), "--ctx-max", "2048")

    first = await llorch(served.address, "--json", *words, "--min-vram", "1.5GiB")
    await llorch(
        served.address, "models", "update", "qwen3-8b", "--file", str(change), "--label", "tier=1"
    )
    shown = json.loads((await llorch(served.address, "models", "show", "chat", "--json")).stdout)

    assert first.code == 0
    model = shown["model"]
    assert (model["ctx_max"], model["aliases"], model["revision"]) == (2048, ["chat"], 2)
    assert model["labels"] == {"team": "a", "tier": "1"}
    assert model["requirements"]["min_vram_bytes"] == 3 << 29
    assert model["requirements"]["quantization"] == "Q4_K_M"
    assert (model["dimensions"]["layers"], model["dimensions"]["key_type"]) == (36, "f16")


async def test_show_tells_all_that_is_stated(served: Served) -> None:
    """For people: one line for each fact."""
    await llorch(
        served.address,
        *("models", "register", "m", "--alias", "x", "--engine", "vllm", "--extension", "grammar"),
        *("--dimension", "layers=4", "--dimension", "kv_heads=2", "--dimension", "key_length=8"),
        *("--dimension", "value_length=8", "--dimension", "window_layers=2"),
        *("--dimension", "window_tokens=64", "--dimension", "key_type=q8_0"),
        *("--label", "team=a", "--expected-tokens", "50", "--bytes-per-token", "3.5"),
    )
    await llorch(served.address, "models", "retire", "m", "--grace", "0s", "--replaced-by", "n")

    said = await llorch(served.address, "models", "show", "x")
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in said.stdout.splitlines())

    assert facts["state"] == "RETIRED, its pools take no more work"
    assert facts["replaced by"] == "n"
    assert facts["dimensions"] == (
        "4 layers (2 with a window of 64), 2 heads, keys 8 q8_0, values 8 f16"
    )
    assert facts["labels"] == "team=a"
    assert (facts["bytes per token"], facts["expected output"]) == ("3.5", "50")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("models", "update", "m"), "say what to change"),
        (("models", "register", "m", "--file", "/none.toml"), "/none.toml: No such file"),
        (("models", "register", "m", "--dimension", "depth=3"), "`dimensions.depth` is no key"),
        (("models", "retire", "none"), "no model 'none' is in the catalog"),
        (("models", "register", "m", "--digest", "x"), "refused: --digest must be"),
        (("models", "register", "m", "--alias", "a", "--alias", " b"), "--alias number 2 must be"),
        (("models", "register", "m", "--dimension", "layers=3"), "--dimension kv_heads must be"),
        (("models", "register"), "name the model: llorch models register MODEL"),
        (("models", "retire", "m", "--replaced-by", "x" * 300), "--replaced-by may have"),
        (("models", "delete", "m", "--revision", "-1"), "--revision: must be a whole number"),
    ],
)
async def test_what_cannot_be_done_says_why(
    served: Served, words: tuple[str, ...], says: str
) -> None:
    """Exit code 2, and a sentence."""
    said = await llorch(served.address, *words)

    assert said.code == 2
    assert says in said.stderr


async def test_a_revision_that_is_past_changes_nothing(served: Served) -> None:
    """`--revision` of all changes."""
    await llorch(served.address, "models", "register", "m")
    await llorch(served.address, "models", "update", "m", "--ctx-max", "5", "--revision", "1")
    late = [
        await llorch(served.address, "models", *words, "--revision", "1")
        for words in (("update", "m", "--ctx-max", "6"), ("retire", "m"), ("delete", "m"))
    ]
    listed = await llorch(served.address, "--json", "models", "list", "--state", "active")

    assert [(said.code, "has revision 2, not 1" in said.stderr) for said in late] == [(2, True)] * 3
    assert [m["ctx_max"] for m in json.loads(listed.stdout)["models"]] == [5]


async def test_verify_ends_with_1_unless_it_is_verified(served: Served) -> None:
    """For scripts; each pool has its verdict."""
    await llorch(
        served.address, "models", "register", "qwen3-8b", "--digest", DIGEST.replace("ab", "cd")
    )
    said = await llorch(served.address, "models", "verify", "qwen3-8b")
    plain = await llorch(served.address, "--json", "models", "verify", "qwen3-8b")

    assert (said.code, plain.code) == (1, 1)
    assert re.search(rf"gpu-a +mock +mismatch +{DIGEST}", said.stdout)
    assert json.loads(plain.stdout)["verification"]["pools"][0]["verdict"] == "MISMATCH"


MODEL = CatalogModel(
    model_id="qwen3-8b",
    aliases=("chat",),
    digest=DIGEST,
    engines=("mock",),
    ctx_max=2048,
    dimensions=ModelDimensions(layers=36, kv_heads=8, key_length=128, value_length=128),
    requirements=Requirements(min_vram_bytes=1 << 30),
    labels={"team": "a"},
)


async def test_the_library_says_all_of_it(served: Served) -> None:
    """What is registered comes back; errors are typed."""
    async with AsyncClient(served.address) as client:
        catalog = client.catalog
        kept = await catalog.register(MODEL)
        found = await catalog.verify("chat")
        receipt = await client.enqueue(model_id="chat", prompt="hi")
        with pytest.raises(DuplicateError):
            await catalog.register(CatalogModel(model_id="chat"))
        with pytest.raises(CatalogError) as used:
            await catalog.delete("qwen3-8b")
        retired = await catalog.retire("qwen3-8b", grace_s=60, replaced_by="next")
        with pytest.raises(CatalogError) as refused:
            await client.enqueue(model_id="chat", prompt="hi")
        listed = [model.model_id async for model in catalog.list((ModelState.RETIRED,))]
        await catalog.delete("qwen3-8b")
        with pytest.raises(NotFoundError):
            await catalog.get("chat")

    assert (kept.model.digest, kept.model.labels) == (MODEL.digest, MODEL.labels)
    assert kept.model.dimensions is not None
    assert (kept.model.dimensions.layers, kept.model.requirements) == (36, MODEL.requirements)
    assert [(pool.pool_id, pool.verdict) for pool in found.pools] == [
        ("gpu-a", DigestVerdict.MATCH)
    ]
    assert receipt.from_catalog is not None
    assert receipt.from_catalog.alias == "chat"
    assert receipt.from_catalog.filled["engine"] == "mock"
    assert used.value.reason == "MODEL_IN_USE"
    assert retired.state is ModelState.RETIRED
    assert (refused.value.reason, refused.value.replaced_by) == ("MODEL_RETIRED", "next")
    assert listed == ["qwen3-8b"]


async def test_the_blocking_library_does_the_same(served: Served) -> None:
    """On its own thread."""

    def calls() -> list[object]:
        with Client(served.address) as client:
            catalog = client.catalog
            first = catalog.register(MODEL).model.revision
            second = catalog.update(
                CatalogModel(model_id="qwen3-8b", expected_tokens=9), ["expected_tokens"]
            ).model
            states = [catalog.retire("qwen3-8b").state, catalog.activate("qwen3-8b").state]
            shown = catalog.get("chat").expected_tokens
            listed = [model.model_id for model in catalog.list()]
            verified = catalog.verify("chat").verified
            catalog.delete("qwen3-8b")
            return [first, second.aliases, states, shown, listed, verified, list(catalog.list())]

    assert await asyncio.to_thread(calls) == [
        1,
        ("chat",),
        [ModelState.RETIRED, ModelState.ACTIVE],
        9,
        ["qwen3-8b"],
        True,
        [],
    ]


async def test_a_file_alone_states_a_model(served: Served, tmp_path: Path) -> None:
    """Its id stands in one place: in the file, or as an argument."""
    file = tmp_path / "m.toml"
    file.write_text('model_id = "m"\nctx_max = 5\n')
    bare = tmp_path / "bare.toml"
    bare.write_text("ctx_max = 6\n")

    first = await llorch(served.address, "models", "register", "--file", str(file))
    words = ("models", "update", "--file", str(file), "--label", "a=b")
    second = await llorch(served.address, *words)
    other = await llorch(served.address, "models", "register", "n", "--file", str(file))
    nobody = await llorch(served.address, "models", "register", "--file", str(bare))

    assert (first.stdout, first.code) == ("model m is registered (revision 1)\n", 0)
    assert second.stdout == "model m is updated (revision 2)\n"
    assert other.stderr == (
        f"llorch: MODEL is n, and `model_id` in {file} is m: say it in one place\n"
    )
    assert nobody.stderr.endswith(f"register MODEL, or `model_id` in {bare}\n")
    assert (other.code, nobody.code) == (2, 2)


async def test_a_model_that_is_registered_again_is_told_so(served: Served) -> None:
    """The same words change nothing; other words name the command that does."""
    words = ("models", "register", "m", "--ctx-max", "5")
    first = await llorch(served.address, *words, "--alias", "a")
    again = await llorch(served.address, *words, "--alias", "a")
    other = await llorch(served.address, *words, "--alias", "b")
    alias = await llorch(served.address, "models", "register", "a")

    assert first.stdout == "model m is registered (revision 1)\n"
    assert again.stdout == "model m was registered already, as you state it (revision 1)\n"
    assert (other.code, "`llorch models update m` with the options" in other.stderr) == (2, True)
    assert (alias.code, "`llorch models` lists those" in alias.stderr) == (2, True)


async def test_what_the_server_refuses_is_told_by_key_or_option(
    served: Served, tmp_path: Path
) -> None:
    """What stands in the file by its key there, what an option says by the option."""
    file = tmp_path / "m.toml"
    file.write_text(
        'model_id = "m"\ndigest = "x"\naliases = ["a", " b"]\nlabels = { "" = "v" }\n'
        'requirements = { min_compute_cap = "new" }\n'
    )

    said = await llorch(
        served.address, "models", "register", "--file", str(file), "--signature", "s"
    )

    lines = said.stderr.splitlines()
    assert lines[0] == "llorch: the request was refused: 5 things are wrong"
    assert {line.split(": ")[0].strip() for line in lines[1:]} == {
        f"`digest` in {file}",
        f"`aliases[1]` in {file}",
        f"`labels[]` in {file}",
        f"`requirements.min_compute_cap` in {file}",
        "--signature",
    }


async def test_a_model_that_is_there_already_is_told_how_to_change(
    served: Served, tmp_path: Path
) -> None:
    """The command that is told does it."""
    file = tmp_path / "m.toml"
    file.write_text('model_id = "m"\nctx_max = 5\naliases = ["x"]\n')
    await llorch(served.address, "models", "register", "m", "--ctx-max", "4")

    by_file = await llorch(served.address, "models", "register", "--file", str(file))
    by_words = await llorch(served.address, "models", "register", "m", "--ctx-max", "6")
    told = re.search("`llorch (.*?)`", by_file.stderr)
    assert told is not None
    done = await llorch(served.address, *told[1].split())
    taken = await llorch(served.address, "models", "register", "other", "--alias", "x")

    assert (by_file.code, by_words.code, taken.code) == (2, 2, 2)
    assert "`llorch models update m` with the options that you gave;" in by_words.stderr
    assert f"update it: `llorch models update --file {file}`; `llorch" in by_file.stderr
    assert "`llorch models show m` tells what it is now" in by_words.stderr
    assert done.stdout == "model m is updated (revision 2)\n"
    assert taken.stderr == (
        "llorch: the name 'x' belongs to model 'm' already: choose another one: "
        "`llorch models` lists those that are taken\n"
    )
