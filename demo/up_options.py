"""What may be said to `make up`, and what is wrong with it: in the words of make's variables."""

import argparse
import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from demo.services import PoolOptions, StackOptions
from pool_managerd.binding import unbindable
from pool_managerd.engines.embedded import embedded_shortfalls, gpu_shortfalls
from pool_managerd.engines.gguf_kv import trained_context
from pool_managerd.engines.gguf_look import no_model
from pool_managerd.models.tiny_gguf import TINY

LISTEN = "127.0.0.1:7070"
METRICS_LISTEN = "127.0.0.1:7072"
CTX = 2048
DEVICES = ("cpu", "nvml")
GPU_DOCUMENT = "docs/engines.md#an-engine-with-gpu-code"


class OptionsError(ValueError):
    """What was said cannot be done; the message says what to change."""


class _Parser(argparse.ArgumentParser):
    """Speaks of variables: `make up` makes the options out of them."""

    def error(self, message: str) -> NoReturn:
        """Ends with 2 and one line."""
        named = re.match(r"argument --([a-z-]+): (.*)", message, re.DOTALL)
        told = f"{_variable(named[1])} {named[2]}" if named else message
        self.exit(2, f"make up: {told}\n")


def parse(argv: Sequence[str] | None = None) -> tuple[StackOptions, str]:
    """What shall run, and what is to be said about it first; exits with 2 on a usage error.

    Raises:
        OptionsError: what was named is not there, is no model, or is in use.
    """
    said = _parser().parse_args(argv)
    model = None if said.model is None else said.model.expanduser()
    if model is not None:
        _check_model(model)
    for name in ("listen", "metrics_listen"):
        _check_free(_variable(name), getattr(said, name))
    _check_engine(said.gpu_layers)
    ctx, note = _context(said.ctx, TINY.context if model is None else trained_context(model))
    pool = PoolOptions(
        slots=said.slots,
        threads=said.threads or _threads(model),
        ctx_per_slot=ctx,
        gpu_layers=said.gpu_layers,
    )
    options = StackOptions(
        directory=said.directory.expanduser().resolve(),
        model=model,
        model_id=said.model_id or (model.stem if model else "tiny"),
        pools=(pool,),
        listen=said.listen,
        orchestrator_toml=f'metrics_listen = "{said.metrics_listen}"',
        devices=said.devices,
    )
    return options, note


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(description="Both services in the foreground until Ctrl-C.")
    add = parser.add_argument
    add("--model", type=Path, help="GGUF file; default: a tiny random model")
    add("--model-id", help="name that jobs ask for; default: the file's name")
    add("--listen", type=_address, default=LISTEN, help=f"address, default {LISTEN}")
    add(
        "--metrics-listen",
        type=_address,
        default=METRICS_LISTEN,
        help=f"address of the status page and the metrics, default {METRICS_LISTEN}",
    )
    add("--slots", type=_positive, default=2, help="generations at a time (2)")
    add("--ctx", type=_positive, help=f"context of a slot; default {CTX}, or what the model has")
    add(
        "--threads",
        type=_positive,
        help="threads of the engine; default 1, with a model all cores but one",
    )
    add("--devices", type=_devices, default="cpu", help="cpu or nvml")
    add("--gpu-layers", type=_layers, default=0, help="layers on the GPU, -1 for all")
    add("--directory", type=Path, default=Path(".demo/up"))
    return parser


def _check_model(model: Path) -> None:
    if not model.is_file():
        raise OptionsError(f"MODEL: {model} is not a file; give the path of a GGUF model")
    if why := no_model(model):
        raise OptionsError(f"MODEL: {why}; give the path of a GGUF model")


def _check_free(variable: str, address: str) -> None:
    """It can be listened on: it is of this machine, and nobody has it already."""
    error = unbindable(address)
    if error is None:
        return
    if error.errno != errno.EADDRINUSE:
        raise OptionsError(f"{variable} {address}: {error.strerror or error}")
    raise OptionsError(
        f"{variable} {address} is in use: something runs there already; stop it, or have "
        "another stack beside it:\n  make up LISTEN=127.0.0.1:7170 "
        "METRICS_LISTEN=127.0.0.1:7172 DIRECTORY=.demo/second"
    )


def _check_engine(gpu_layers: int) -> None:
    missing = embedded_shortfalls()
    if missing:
        raise OptionsError(f"the engine cannot run here: {'; '.join(missing)}")
    if gpu_shortfalls(gpu_layers):
        raise OptionsError(
            f"GPU_LAYERS={gpu_layers}: the installed engine sees no GPU; leave it out to use the "
            f"processor, or see {GPU_DOCUMENT}"
        )


def _context(asked: int | None, trained: int | None) -> tuple[int, str]:
    """Tokens of a slot, at most those that the model was trained with; what to say about it."""
    wanted = CTX if asked is None else asked
    if trained is None or wanted <= trained:
        return wanted, ""
    if asked is None:
        return trained, ""
    return trained, f"CTX={asked} is more than the model has: {trained} tokens are set\n"


def _threads(model: Path | None) -> int:
    """The tiny model is fastest on one thread; a real one wants the cores."""
    return 1 if model is None else max(1, (os.cpu_count() or 1) - 1)


def _variable(option: str) -> str:
    return option.replace("-", "_").upper()


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not (host and port.isdecimal() and int(port) < 1 << 16):
        raise argparse.ArgumentTypeError(f"must be HOST:PORT, such as {LISTEN}, is {text!r}")
    return text


def _devices(text: str) -> str:
    if text not in DEVICES:
        raise argparse.ArgumentTypeError(f"must be {' or '.join(DEVICES)}, is {text!r}")
    return text


def _positive(text: str) -> int:
    return _whole(text, 1)


def _layers(text: str) -> int:
    return _whole(text, -1)


def _whole(text: str, low: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = low - 1
    if number < low:
        must = f"must be a whole number of at least {low}, is {text!r}"
        raise argparse.ArgumentTypeError(must)
    return number
