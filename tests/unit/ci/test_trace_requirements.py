"""The list of requirements, and the check that holds code and tests to it."""

from pathlib import Path

import pytest

from ci.trace_requirements import Citations, Requirement, cited, load, page, problems


def test_citations_are_told_apart_by_where_they_stand(tmp_path: Path) -> None:
    """Code, tests, and files that do not count; an id is a whole word."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "core.py").write_text('"""LO-101, xLO-102, LO-103x."""', encoding="utf-8")
    (tmp_path / "notes.md").write_text("LO-104", encoding="utf-8")
    (tmp_path / "tests" / "test_core.py").write_text("# LO-101 OC-CORE-1", encoding="utf-8")

    found = cited(tmp_path, ["core.py", "notes.md", "tests/test_core.py"])

    assert found == {
        "LO-101": Citations(["core.py"], ["tests/test_core.py"]),
        "OC-CORE-1": Citations([], ["tests/test_core.py"]),
    }


def test_what_is_built_is_cited_twice_and_what_is_cited_is_listed() -> None:
    """Planned ids may be cited or not."""
    listed = [
        Requirement("LO-1", "both", built=True),
        Requirement("LO-2", "no test", built=True),
        Requirement("LO-3", "no code", built=True),
        Requirement("LO-4", "later", built=False),
    ]
    found = {
        "LO-1": Citations(["a.py"], ["t.py"]),
        "LO-2": Citations(["a.py"], []),
        "LO-3": Citations([], ["t.py"]),
        "LO-9": Citations(["a.py"], []),
    }

    wrong = problems(listed, found)

    assert wrong == [
        "LO-2 is built, and no test cites it",
        "LO-3 is built, and no code cites it",
        "LO-9 is not in ci/requirements.toml, cited in a.py",
    ]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ('ids = ["LO-1", "LO-1"]\ntext = "t"\nstatus = "built"', "LO-1 is listed twice"),
        ('ids = ["LO-1"]\ntext = "t"\nstatus = "done"', "built or planned"),
    ],
)
def test_a_list_that_contradicts_itself_is_refused(tmp_path: Path, entries: str, said: str) -> None:
    """Each id once, with one of two statuses."""
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "requirements.toml").write_text(f"[[requirement]]\n{entries}\n", "utf-8")

    with pytest.raises(ValueError, match=said):
        load(tmp_path)


def test_the_page_links_some_files_and_counts_the_rest() -> None:
    """A widely cited id does not fill the page."""
    files = [f"core/f{n}.py" for n in range(6)]

    drawn = page([Requirement("LO-1", "it works", built=True)], {"LO-1": Citations(files, [])})

    assert "| LO-1 | it works | built | [f0.py](../core/f0.py), " in drawn
    assert "f3.py" in drawn
    assert "f4.py" not in drawn
    assert "2 more" in drawn
