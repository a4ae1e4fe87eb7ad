"""Draws docs/traceability.md from ci/requirements.toml and the citations; with --check, fails.

A requirement is cited by its id, in code and in tests. The check fails when something built is not
cited in both, when an id is cited that is not in the list, and when the page is stale.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST, PAGE = Path("ci/requirements.toml"), Path("docs/traceability.md")
ID = re.compile(r"\b(?:ORCH|LO|HME|AUTH|OC-[A-Z]+)-\d+\b")
# Comments, docstrings, stories and tags of journeys carry citations; the stage table of the README
# is a behaviour.
CITING = (".py", ".proto", ".mjs", ".txt", ".feature", "README.md")
# Its own tests cite ids that must not count.
NOT_CITING = ("_pb2.py", "_pb2_grpc.py", "ci/test_trace_requirements.py")
FILES_SHOWN = 4

HEAD = """\
# Traceability

Drawn from `ci/requirements.toml` and the citations in code and tests by
`ci/trace_requirements.py`; do not edit. `make docs` draws it, `make docs-check` fails on a built
requirement that is not cited in code and in tests.
"""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One promise. `lacks` says what is missing of a planned one that is there in part."""

    id: str
    text: str
    built: bool
    lacks: str = ""


@dataclass(slots=True)
class Citations:
    """Files that cite an id, relative to the root."""

    code: list[str] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)


def load(root: Path) -> list[Requirement]:
    """Reads the list.

    Raises:
        ValueError: an id is there twice, or a status is neither built nor planned.
    """
    found: dict[str, Requirement] = {}
    for entry in tomllib.loads((root / LIST).read_text(encoding="utf-8"))["requirement"]:
        if entry["status"] not in ("built", "planned"):
            raise ValueError(f"{entry['ids']}: status is built or planned")
        for name in entry["ids"]:
            if name in found:
                raise ValueError(f"{name} is listed twice")
            built = entry["status"] == "built"
            found[name] = Requirement(name, entry["text"], built, entry.get("lacks", ""))
    return list(found.values())


def cited(root: Path, files: Iterable[str]) -> dict[str, Citations]:
    """Returns who cites what, among `files`."""
    found: dict[str, Citations] = {}
    for name in sorted(files):
        if not name.endswith(CITING) or name.endswith(NOT_CITING):
            continue
        ids = set(ID.findall((root / name).read_text(encoding="utf-8")))
        for cited_id in ids:
            where = found.setdefault(cited_id, Citations())
            (where.tests if name.startswith("tests/") else where.code).append(name)
    return found


def problems(listed: Sequence[Requirement], found: Mapping[str, Citations]) -> list[str]:
    """Returns what is wrong with the citations, one line each."""
    wrong: list[str] = []
    for requirement in listed:
        where = found.get(requirement.id, Citations())
        if requirement.built and not where.code:
            wrong.append(f"{requirement.id} is built, and no code cites it")
        if requirement.built and not where.tests:
            wrong.append(f"{requirement.id} is built, and no test cites it")
    known = {requirement.id for requirement in listed}
    for name in sorted(found.keys() - known):
        where = found[name]
        wrong.append(f"{name} is not in {LIST}, cited in {' '.join(where.code + where.tests)}")
    return wrong


def page(listed: Sequence[Requirement], found: Mapping[str, Citations]) -> str:
    """Returns the whole page."""
    lines = ["| id | behaviour | status | code | tests |", "|---|---|---|---|---|"]
    for requirement in listed:
        where = found.get(requirement.id, Citations())
        status = "built" if requirement.built else "planned"
        if requirement.lacks:
            status += f"; missing: {requirement.lacks}"
        cells = (requirement.id, requirement.text, status, _links(where.code), _links(where.tests))
        lines.append("| " + " | ".join(cells) + " |")
    return HEAD + "\n" + "\n".join(lines) + "\n"


def _links(files: Sequence[str]) -> str:
    shown = [f"[{Path(name).name}](../{name})" for name in files[:FILES_SHOWN]]
    if len(files) > FILES_SHOWN:
        shown.append(f"{len(files) - FILES_SHOWN} more")
    return ", ".join(shown)


def _tracked(root: Path) -> list[str]:
    """Files that belong to the tree: tracked, or new and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    said = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return [name for name in said.splitlines() if (root / name).is_file()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the page, or compares it with --check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 when wrong")
    check = parser.parse_args(arguments).check
    listed, found = load(ROOT), cited(ROOT, _tracked(ROOT))
    wrong = problems(listed, found)
    drawn, path = page(listed, found), ROOT / PAGE
    if not check:
        path.write_text(drawn, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != drawn:
        wrong.append(f"{PAGE} is stale; run make docs")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
