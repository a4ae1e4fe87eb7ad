"""Lists of a server that come in pages have an end, whatever it answers."""

import pytest

from llamaorch_client.errors import IntegrityError
from llamaorch_client.pages import PAGES_MAX, Pages


def test_a_list_is_over_with_the_page_that_names_no_other() -> None:
    """Each page is asked for by the token of the one before it."""
    pages, asked = Pages("jobs"), []
    answers = {"": "a", "a": "b", "b": ""}

    while pages.more:
        asked.append(pages.token)
        pages.turn(answers[pages.token])

    assert asked == ["", "a", "b"]


def test_the_same_page_twice_is_an_error() -> None:
    """Else a client would ask for it for ever."""
    pages = Pages("jobs")
    pages.turn("a")

    with pytest.raises(IntegrityError, match="the same page of jobs twice"):
        pages.turn("a")


def test_a_list_without_an_end_is_an_error() -> None:
    """Also where each page names another one; one of just so many pages is whole."""
    endless, whole = Pages("jobs"), Pages("jobs")
    for number in range(1, PAGES_MAX):
        endless.turn(str(number))
        whole.turn(str(number))

    whole.turn("")
    with pytest.raises(IntegrityError, match=f"jobs has more than {PAGES_MAX} pages"):
        endless.turn("last")

    assert not whole.more
