"""Traces: the published formats, the user's own, and errors that say what to change."""

from pathlib import Path

import pytest

from orchestrator_core.simulator.traces import Request, load_trace, synthetic


def write(folder: Path, name: str, *lines: str) -> Path:
    """Makes a file of lines."""
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_azure_format_is_read(tmp_path: Path) -> None:
    """Instants have seven digits after the point."""
    path = write(
        tmp_path,
        "azure.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2023-11-16 18:59:59.5000000,374,44",
        "2023-11-16 19:00:00.7501234,396,109",
    )

    first, second = load_trace(path)

    assert first == Request(0.0, 374, 44)
    assert second.arrival_ms == pytest.approx(1250.1234, abs=1e-3)


def test_the_mooncake_format_is_read(tmp_path: Path) -> None:
    """Milliseconds and lengths; the hashes of prefixes are ignored."""
    path = write(
        tmp_path,
        "mooncake.jsonl",
        '{"timestamp": 27000, "input_length": 9, "output_length": 5, "hash_ids": [1]}',
        "",
        '{"timestamp": 27040, "input_length": 0, "output_length": 6, "hash_ids": [1]}',
    )

    assert load_trace(path) == (Request(0.0, 9, 5), Request(40.0, 0, 6))


def test_the_users_own_format_is_sorted_by_arrival_and_may_be_cut(tmp_path: Path) -> None:
    """Columns come in any order, others are ignored."""
    path = write(
        tmp_path,
        "own.csv",
        "who,output_tokens,arrival_ms,prompt_tokens",
        "a,1,50.5,10",
        "b,2,20.25,20",
        "c,3,70,30",
    )

    assert load_trace(path, 2) == (Request(0.0, 20, 2), Request(30.25, 10, 1))


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("a.csv", ["arrival_ms,prompt_tokens,output_tokens", "0,1,1", "5,x,1"],
         r"a\.csv, line 3: prompt_tokens must be a whole number from 0 to \d+, is 'x'"),
        ("a.csv", ["arrival_ms,prompt_tokens,output_tokens", "0,1,0"],
         r"line 2: output_tokens must be a whole number from 1"),
        ("a.csv", ["arrival_ms,prompt_tokens,output_tokens", "0,1"],
         r"line 2: output_tokens is missing"),
        ("a.csv", ["arrival_ms,prompt_tokens,output_tokens", "soon,1,1"],
         r"line 2: arrival_ms is no instant: 'soon'"),
        ("a.csv", ["arrival_ms,prompt_tokens,output_tokens", "nan,1,1"], r"line 2: .* no instant"),
        ("a.csv", ["TIMESTAMP,ContextTokens,GeneratedTokens", "yesterday,1,1"],
         r"line 2: TIMESTAMP is no instant: 'yesterday'"),
        ("a.csv", ["time,in,out", "1,2,3"],
         r"line 2: the columns must be arrival_ms, prompt_tokens, output_tokens; found time, in"),
        ("a.csv", ["arrival_ms,prompt_tokens,output_tokens"], r"a\.csv: no requests"),
        ("a.jsonl", ['{"arrival_ms": 1,'], r"a\.jsonl, line 1: not JSON"),
        ("a.jsonl", ["[1, 2]"], r"a\.jsonl, line 1: must be an object"),
        ("a.csv", ["arrival_ms,prompt_tokens,output_tokens,x", "0,1,1," + "x" * 200_000],
         r"a\.csv: not CSV \("),
        ("a.txt", ["1"], r"a\.txt: the name must end in \.csv or \.jsonl"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_file_line_and_what_to_change(
    tmp_path: Path, name: str, lines: list[str], message: str
) -> None:
    """Nobody has to look at a traceback."""
    path = write(tmp_path, name, *lines)

    with pytest.raises(ValueError, match=message):
        load_trace(path)


def test_a_file_that_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    """A compressed trace, for one."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"\x1f\x8b\xff")

    with pytest.raises(ValueError, match=r"a\.csv: not UTF-8 text"):
        load_trace(path)


def test_a_made_up_trace_depends_on_its_seed_only() -> None:
    """Sorted, from zero, at least one token each way."""
    first, again, other = synthetic(1, 200), synthetic(1, 200), synthetic(2, 200)

    assert first == again
    assert first != other
    assert first[0].arrival_ms == 0.0
    assert [r.arrival_ms for r in first] == sorted(r.arrival_ms for r in first)
    assert min(min(r.prompt_tokens, r.output_tokens) for r in first) >= 1
