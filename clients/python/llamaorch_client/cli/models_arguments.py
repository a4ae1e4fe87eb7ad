# SPDX-License-Identifier: Apache-2.0
"""What may be said to `llorch models`."""

import argparse

UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
GRACE_S_MAX = 30 * 86_400


def add(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Adds the actions; without one the models are listed."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION")

    def action(name: str, text: str, *, model: bool = True) -> argparse.ArgumentParser:
        made = actions.add_parser(name, parents=[common], help=text)
        if model:
            made.add_argument("model", metavar="MODEL", help="id of the model")
        return made

    listing = action("list", "list models, by id", model=False)
    listing.add_argument(
        "--state", action="append", default=[], choices=("active", "retired"), help="only these"
    )
    action("show", "show one, by its id or an alias")
    _stated(action("register", "add one"))
    update = action("update", "change what is stated of one; lists are replaced whole")
    _stated(update)
    retire = action("retire", "let it take no more jobs")
    retire.add_argument(
        "--grace",
        type=_span,
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
            "--revision", type=int, default=0, metavar="N", help="only if this is its revision"
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
    add("--ctx-max", type=int, metavar="TOKENS", help="longest context of a job")
    add("--quantization", metavar="NAME", help="what pools must list, e.g. Q4_K_M")
    add("--min-vram", type=_bytes, metavar="SIZE", help="memory of the pool, e.g. 8GiB")
    add("--min-compute-cap", metavar="MAJOR.MINOR", help="least compute capability")
    add("--extension", action="append", metavar="NAME", help="what pools must list; repeatable")
    add("--device", action="append", metavar="ID", help="devices that it may use; repeatable")
    add("--bytes-per-token", type=float, metavar="N", help="first guess for its prompts")
    add("--expected-tokens", type=int, metavar="N", help="output of a job that does not say")
    add("--label", type=_pair, action="append", metavar="KEY=VALUE")
    add(
        "--dimension",
        type=_dimension,
        action="append",
        metavar="KEY=VALUE",
        help="layers, kv_heads, key_length, value_length, window_layers, window_tokens, key_type, "
        "value_type",
    )


def _pair(text: str) -> tuple[str, str]:
    key, found, value = text.partition("=")
    if not key or not found:
        raise argparse.ArgumentTypeError("must be KEY=VALUE")
    return key, value


def _dimension(text: str) -> tuple[str, str | int]:
    key, value = _pair(text)
    return key, int(value) if value.isdecimal() else value


def _bytes(text: str) -> int:
    """Bytes, or a size in KiB, MiB, GiB or TiB."""
    unit = text[-3:]
    digits = text[:-3] if unit in UNITS else text
    try:
        size = round(float(digits) * UNITS.get(unit, 1))
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError("must be like 8GiB, 512MiB, or a number of bytes")
    return size


def _span(text: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    try:
        value = float(text[:-1]) * units[text[-1:]]
    except (KeyError, ValueError):
        value = -1.0
    if not 0 <= value <= GRACE_S_MAX:
        raise argparse.ArgumentTypeError("must be like 90s, 5m, 1h or 7d, at most 30 days")
    return value
