"""Which of the pool manager's environment variables an engine gets. ORCH-3030.

The environment of the pool manager holds the keys of all its pools and the token of the Hub: an
engine gets what programs need to find themselves, their libraries and their devices, and what the
configuration names.
"""

import re
from collections.abc import Collection, Mapping

NAMES = frozenset(
    {"PATH", "LD_LIBRARY_PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ"}
    | {"TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"}
    | {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "MALLOC_ARENA_MAX"}
    | {"HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}
)
"""Variables that every engine gets."""

PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "NCCL_", "GGML_", "OMP_", "MKL_", "OPENBLAS_")
"""Beginnings of names of variables that every engine gets, unless `names_secret`."""

OWN_PREFIXES = ("PYTHON",)
"""What a worker of ours gets besides: it has to find the same packages as we do."""

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)


def names_secret(name: str) -> bool:
    """True for the name of a variable that by its words holds a secret, as NVIDIA_API_KEY does."""
    return _SECRET.search(name) is not None


def passed_on(
    environ: Mapping[str, str],
    names: Collection[str] = (),
    prefixes: tuple[str, ...] = PREFIXES,
) -> dict[str, str]:
    """What of `environ` an engine gets: the usual, and what `names` says."""
    return {
        name: value
        for name, value in environ.items()
        if name in NAMES or name in names or (name.startswith(prefixes) and not names_secret(name))
    }
