"""Writes the table of flavors in docs/engines.md from their data; a test fails when it is stale."""

from collections.abc import Callable
from pathlib import Path

from pool_managerd.engines.openai_flavors import FLAVORS, Fact, Flavor

PAGE = Path(__file__).resolve().parent.parent / "docs" / "engines.md"
BEGIN, END = "<!-- flavors: generated -->", "<!-- flavors: end -->"

_UNLIMITED = {"omit": "the rest of the context", "null": "the rest of the context"}
_SEEDS = {2**63: "2⁶³", 2**64: "2⁶⁴", 2**32 - 1: "2³²-1"}
_DETERMINISM = {
    "never": "no",
    "one_slot": "with one slot",
    "vouched": "if the operator vouches for it",
}


def _fact(fact: Fact | None) -> str:
    if fact is None:
        return "configured"
    return f"`{fact.path or '/v1/models'}`"


def _slots(flavor: Flavor) -> str:
    if flavor.slots_max:
        return str(flavor.slots_max)
    if flavor.slots is None or flavor.slots_exact:
        return _fact(flavor.slots)
    return f"configured, at most `{flavor.slots.path}`"


def _unlimited(flavor: Flavor) -> str:
    ways = (flavor.unlimited_text, flavor.unlimited_chat)
    text, chat = (_UNLIMITED.get(way, "needed") for way in ways)
    return text if text == chat else f"text: {text}; chat: {chat}"


def _schema(flavor: Flavor) -> str:
    names = {
        route: next(iter(template))
        for route, template in (("text", flavor.schema_text), ("chat", flavor.schema_chat))
        if template is not None
    }
    if not names:
        return "refused"
    if len(set(names.values())) == 1 and len(names) == 2:  # noqa: PLR2004 # both routes
        return f"`{names['text']}`"
    return "; ".join(f"{route}: `{name}`" for route, name in names.items())


def _stop(flavor: Flavor) -> str:
    count = f"at most {flavor.stops_max}" if flavor.stops_max else "any number"
    return f"{count}, cut off here" if flavor.keeps_stop else count


def _finish(flavor: Flavor) -> str:
    if flavor.stop_detail:
        return f"by `{flavor.stop_detail}`"
    return "by the cut" if flavor.keeps_stop else "STOP if sequences were asked for"


def _idle(flavor: Flavor) -> str:
    if flavor.idle is None:
        return "believed"
    return ", ".join(f"`{name}`" for name in flavor.idle.gauges) or f"`{flavor.idle.path}`"


def _determinism(flavor: Flavor) -> str:
    return _DETERMINISM.get(flavor.determinism, f"with `{flavor.deterministic_hint}`")


_ROWS: tuple[tuple[str, Callable[[Flavor], str]], ...] = (
    ("engine in snapshots", lambda flavor: f"`{flavor.engine}`"),
    ("health", lambda flavor: f"`{flavor.health}`"),
    ("version", lambda flavor: _fact(flavor.version)),
    ("context", lambda flavor: _fact(flavor.context)),
    ("slots", _slots),
    ("seeds modulo", lambda flavor: _SEEDS[flavor.seed_modulus]),
    ("sampling", lambda flavor: ", ".join(sorted(flavor.sampling))),
    ("without `max_tokens`", _unlimited),
    ("stop sequences", _stop),
    ("EOS or STOP", _finish),
    ("counts", lambda f: "`stream_options`" if f.stream_usage else "last chunk"),
    ("token ids", lambda f: f"`{f.ids_field}`" if f.ids_field else "none"),
    ("JSON schema", _schema),
    ("grammar", lambda f: f"`{next(iter(f.grammar))}`" if f.grammar else "refused"),
    ("log probabilities", lambda f: "`logprobs`" if f.logprobs else "refused"),
    ("CONTINUE of a chat", lambda f: "refused" if f.continue_chat is None else "yes"),
    ("a cancel is seen at", _idle),
    ("deterministic", _determinism),
    ("engine options", lambda f: ", ".join(sorted(f.options)) if len(f.options) < 20 else  # noqa: PLR2004 # a row of a table
     "as `llama_server`"),
)  # fmt: skip


def table() -> str:
    """Returns the flavors as a Markdown table: one column each."""
    lines = [
        "| | " + " | ".join(f"`{name}`" for name in FLAVORS) + " |",
        "|---" * (len(FLAVORS) + 1) + "|",
    ]
    for title, cell in _ROWS:
        cells = " | ".join(cell(flavor) for flavor in FLAVORS.values())
        lines.append(f"| {title} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Replaces what stands between the two markers."""
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
