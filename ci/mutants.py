"""Plants the bugs of ci/mutants.toml one at a time and expects the named tests to fail.

A test that cannot fail proves nothing: each planted bug is one that the suite must notice. Each of
the jobs that run at a time has a copy of the tree, so the working tree is never touched. First the
named tests must pass in one without a bug. Exit code: 0 all bugs were caught; 1 one survived, its
old text no longer matches exactly once, or its tests could not be run.

`python ci/mutants.py [--jobs N] [NAME...]` runs all bugs, or those named. When code moves, adjust
`file`, `old` and `new` in the list; tests/unit/ci/test_mutants.py says at once which texts are
stale.
"""

import argparse
import difflib
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "ci" / "mutants.toml"
# Of the tests of one bug, and of all tests that are named.
RUN_LIMIT_S = 600
SOUND_LIMIT_S = 3_600
_NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", ".build", ".demo", ".hypothesis", ".*_cache", "__pycache__", "node_modules"
)
# An id can hold spaces: those of its parameters.
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?\.py(?:::.+?)?)(?: - .*)?$", re.MULTILINE)
# Exit codes of pytest. Source: https://docs.pytest.org/en/stable/reference/exit-codes.html
_PASSED, _TESTS_FAILED = 0, 1


class MutantsError(Exception):
    """The list cannot be used as it is; the message says what to adjust."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted bug: `old`, which `file` holds exactly once, becomes `new`.

    `breaks` says what goes wrong, `tests` are paths, or ids of pytest, that must notice.
    """

    name: str
    breaks: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """The text of the file with the bug in it.

        Raises:
            MutantsError: when `old` is not in it exactly once.
        """
        found = text.count(self.old)
        if found != 1:
            raise MutantsError(
                f"{self.name}: the old text is {found} times in {self.file}, must be there once"
                f"{self._nearest(text)}; adjust ci/mutants.toml"
            )
        return text.replace(self.old, self.new)

    def _nearest(self, text: str) -> str:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        wanted = self.old.strip().splitlines()[0].strip()
        near = difflib.get_close_matches(wanted, lines, n=1, cutoff=0.5)
        return f" (nearest: {near[0]!r})" if near else ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the tests took one bug. `caught` is the only good answer."""

    mutant: Mutant
    caught: bool
    told: str
    took_s: float


def load(path: Path = LIST) -> tuple[Mutant, ...]:
    """The list of planted bugs.

    Raises:
        MutantsError: when an entry lacks a key, has an unknown one, or a name is there twice.
    """
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("mutant", [])
    known = {field.name for field in fields(Mutant)}
    for entry in entries:
        if entry.keys() != known:
            wrong = ", ".join(sorted(entry.keys() ^ known))
            raise MutantsError(f"{entry.get('name', 'an entry')}: missing or unknown: {wrong}")
    mutants = tuple(Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries)
    names = [mutant.name for mutant in mutants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MutantsError(f"names that are there twice: {', '.join(twice)}")
    return mutants


def check(mutants: Sequence[Mutant], root: Path = ROOT) -> None:
    """Makes sure that every bug can be planted, before any time is spent.

    Raises:
        MutantsError: naming the first that cannot.
    """
    for mutant in mutants:
        path = root / mutant.file
        if not path.is_file():
            raise MutantsError(f"{mutant.name}: there is no file {mutant.file}")
        mutant.applied(path.read_text(encoding="utf-8"))
        for test in mutant.tests:
            if not (root / test.partition("::")[0]).exists():
                raise MutantsError(f"{mutant.name}: there is no test {test}")


def run(mutants: Sequence[Mutant], root: Path = ROOT, jobs: int = 1) -> list[Verdict]:
    """Plants each bug in a copy of `root` and runs its tests. Minutes for a long list.

    Raises:
        MutantsError: when a bug cannot be planted, or the tests fail without one.
    """
    check(mutants, root)
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        jobs = max(1, min(jobs, len(mutants)))
        free = queue.SimpleQueue[Path]()
        for number in range(jobs):
            free.put(
                shutil.copytree(
                    root, Path(scratch) / f"tree-{number}", ignore=_NOT_COPIED, symlinks=True
                )
            )
        every = sorted({test for mutant in mutants for test in mutant.tests})
        sound = free.get()
        code, output = _pytest(sound, [*_spread(jobs), *every], SOUND_LIMIT_S)
        free.put(sound)
        if code is None:
            raise MutantsError(f"the tests take more than {SOUND_LIMIT_S} s without a planted bug")
        if code != _PASSED:
            raise MutantsError(f"the tests do not pass without a planted bug:\n{output[-2_000:]}")

        def plant(mutant: Mutant) -> Verdict:
            copy = free.get()
            try:
                verdict = _try(mutant, copy)
            finally:
                free.put(copy)
            print(_row(verdict), flush=True)
            return verdict

        with ThreadPoolExecutor(jobs) as threads:
            return list(threads.map(plant, mutants))


def _spread(jobs: int) -> list[str]:
    """Options with which pytest uses so many processes; a file stays in one."""
    return ["-n", str(jobs), "--dist", "loadfile"] if jobs > 1 else []


def _try(mutant: Mutant, copy: Path) -> Verdict:
    path = copy / mutant.file
    sound = path.read_text(encoding="utf-8")
    began_s = time.monotonic()
    path.write_text(mutant.applied(sound), encoding="utf-8")
    try:
        code, output = _pytest(copy, mutant.tests, RUN_LIMIT_S)
    finally:
        path.write_text(sound, encoding="utf-8")
    took_s = time.monotonic() - began_s
    failed = _FAILED.search(output)
    if code == _TESTS_FAILED and failed:
        return Verdict(mutant, caught=True, told=failed[1], took_s=took_s)
    told = "SURVIVED" if code == _PASSED else f"tests did not run (pytest exit code {code})"
    if code is None:
        told = f"tests took more than {RUN_LIMIT_S} s"
    return Verdict(mutant, caught=False, told=told, took_s=took_s)


def _pytest(copy: Path, tests: Sequence[str], limit_s: float) -> tuple[int | None, str]:
    """Exit code and output; the code is None beyond the time limit."""
    # A file that is changed and changed back within a second must not be taken from a cache, and a
    # search that starts from another seed each time could miss a bug today and find it tomorrow.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "--tb=no", "-rfE"]
    command += ["-p", "no:cacheprovider", "--hypothesis-seed=0", *tests]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "1000"}
    try:
        done = subprocess.run(
            command,
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout + done.stderr


def _row(verdict: Verdict) -> str:
    mark = "caught" if verdict.caught else "MISSED"
    return f"{mark}  {verdict.took_s:5.1f} s  {verdict.mutant.name:32} {verdict.told}"


def _chosen(listed: Sequence[Mutant], names: Sequence[str]) -> list[Mutant]:
    unknown = sorted(set(names) - {mutant.name for mutant in listed})
    if unknown:
        raise MutantsError(f"no such bug: {', '.join(unknown)}")
    return [mutant for mutant in listed if not names or mutant.name in names]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the check and returns the exit code."""
    parser = argparse.ArgumentParser(description="Plants known bugs and expects red tests.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="bugs to plant; default: all")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="bugs at a time; default: processors"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    try:
        listed = load(arguments.root / "ci" / "mutants.toml")
        verdicts = run(_chosen(listed, arguments.names), arguments.root, arguments.jobs)
    except MutantsError as error:
        print(error, file=sys.stderr)
        return 1
    missed = [verdict.mutant for verdict in verdicts if not verdict.caught]
    print(f"{len(verdicts) - len(missed)} of {len(verdicts)} planted bugs were caught")
    for mutant in missed:
        print(f"missed: {mutant.name}: {mutant.breaks} ({mutant.file})")
    return 1 if missed or not verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
