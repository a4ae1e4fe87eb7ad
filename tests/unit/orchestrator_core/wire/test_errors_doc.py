"""docs/errors.md says what the error table does."""

import re
from pathlib import Path

from google.rpc import error_details_pb2

from orchestrator_core.core.outcome import FieldViolation, Reason, Refusal
from orchestrator_core.wire.errors import DOMAIN, ENGINE_ERROR_CODES, ERROR_TABLE, to_status

DOC = Path(__file__).parents[4] / "docs" / "errors.md"


def metadata(refusal: Refusal) -> set[str]:
    """The keys that the ErrorInfo of a refusal carries."""
    info = error_details_pb2.ErrorInfo()
    to_status(refusal).details[0].Unpack(info)
    return set(info.metadata)


def table_after(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without markup and without the header row."""
    section = DOC.read_text().split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [
        [cell.strip().replace("`", "") for cell in row.strip("|").split("|")] for row in rows[2:]
    ]


def test_the_document_shows_the_table_as_it_is() -> None:
    """docs/errors.md names every reason with its code, retriability and details."""
    shown = {row[0]: row[1:4] for row in table_after("Reasons")}
    expected = {}
    for reason, row in ERROR_TABLE.items():
        retry = "with a delay" if row.delayed else ("yes" if row.retriable else "no")
        code = "by kind" if reason is Reason.ENGINE_ERROR else row.code.name
        expected[reason.value] = [code, retry, ", ".join(row.details)]

    assert shown == expected


def test_the_document_shows_the_codes_of_engine_errors() -> None:
    """docs/errors.md names every kind of engine error with its code."""
    shown = {row[0]: row[1] for row in table_after("Kinds of ENGINE_ERROR")}
    expected = {kind: code.name for kind, code in ENGINE_ERROR_CODES.items()}
    expected["engine_error"] = ERROR_TABLE[Reason.ENGINE_ERROR].code.name

    assert shown == expected


def test_the_document_names_the_metadata_that_is_sent() -> None:
    """Every key of ErrorInfo that the table adds is explained."""
    shown = {row[0] for row in table_after("Metadata of ErrorInfo")}
    refusal = Refusal(
        Reason.INVALID_PARAMS,
        "m",
        policy_label="p",
        engine="e",
        pool_id="p",
        violations=tuple(FieldViolation("f" * 100, "d" * 200) for _ in range(64)),
    )
    delayed = Refusal(Reason.POOL_UNREADY, "m", retry_after_ms=1)

    assert metadata(refusal) | metadata(delayed) <= shown
    assert re.search(rf"\b{re.escape(DOMAIN)}\b", DOC.read_text())
