"""References to model files: what may be named, and how. ORCH-3090.

    PATH, file:PATH                       a file of this host
    hf:ORG/REPO[@REVISION]/FILE           a file of a repository of the Hugging Face Hub
    https://HOST/PATH                     any other file; a digest is needed
    s3:..., oci:...                       recognised, not supported

Each may end with `#sha256=` and 64 hex digits: the file is then used only if they are its digest.
`http:` is accepted for addresses of this machine alone.
"""

import enum
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

REF_CHARS_MAX = 2_048

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_FRAGMENT = re.compile(r"(.*)#sha256=([0-9a-fA-F]{64})", re.DOTALL)
_HF = re.compile(
    r"(?P<repo>[A-Za-z0-9._-]+/[A-Za-z0-9._-]+)(@(?P<revision>[A-Za-z0-9._-]+))?/(?P<file>.+)"
)
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_QUERY = re.compile(r"(https?:[^?#]*)\?[^#]*", re.IGNORECASE)
_USER = re.compile(r"(https?:/*)[^/?#]*@", re.IGNORECASE)


def shown_ref(text: str) -> str:
    """The reference as logs and messages show it: without keys.

    The query of an address can hold a signature, and a user before the host a password.
    """
    return _USER.sub(r"\1***@", _QUERY.sub(r"\1?***", text))


class ModelRefError(ValueError):
    """The reference names nothing that can be loaded; the message says why."""


class Scheme(enum.Enum):
    """Where a model file comes from."""

    FILE = "file"
    HF = "hf"
    HTTPS = "https"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A reference that was understood.

    `location` is a path, a URL, or the file within `repo`; `digest` is "sha256:" and 64 hex digits,
    or empty.
    """

    text: str
    scheme: Scheme
    location: str
    digest: str = ""
    repo: str = ""
    revision: str = ""

    @property
    def remote(self) -> bool:
        """True when the file is not of this host."""
        return self.scheme is not Scheme.FILE


def parse_model_ref(text: str) -> ModelRef:
    """Understands a reference.

    Raises:
        ModelRefError: in one sentence, when it names nothing that can be loaded.
    """
    if not text or len(text) > REF_CHARS_MAX or not text.isprintable():
        raise ModelRefError(
            f"a model reference has 1 to {REF_CHARS_MAX} printable characters, not {len(text)}"
        )
    body, digest = text, ""
    if (match := _FRAGMENT.fullmatch(text)) is not None:
        body, digest = match[1], f"sha256:{match[2].lower()}"
    elif "#sha256" in text:
        raise ModelRefError(f"{shown_ref(text)}: a digest is written #sha256= and 64 hex digits")
    scheme = _SCHEME.match(body)
    if scheme is None:
        return ModelRef(text, Scheme.FILE, body, digest)
    name, rest = scheme[1].lower(), body[scheme.end() :]
    match name:
        case "file":
            return ModelRef(text, Scheme.FILE, _path(text, rest), digest)
        case "hf":
            return _hub(text, rest, digest)
        case "https" | "http":
            return _web(text, body, digest)
        case "s3" | "oci":
            raise ModelRefError(
                f"{text}: models cannot be fetched from {name}: yet; fetch the file by other "
                "means and name its path, or use hf: or https:"
            )
        case _:
            raise ModelRefError(
                f"{text}: the scheme {name}: is not known; name a path, or use file:, hf: or https:"
            )


def part_names(name: str) -> tuple[str, ...]:
    """The files of a model: `name`, or all parts of a `NAME-00001-of-000NN.gguf`."""
    match = _PART.fullmatch(name)
    count = int(match["count"]) if match is not None else 0
    if match is None or not count:
        return (name,)
    return tuple(
        f"{match['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)
    )


def is_loopback(host: str) -> bool:
    """Whether `host` is certainly this machine; names are not looked up."""
    return host in _LOOPBACK


def _path(text: str, rest: str) -> str:
    """`file:` takes plain paths, and the form with two slashes when no host is named."""
    path = rest.removeprefix("//") if rest.startswith("///") else rest
    if path.startswith("//") or not path:
        raise ModelRefError(f"{text}: file: takes a path of this host, such as file:/models/a.gguf")
    return path


def _hub(text: str, rest: str, digest: str) -> ModelRef:
    match = _HF.fullmatch(rest)
    if match is None or not all(_plain(part) for part in rest.replace("@", "/").split("/")):
        raise ModelRefError(f"{text}: write hf:ORG/REPO/FILE or hf:ORG/REPO@REVISION/FILE")
    return ModelRef(
        text, Scheme.HF, match["file"], digest, match["repo"], match["revision"] or "main"
    )


def _web(text: str, url: str, digest: str) -> ModelRef:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError as error:
        raise ModelRefError(f"{shown_ref(text)}: is not a URL: {error}") from error
    if not host or not parts.path.strip("/"):
        raise ModelRefError(f"{shown_ref(text)}: names no file on a host")
    if parts.username is not None or parts.password is not None:
        raise ModelRefError("a model reference must not hold a user name or a password")
    if parts.scheme == "http" and not is_loopback(host):
        raise ModelRefError(f"{shown_ref(text)}: http: is not safe beyond this machine; use https:")
    if not digest:
        raise ModelRefError(f"{shown_ref(text)}: add #sha256= and the digest of the file")
    if not _plain(parts.path.rsplit("/", 1)[-1]):
        raise ModelRefError(f"{shown_ref(text)}: names no file on a host")
    return ModelRef(text, Scheme.HTTPS, url, digest)


def _plain(part: str) -> bool:
    """Whether a part of a path stays where it is put."""
    return part not in ("", ".", "..") and "\\" not in part and not part.startswith("~")
