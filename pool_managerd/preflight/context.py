"""Whether a pool gets the context that it asks for. LO-205.

llama.cpp gives a slot no more tokens than its model was trained with, tells that to its log alone,
and takes the memory for all that was asked. Source: llama.cpp, tools/server/server-context.cpp,
`load_model` ("the slot context exceeds the training context of the model - capping"). Other engines
refuse to start with such a context, or their adapters do.
"""

from pathlib import Path

from pool_managerd.config.engines import EngineTable, OpenAiTable
from pool_managerd.config.llama import EmbeddedTable, LlamaServerTable
from pool_managerd.config.schema import PoolTable
from pool_managerd.engines.gguf_kv import trained_context

_LONGER = "or use a model with a longer context"


def longer_than_trained(table: PoolTable) -> str:
    """What to say of a pool that asks for more than its model file was trained with, or "".

    Of a model that is not found yet, or does not say, nothing. Blocks for milliseconds.
    """
    key, asked = asked_context(table.engine)
    trained = _trained(table) if asked else None
    if trained is None or asked <= trained:
        return ""
    return (
        f"{key} = {asked}, but the model was trained with a context of {trained} tokens, and "
        f"llama.cpp serves no more, but takes the memory for it: set {key} = {trained}, {_LONGER}"
    )


def served_less(table: PoolTable, served: int) -> str:
    """What to say of a started engine that serves less than its pool asks for, or "".

    Blocks for milliseconds.
    """
    key, asked = asked_context(table.engine)
    if asked <= served:
        return ""
    trained = _trained(table)
    by_model = trained is not None and trained < asked
    why = f"its model was trained with {trained}" if by_model else "its engine gives no more"
    return (
        f"Pool {table.pool_id} serves a context of {served} tokens, not {key} = {asked}: {why}; "
        f"set {key} = {served}, {_LONGER}."
    )


def asked_context(engine: EngineTable) -> tuple[str, int]:
    """The setting that says the context of one slot, and its tokens; 0 where none is asked for."""
    match engine:
        case EmbeddedTable() | LlamaServerTable():
            return "ctx_per_slot", engine.ctx_per_slot
        case OpenAiTable() if engine.llama_cpp:
            return "ctx_max", engine.ctx_max
        case _:
            return "", 0


def _trained(table: PoolTable) -> int | None:
    path = getattr(table.engine, "model_path", "")
    return trained_context(Path(path)) if path else None
