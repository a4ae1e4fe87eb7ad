"""The page's files, read without a browser. HME-050."""

import itertools
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from orchestrator_core.status.page import FILES, HEADERS

STATIC = files("orchestrator_core.status").joinpath("static")
HTML = STATIC.joinpath("index.html").read_text(encoding="utf-8")
CSS = STATIC.joinpath("status.css").read_text(encoding="utf-8")
SCRIPTS = {name: STATIC.joinpath(name).read_text("utf-8") for name in FILES if name.endswith("js")}
VOID = {"meta", "link", "br", "img", "input", "hr"}
# Least contrast of text, and of what is not text. Source: WCAG 2.2, 1.4.3 and 1.4.11.
TEXT, GRAPHICS = 4.5, 3.0


class Tags(HTMLParser):
    """All tags with their attributes, and whether they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes a tag."""
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Closes it."""
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of all tags of a name."""
        return [attributes for name, attributes in self.found if name == tag]


TAGS = Tags(HTML)


def test_every_file_is_served_and_every_served_file_is_there() -> None:
    """Nothing is forgotten in either place."""
    there = {path.name for path in STATIC.iterdir()}

    assert there == set(FILES)
    used = re.findall(r'(?:src|href)="/status/([a-z.]+)"', HTML)
    imported = re.findall(r'from "\./([a-z.]+)"|import "\./([a-z.]+)"', "".join(SCRIPTS.values()))
    assert {*used, *itertools.chain(*imported)} - {""} == {*FILES[1:], "now.json"}


def test_nothing_comes_from_elsewhere_and_nothing_is_inline() -> None:
    """The policy would refuse it; here it is seen before a browser does."""
    for name in FILES:
        text = STATIC.joinpath(name).read_text(encoding="utf-8")
        urls = set(re.findall(r"(?:https?:)?//[a-z][\w.-]+\.[a-z]+[\w./-]*", text))
        assert {url.split("/")[2] for url in urls} <= {"www.w3.org"}, name
    for tag, attributes in TAGS.found:
        assert "style" not in attributes, tag
        assert not [key for key in attributes if key.startswith("on")], tag
    assert all(attributes.get("src") for attributes in TAGS.all("script"))
    assert not TAGS.all("style")


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_make_no_html_of_texts(name: str) -> None:
    """What a client named becomes text nodes; there is no way to make it anything else."""
    forbidden = ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function(")

    assert not [word for word in forbidden if word in SCRIPTS[name]]


def test_the_policy_allows_own_files_alone() -> None:
    """No inline code, no other origin, no frames, and no text that becomes code."""
    policy = dict(
        directive.strip().split(" ", 1)
        for directive in HEADERS["Content-Security-Policy"].split(";")
    )

    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["form-action"] == policy["trusted-types"] == "'none'"
    assert {policy[f"{kind}-src"] for kind in ("script", "style", "img", "connect")} == {"'self'"}
    assert policy["require-trusted-types-for"] == "'script'"


def test_the_page_can_be_read_by_ear() -> None:
    """A language, one first heading, captions, headed columns, named groups that keys reach."""
    assert TAGS.open == []
    assert TAGS.all("html")[0]["lang"] == "en"
    assert len(TAGS.all("h1")) == 1
    assert len(TAGS.all("table")) == len(TAGS.all("caption")) == 4
    assert all(th["scope"] == "col" for th in TAGS.all("th"))
    groups = [a for _, a in TAGS.found if a.get("role") == "group"]
    assert len(groups) == 4
    ids = {a["id"] for _, a in TAGS.found if "id" in a}
    for attributes in groups:
        assert attributes["tabindex"] == "0"
        assert attributes["aria-labelledby"] in ids


def test_one_quiet_live_region_and_one_alert() -> None:
    """Numbers that change every second are not read out."""
    roles = [a.get("role") for _, a in TAGS.found]

    assert (roles.count("status"), roles.count("alert")) == (1, 1)
    assert "aria-live" not in HTML


def palette(css: str) -> dict[str, str]:
    """The colours that a block of the style sheet names."""
    return dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6});", css))


LIGHT_CSS, DARK_CSS = CSS.split("@media (prefers-color-scheme: dark)")
LIGHT, DARK = palette(LIGHT_CSS), palette(DARK_CSS)


def luminance(colour: str) -> float:
    """Source: WCAG 2.2, relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Source: WCAG 2.2, contrast ratio."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_every_colour_can_be_told_from_its_ground(colours: dict[str, str]) -> None:
    """Texts on both grounds, bars on their panel, in both schemes."""
    assert LIGHT.keys() == DARK.keys()
    for name in ("text", "soft", "accent", "good", "fair", "bad"):
        for ground in ("ground", "panel"):
            assert contrast(colours[name], colours[ground]) >= TEXT, (name, ground)
    assert contrast(colours["panel"], colours["accent"]) >= TEXT, "a pressed button"
    for name in ("accent", "decode"):
        assert contrast(colours[name], colours["track"]) >= GRAPHICS, name


def test_nothing_moves() -> None:
    """There is nothing to switch off for those who ask for less motion."""
    assert "transition" not in CSS
    assert "animation" not in CSS
