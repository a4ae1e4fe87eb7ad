"""Whether an attempt may start, and what a continuation follows."""

from dataclasses import replace

from pool_managerd.attempts.command import AttemptCommand, Refusal, prefix_of
from pool_managerd.core.attempts import AttemptKey, Prefix, Terminal
from pool_managerd.core.outbox import RefusalReason
from pool_managerd.core.store import AttemptStore
from pool_managerd.pools.pool import Pool


def refusal(command: AttemptCommand, pool: Pool, store: AttemptStore) -> Refusal | None:
    """Why `pool` does not take an attempt now, whatever its slots; None where it does."""
    if pool.incarnation.replica_id != command.replica_id:
        return unknown_replica(command)
    if not pool.accepts_work:
        return Refusal(RefusalReason.NOT_READY, f"{pool.pool_id} is {pool.state()[0].value}")
    if pool.info is not None and command.model_id not in ("", pool.info.model_id):
        return Refusal(
            RefusalReason.UNSUPPORTED, f"{pool.pool_id} serves {pool.info.model_id} only"
        )
    if store.full:
        return Refusal(RefusalReason.STORE_FULL, "no room for more held output")
    return None


def unknown_replica(command: AttemptCommand) -> Refusal:
    """The refusal of an attempt that is for an engine of the past, or of another host."""
    return Refusal(
        RefusalReason.UNKNOWN_REPLICA, f"{command.replica_id or 'no replica'} does not run here"
    )


def prefix(command: AttemptCommand, store: AttemptStore) -> Prefix | Refusal | None:
    """The text that a continuation follows; None where it follows nothing.

    The digest chain goes on over text that this host never saw, so the text must come with the
    command or be held here.
    """
    if command.continue_from is None:
        return None
    attempt, boundary = command.continue_from
    if not boundary.text_offset:
        return None
    if command.continue_text:
        sent = prefix_of(command.continue_text, boundary, command.continue_index)
        return sent or Refusal(
            RefusalReason.UNSUPPORTED, "continue_text is not the text before the continuation"
        )
    earlier = store.get(AttemptKey(command.key.job_id, attempt))
    held = earlier.prefix_at(boundary) if earlier else None
    return held or Refusal(
        RefusalReason.UNSUPPORTED, "the text before the continuation is not held here"
    )


def following(command: AttemptCommand, before: Prefix) -> AttemptCommand:
    """The command with the text before it.

    Where that did not come with it, only this host can count how much is left to generate. An
    engine has to generate one token at least.
    """
    request, tokens = replace(command.request, continue_text=before.text), command.continue_tokens
    if not command.continue_text and not tokens:
        tokens, most = before.tokens, request.sampling.max_tokens
        left = None if most is None else max(1, most - tokens)
        request = replace(request, sampling=replace(request.sampling, max_tokens=left))
    return replace(command, request=request, continue_tokens=tokens)


def with_continued(terminal: Terminal, tokens: int) -> Terminal:
    """Counts what was generated before a continuation as output, where the engine read a prompt."""
    usage = terminal.usage
    if not tokens:
        return terminal
    tokens_in = None if usage.tokens_in is None else max(0, usage.tokens_in - tokens)
    tokens_out = None if usage.tokens_out is None else usage.tokens_out + tokens
    # The engine's time is that of a part of the output.
    counted = replace(usage, tokens_in=tokens_in, tokens_out=tokens_out, decode_time_ms=None)
    return replace(terminal, usage=counted)
