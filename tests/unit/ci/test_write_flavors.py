"""The page about engines shows the flavors as they are."""

from ci.write_flavors import BEGIN, END, PAGE, table


def test_the_table_of_flavors_is_current() -> None:
    """docs/engines.md holds what the data says; `make docs` writes it."""
    text = PAGE.read_text(encoding="utf-8")

    assert f"{BEGIN}\n\n{table()}\n\n{END}" in text
