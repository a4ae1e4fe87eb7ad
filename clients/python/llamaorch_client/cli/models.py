# SPDX-License-Identifier: Apache-2.0
"""models: the catalog, listed, shown, changed and verified (ORCH-3031, ORCH-3037)."""

import argparse
import shlex
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from llamaorch_client.aio import AsyncClient
from llamaorch_client.cli import model_file
from llamaorch_client.cli.cells import gib, number
from llamaorch_client.cli.failure import ExitCode, UsageError
from llamaorch_client.cli.output import Output
from llamaorch_client.cli.wording import STATED
from llamaorch_client.errors import DuplicateError, InvalidParamsError, NotFoundError
from llamaorch_client.model_catalog import CatalogModel, DigestVerdict, ModelState

COLUMNS = ("MODEL", "STATE", "ALIASES", "ENGINES", "CTX", "VRAM", "DIGEST", "REVISION")
POOL_COLUMNS = ("POOL", "ENGINE", "VERDICT", "REPORTS")
NO_MODELS = "no models; `llorch models register` adds one, and pools serve theirs all the same"
DIGEST_CHARS = 19


async def models(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    """Carries out `llorch models ACTION`."""
    return await _ACTIONS[arguments.action or "list"](arguments, out, client)


async def _list(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    states = [ModelState(state.upper()) for state in getattr(arguments, "state", [])]
    listed = client.catalog.list(states, correlation_id=arguments.correlation_id)
    found = [model async for model in listed]
    if out.as_json:
        out.record({"models": found})
    elif not found:
        out.say(NO_MODELS)
    else:
        out.table("", COLUMNS, [_row(model) for model in found])
    return ExitCode.FINISHED


async def _show(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    model = await client.catalog.get(arguments.model, correlation_id=arguments.correlation_id)
    if out.as_json:
        out.record({"model": model})
    else:
        for name, value in _facts(model):
            out.result(f"{name:<16} {value}")
    return ExitCode.FINISHED


async def _register(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    model_id, stated = _stated(arguments)
    model = model_file.model({"model_id": model_id, **stated})
    before = await _known(model_id, arguments, client)
    try:
        kept = await client.catalog.register(model, correlation_id=arguments.correlation_id)
    except DuplicateError as error:
        hint = _instead(model_id, arguments, known=before is not None)
        detail = replace(error.detail, message=f"{error.message}: {hint}")
        raise DuplicateError(detail) from error
    # Said again in the same words it changes nothing.
    what = "is registered" if before is None else "was registered already, as you state it"
    return _kept(kept.model, kept.warnings, what, out)


async def _known(
    model_id: str, arguments: argparse.Namespace, client: AsyncClient
) -> CatalogModel | None:
    """The model of that id; None where there is none, be it the alias of another."""
    try:
        found = await client.catalog.get(model_id, correlation_id=arguments.correlation_id)
    except (InvalidParamsError, NotFoundError):
        return None
    return found if found.model_id == model_id else None


def _instead(model_id: str, arguments: argparse.Namespace, *, known: bool) -> str:
    """The command for who registers a model whose id or alias is taken."""
    if not known:
        return "`llorch models` lists those that are taken"
    stated = ["--file", arguments.file] if arguments.file else [model_id]
    command = shlex.join(["llorch", "models", "update", *stated])
    names = ["label", "dimension", *(name for name, _ in STATED.values())]
    options = any(getattr(arguments, name) is not None for name in names)
    show = shlex.join(["llorch", "models", "show", model_id])
    same = " with the options that you gave" if options else ""
    return f"`{command}`{same}; `{show}` tells what it is now"


async def _update(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    model_id, stated = _stated(arguments)
    if not stated:
        raise UsageError("say what to change, e.g. --ctx-max 8192; see llorch models update -h")
    told = {"model_id": model_id, "revision": arguments.revision, **stated}
    kept = await client.catalog.update(
        model_file.model(told), sorted(stated), correlation_id=arguments.correlation_id
    )
    return _kept(kept.model, kept.warnings, "is updated", out)


async def _retire(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    model = await client.catalog.retire(
        arguments.model,
        grace_s=arguments.grace,
        replaced_by=arguments.replaced_by,
        revision=arguments.revision,
        correlation_id=arguments.correlation_id,
    )
    return _kept(model, (), f"takes no more jobs; {_served_until(model)}", out)


async def _activate(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    model = await client.catalog.activate(
        arguments.model, revision=arguments.revision, correlation_id=arguments.correlation_id
    )
    return _kept(model, (), "takes jobs again", out)


async def _verify(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    """1 unless it is verified."""
    found = await client.catalog.verify(arguments.model, correlation_id=arguments.correlation_id)
    code = ExitCode.FINISHED if found.verified else ExitCode.JOB_FAILED
    if out.as_json:
        out.record({"verification": found})
        return code
    verdict = "verified" if found.verified else "not verified"
    signed = f", signed by {found.signed_by}" if found.signed_by else ""
    out.result(f"{found.model_id}: {verdict}{signed}, digest {found.digest or '-'}")
    if found.pools:
        rows = [
            (pool.pool_id, pool.engine, pool.verdict.value.lower(), pool.reported_digest or "-")
            for pool in found.pools
        ]
        out.table("", POOL_COLUMNS, rows)
    failed = any(pool.verdict is DigestVerdict.MISMATCH for pool in found.pools)
    for warning in found.warnings:
        out.say(f"llorch: {warning}", "red" if failed else "yellow")
    return code


async def _delete(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    await client.catalog.delete(
        arguments.model,
        revision=arguments.revision,
        force=arguments.force,
        correlation_id=arguments.correlation_id,
    )
    if out.as_json:
        out.record({"deleted": arguments.model})
    else:
        out.result(f"model {arguments.model} is forgotten; its jobs run on")
    return ExitCode.FINISHED


_ACTIONS: dict[str, Callable[[argparse.Namespace, Output, AsyncClient], Awaitable[ExitCode]]] = {
    "list": _list,
    "show": _show,
    "register": _register,
    "update": _update,
    "retire": _retire,
    "activate": _activate,
    "verify": _verify,
    "delete": _delete,
}


def _kept(model: CatalogModel, warnings: Sequence[str], what: str, out: Output) -> ExitCode:
    if out.as_json:
        out.record({"model": model, "warnings": warnings})
        return ExitCode.FINISHED
    out.result(f"model {model.model_id} {what} (revision {model.revision})")
    for warning in warnings:
        out.say(f"llorch: {warning}", "yellow")
    return ExitCode.FINISHED


def _row(model: CatalogModel) -> Sequence[str]:
    needed = model.requirements
    shown = model.digest[:DIGEST_CHARS] + ("…" if len(model.digest) > DIGEST_CHARS else "")
    return (
        model.model_id,
        _state(model),
        ", ".join(model.aliases) or "-",
        ", ".join(model.engines) or "any",
        number(model.ctx_max),
        gib(needed.min_vram_bytes if needed else None),
        shown or "-",
        str(model.revision),
    )


def _state(model: CatalogModel) -> str:
    if model.state is not ModelState.RETIRED:
        return model.state.value
    return "RETIRED" if model.closed else "RETIRING"


def _served_until(model: CatalogModel) -> str:
    if model.closed or model.grace_until is None:
        return "its pools take no more work"
    until = model.grace_until.astimezone()
    return f"what was accepted is served until {until:%Y-%m-%d %H:%M:%S}"


def _facts(model: CatalogModel) -> Iterator[tuple[str, str]]:
    """What is stated of a model, and what became of it."""
    yield "model", model.model_id
    state = _state(model)
    if model.state is ModelState.RETIRED:
        state += f", {_served_until(model)}"
    yield "state", state
    needed, sizes = model.requirements, model.dimensions
    for name, value in (
        ("replaced by", model.replaced_by),
        ("aliases", ", ".join(model.aliases)),
        ("file", model.model_ref),
        ("digest", model.digest),
        ("signature", model.signature),
        ("engines", ", ".join(model.engines)),
        ("engine version", model.engine_version),
        ("sampler profile", model.sampler_profile_version),
        ("context", "" if model.ctx_max is None else f"{model.ctx_max} tokens"),
        ("quantization", needed.quantization if needed else ""),
        ("memory", gib(needed.min_vram_bytes) if needed and needed.min_vram_bytes else ""),
        ("compute cap", needed.min_compute_cap if needed else ""),
        ("extensions", ", ".join(needed.required_extensions) if needed else ""),
        ("devices", ", ".join(needed.device_mask) if needed else ""),
        ("bytes per token", "" if model.bytes_per_token is None else f"{model.bytes_per_token:g}"),
        ("expected output", number(model.expected_tokens) if model.expected_tokens else ""),
        ("labels", ", ".join(f"{key}={value}" for key, value in sorted(model.labels.items()))),
    ):
        if value:
            yield name, value
    if sizes is not None:
        window = f" ({sizes.window_layers} with a window of {sizes.window_tokens})"
        layers = f"{sizes.layers} layers{window if sizes.window_layers else ''}"
        keys = f"keys {sizes.key_length} {sizes.key_type}"
        values = f"values {sizes.value_length} {sizes.value_type}"
        yield "dimensions", f"{layers}, {sizes.kv_heads} heads, {keys}, {values}"
    yield "revision", str(model.revision)


def _stated(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The model's id, and what options and the file say of it by key; options go first."""
    stated = model_file.read(arguments.file) if arguments.file else {}
    model_id = _model_id(arguments, stated.pop("model_id", ""))
    for path, (name, _) in STATED.items():
        if (value := getattr(arguments, name)) is not None:
            table, _, key = path.rpartition(".")
            (stated.setdefault(table, {}) if table else stated)[key] = value
    for key, pairs in (("labels", arguments.label), ("dimensions", arguments.dimension)):
        if pairs is not None:
            stated[key] = {**stated.get(key, {}), **dict(pairs)}
    return model_id, stated


def _model_id(arguments: argparse.Namespace, in_file: str) -> str:
    if arguments.model and in_file and arguments.model != in_file:
        raise UsageError(
            f"MODEL is {arguments.model}, and `model_id` in {arguments.file} is {in_file}: say it "
            "in one place"
        )
    model_id = str(arguments.model or in_file)
    if not model_id:
        where = f", or `model_id` in {arguments.file}" if arguments.file else ""
        raise UsageError(f"name the model: llorch models {arguments.action} MODEL{where}")
    return model_id
