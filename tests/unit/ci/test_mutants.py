"""The list of planted bugs cannot rot, and the check that plants them cannot be fooled."""

from pathlib import Path

import pytest

from ci.mutants import LIST, ROOT, Mutant, check, load, main

MUTANTS = load()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_bug_can_still_be_planted(mutant: Mutant) -> None:
    """Its old text is there exactly once, the new one is valid Python, its tests exist."""
    check([mutant])

    planted = mutant.applied((ROOT / mutant.file).read_text(encoding="utf-8"))

    compile(planted, mutant.file, "exec")
    assert mutant.old != mutant.new
    assert mutant.tests
    assert mutant.breaks


def test_the_bugs_that_matter_are_in_the_list() -> None:
    """At least ten in a core, eight for fault seeds, all in what is delivered or judges that."""
    homes = [Path(mutant.file).parts[:2] for mutant in MUTANTS if mutant.file not in JUDGES]

    assert sum(part == "core" for _, part in homes) >= 10
    assert sum(mutant.tests == FAULT_SEEDS for mutant in MUTANTS) >= 8
    assert {part for part, _ in homes} == {"orchestrator_core", "pool_managerd", "clients", "demo"}


# Tests can be too mild, too.
JUDGES = (
    "tests/contract/answers.py",
    "tests/acceptance/haiku_rules.py",
    "faults/chaos/campaign.py",
)
FAULT_SEEDS = ("tests/unit/faults/test_seeds.py::test_the_first_seeds_violate_no_invariant",)
GOOD = 'name = "n"\nbreaks = "b"\nfile = "code.py"\nold = "return 1"\nnew = "return 2"\n'
TESTS = 'tests = ["test_code.py"]\n'
ASSERTING = "from code_under_test import one\n\n\ndef test_one():\n    assert one() == 1\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A tree with one function, one test that notices a change, and a list with one bug."""
    (tmp_path / "ci").mkdir()
    (tmp_path / "pytest.toml").write_text("[pytest]\n", encoding="utf-8")
    (tmp_path / "code_under_test.py").write_text("def one():\n    return 1\n", encoding="utf-8")
    (tmp_path / "test_code.py").write_text(ASSERTING, encoding="utf-8")
    listed(tmp_path, GOOD + TESTS)
    return tmp_path


def listed(project: Path, *entries: str) -> None:
    """Writes the list."""
    text = "\n".join(f"[[mutant]]\n{entry}" for entry in entries)
    text = text.replace("code.py", "code_under_test.py", 1)
    (project / "ci" / "mutants.toml").write_text(text, encoding="utf-8")


def test_a_bug_that_tests_notice_is_caught(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0, the test that noticed it is named, and the tree is as before."""
    assert main(["--root", str(project)]) == 0

    said = capsys.readouterr().out
    assert "caught" in said
    assert "test_code.py::test_one" in said
    assert "return 1" in (project / "code_under_test.py").read_text(encoding="utf-8")


def test_bugs_that_are_planted_at_the_same_time_do_not_meet(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each job has its own copy: a bug that nobody looks for survives beside one that is caught."""
    (project / "other.py").write_text("def two():\n    return 2\n", encoding="utf-8")
    (project / "test_other.py").write_text("def test_other():\n    assert True\n", encoding="utf-8")
    unseen = 'name = "m"\nbreaks = "b"\nfile = "other.py"\nold = "return 2"\nnew = "return 3"\n'
    listed(project, GOOD + TESTS, unseen + 'tests = ["test_other.py"]\n')

    assert main(["--root", str(project), "--jobs", "2"]) == 1

    said = capsys.readouterr().out
    assert "1 of 2 planted bugs were caught" in said
    assert "missed: m" in said


def test_the_id_of_a_test_can_hold_spaces(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parameters make such ids; the bug counts as caught all the same."""
    each = 'import pytest\n\n\n@pytest.mark.parametrize("word", ["a b"])\ndef test_one(word):'
    (project / "test_code.py").write_text(
        ASSERTING.replace("def test_one():", each), encoding="utf-8"
    )

    assert main(["--root", str(project)]) == 0

    assert "test_code.py::test_one[a b]\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        (ASSERTING.replace("one() == 1", "one()"), "SURVIVED"),
        # A bug that only breaks the import of its tests was not noticed by any of them.
        (
            ASSERTING.replace("\n\n\ndef", "\n\nif one() == 2:\n    raise SystemExit(9)\n\n\ndef"),
            "did not run",
        ),
        ("def test_one():\n    assert False\n", "do not pass without a planted bug"),
    ],
)
def test_tests_that_prove_nothing_are_told(
    project: Path, capsys: pytest.CaptureFixture[str], tests: str, said: str
) -> None:
    """Exit code 1: the bug survived, its tests did not run, or they fail anyway."""
    (project / "test_code.py").write_text(tests, encoding="utf-8")

    assert main(["--root", str(project)]) == 1

    told = capsys.readouterr()
    assert said in told.out + told.err


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (GOOD.replace("return 1", "return 7") + TESTS, "0 times in code_under_test.py"),
        (GOOD.replace("return 1", "return 7") + TESTS, "nearest: 'return 1'"),
        (GOOD.replace("return 1", "n") + TESTS, "times in code_under_test.py"),
        (GOOD + TESTS.replace("test_code", "test_gone"), "there is no test test_gone.py"),
        (GOOD.replace("code.py", "code.py.gone") + TESTS, "there is no file"),
        (GOOD, "missing or unknown: tests"),
        (GOOD + TESTS + "why = 1\n", "missing or unknown: why"),
    ],
)
def test_a_stale_list_is_told_before_anything_runs(
    project: Path, capsys: pytest.CaptureFixture[str], entry: str, said: str
) -> None:
    """Exit code 1, with what to adjust."""
    listed(project, entry)

    assert main(["--root", str(project)]) == 1
    assert said in capsys.readouterr().err


def test_names_are_unique_and_known(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two bugs of one name are refused, and so is a name that is not there."""
    assert main(["--root", str(project), "nobody"]) == 1
    listed(project, GOOD + TESTS, (GOOD + TESTS).replace("code.py", "code_under_test.py", 1))
    assert main(["--root", str(project)]) == 1

    said = capsys.readouterr().err
    assert "no such bug: nobody" in said
    assert "there twice: n" in said
    assert LIST.is_relative_to(ROOT)
