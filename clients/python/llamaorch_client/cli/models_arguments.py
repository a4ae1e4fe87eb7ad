# SPDX-License-Identifier: Apache-2.0
"""What may be said to `llorch models`."""

import argparse

from llamaorch_client.cli import model_file, values


def add(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Adds the actions; without one the models are listed."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION")

    def action(name: str, text: str, *, model: bool = True) -> argparse.ArgumentParser:
        made = actions.add_parser(name, parents=[common], help=text)
        if model:
            made.add_argument("model", metavar="MODEL", help="id of the model")
        return made

    def stating(name: str, text: str) -> argparse.ArgumentParser:
        made = action(name, text, model=False)
        told = "id of the model; not with a --file that has it as `model_id`"
        made.add_argument("model", nargs="?", default="", metavar="MODEL", help=told)
        _stated(made)
        return made

    listing = action("list", "list models, by id", model=False)
    listing.add_argument(
        "--state", action="append", default=[], choices=("active", "retired"), help="only these"
    )
    action("show", "show one, by its id or an alias")
    stating("register", "add one")
    update = stating("update", "change what is stated of one; lists are replaced whole")
    retire = action("retire", "let it take no more jobs")
    retire.add_argument(
        "--grace",
        type=values.grace,
        metavar="TIME",
        help="serve what was accepted for 90s, 5m, 1h, 7d; default: the server's",
    )
    retire.add_argument(
        "--replaced-by", default="", metavar="MODEL", help="what to ask for instead"
    )
    activate = action("activate", "let it take jobs again")
    action("verify", "compare its digest with what pools report; 1 unless it is verified")
    delete = action("delete", "forget it; its jobs run on")
    delete.add_argument("--force", action="store_true", help="although jobs of it are live")
    for changing in (update, retire, activate, delete):
        changing.add_argument(
            "--revision",
            type=values.whole(0, values.UINT64_MAX),
            default=0,
            metavar="N",
            help="only if this is its revision",
        )


def _stated(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--file", metavar="FILE", help="fields of the model in TOML, or JSON (.json)")
    add("--alias", action="append", metavar="NAME", help="another name for it; may be repeated")
    add("--ref", metavar="REF", help="where its file is, for people")
    add("--digest", metavar="sha256:HEX", help="digest of its weights")
    add("--signature", metavar="BASE64", help="Ed25519 signature of the digest's text")
    add("--engine", action="append", metavar="NAME", help="engine that may serve it; repeatable")
    add("--engine-version", metavar="VERSION", help="pin, unless a job pins one")
    add("--sampler-profile", metavar="VERSION", help="pin, unless a job pins one")
    add("--ctx-max", type=values.positive, metavar="TOKENS", help="longest context of a job")
    add("--quantization", metavar="NAME", help="what pools must list, e.g. Q4_K_M")
    add("--min-vram", type=values.size, metavar="SIZE", help="memory of the pool, e.g. 8GiB")
    add("--min-compute-cap", metavar="MAJOR.MINOR", help="least compute capability")
    add("--extension", action="append", metavar="NAME", help="what pools must list; repeatable")
    add("--device", action="append", metavar="ID", help="devices that it may use; repeatable")
    add("--bytes-per-token", type=values.number, metavar="N", help="first guess for its prompts")
    add(
        "--expected-tokens",
        type=values.positive,
        metavar="N",
        help="output of a job that does not say",
    )
    add("--label", type=values.pair, action="append", metavar="KEY=VALUE")
    add(
        "--dimension",
        type=dimension,
        action="append",
        metavar="KEY=VALUE",
        help=", ".join(model_file.DIMENSIONS),
    )


def dimension(text: str) -> tuple[str, str | int]:
    """One dimension of the cache."""
    key, value = values.pair(text)
    told = int(value) if value.isdecimal() else value
    for problem in model_file.problems({"dimensions": {key: told}}):
        raise argparse.ArgumentTypeError(problem)
    return key, told
