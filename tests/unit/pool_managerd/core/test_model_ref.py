"""What a model reference means. ORCH-3090."""

import re

import pytest

from pool_managerd.core.model_ref import (
    ModelRef,
    ModelRefError,
    Scheme,
    parse_model_ref,
    part_names,
    shown_ref,
)

HEX = "0123456789abcdef" * 4
SHA = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.gguf", ("file", "a.gguf", "", "", "")),
        ("./a:b.gguf", ("file", "./a:b.gguf", "", "", "")),
        ("file:a.gguf", ("file", "a.gguf", "", "", "")),
        ("file:/m/a.gguf", ("file", "/m/a.gguf", "", "", "")),
        ("FILE:///m/a.gguf", ("file", "/m/a.gguf", "", "", "")),
        (f"/m/a b.gguf#sha256={HEX.upper()}", ("file", "/m/a b.gguf", SHA, "", "")),
        ("hf:org/repo/a.gguf", ("hf", "a.gguf", "", "org/repo", "main")),
        (f"hf:o/r@v1.0/d/a.gguf#sha256={HEX}", ("hf", "d/a.gguf", SHA, "o/r", "v1.0")),
        (f"https://h/a.gguf#sha256={HEX}", ("https", "https://h/a.gguf", SHA, "", "")),
        (f"http://127.0.0.1:8/a?b#sha256={HEX}", ("https", "http://127.0.0.1:8/a?b", SHA, "", "")),
    ],
)
def test_a_reference_is_understood(text: str, expected: tuple[str, ...]) -> None:
    """Scheme, location, digest, repository, revision."""
    scheme, location, digest, repo, revision = expected

    found = parse_model_ref(text)

    assert found == ModelRef(text, Scheme(scheme), location, digest, repo, revision)
    assert found.remote == (scheme != "file")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "1 to 2048 printable characters, not 0"),
        ("a\n.gguf", "printable"),
        ("x" * 2_049, "not 2049"),
        ("s3:bucket/key", "cannot be fetched from s3: yet"),
        ("oci:registry/image:tag", "cannot be fetched from oci: yet"),
        ("ftp://h/a", "the scheme ftp: is not known"),
        ("file:", "takes a path"),
        ("file://host/a.gguf", "takes a path"),
        ("a.gguf#sha256=12", "64 hex digits"),
        ("hf:repo/a.gguf", "hf:ORG/REPO/FILE"),
        ("hf:o/r/", "hf:ORG/REPO/FILE"),
        ("hf:o/r/../a.gguf", "hf:ORG/REPO/FILE"),
        ("hf:../r/a.gguf", "hf:ORG/REPO/FILE"),
        ("hf:o/r@../a.gguf", "hf:ORG/REPO/FILE"),
        ("hf:o/r//etc/a.gguf", "hf:ORG/REPO/FILE"),
        ("https://h/a.gguf", "add #sha256="),
        (f"https://#sha256={HEX}", "names no file"),
        (f"https://h/a/..#sha256={HEX}", "names no file"),
        (f"https://h/#sha256={HEX}", "names no file"),
        (f"https://[h/a#sha256={HEX}", "is not a URL"),
        (f"https://u:p@h/a#sha256={HEX}", "user name or a password"),
        (f"http://h/a#sha256={HEX}", "use https:"),
    ],
)
def test_a_reference_that_means_nothing_is_refused_in_one_sentence(text: str, said: str) -> None:
    """The sentence says what to write instead."""
    with pytest.raises(ModelRefError, match=re.escape(said)) as caught:
        parse_model_ref(text)

    assert "\n" not in str(caught.value)
    assert "u:p" not in str(caught.value)


def test_a_split_model_has_all_its_parts() -> None:
    """By the names that llama.cpp gives them."""
    assert part_names("m-00001-of-00002.gguf") == ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf")
    assert part_names("m.gguf") == ("m.gguf",)


def test_the_query_of_an_address_is_never_shown() -> None:
    """It may hold a signature; other references are shown as they are. ORCH-3090."""
    signed = f"https://h/a.gguf?sig=SECRET&x=1#sha256={HEX}"

    assert shown_ref(signed) == f"https://h/a.gguf?***#sha256={HEX}"
    for text in ("m/a?b.gguf", "hf:o/r/a.gguf", f"https://h/a.gguf#sha256={HEX}"):
        assert shown_ref(text) == text
    for broken in ("https://h/a.gguf?sig=SECRET", "http://h/a.gguf?sig=SECRET#sha256=00"):
        with pytest.raises(ModelRefError) as refused:
            parse_model_ref(broken)
        assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize("user", ["key@", "u:key@", ":key@", "a@b:key@"])
def test_a_key_before_the_host_is_not_shown(user: str) -> None:
    """It is refused, but what is refused is told of first: `llorch reload POOL --model` is."""
    assert shown_ref(f"HTTPS://{user}h/a@b.gguf?x=1") == "HTTPS://***@h/a@b.gguf?***"
