"""Configuration of engines that have an address, and of those that are launched. ORCH-3200."""

import re
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator

from pool_managerd.config.table import Milliseconds, Table
from pool_managerd.core.model_ref import REF_CHARS_MAX, parse_model_ref

PLACEHOLDERS = frozenset(
    {"port", "port_2", "port_3", "model_path", "model_id", "slots", "devices", "device_count"}
    | {"api_key", "pool_id", "tensor_split", "vram_claim_ratio"}
    | {"ctx_max", "ctx_per_slot", "ctx_total", "gpu_layers", "kv_type"}
    | {"mmproj_path", "draft_model_path"}
)
"""What may stand in braces in a `launch` table."""

_PLACEHOLDER = re.compile(r"\{([a-z_][a-z0-9_]*)\}")
_CHOSEN = re.compile(r"\{port(_[23])?\}")


class LaunchTable(Table):
    """A server that the pool manager starts and stops itself. ORCH-3200."""

    command: tuple[Annotated[str, Field(max_length=65_536)], ...] = Field(
        min_length=1,
        max_length=256,
        description="Program and arguments, without a shell; may hold {port}, {model_path} ...",
    )
    env: dict[str, str] = Field(
        default={}, max_length=256, description="Its environment; may hold placeholders."
    )
    pass_env: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], ...] = Field(
        default=(),
        max_length=256,
        description="Variables that it gets from pool-managerd's environment, beside the usual.",
    )
    cwd: str = Field(default="", description="Directory to run in, relative to this file.")
    attach_timeout_ms: Milliseconds = Field(
        default=10_000, description="Longest wait for sense once its port is open."
    )
    stop_grace_ms: Milliseconds = Field(default=10_000, description="From SIGTERM to SIGKILL.")

    @model_validator(mode="after")
    def _can_be_run(self) -> "LaunchTable":
        if not self.command[0]:
            raise ValueError("command: the first entry is empty, and names no program")
        odd = sorted(name for name in self.env if not name or "=" in name)
        if odd:
            raise ValueError(f"env: {odd[0]!r} is no name of a variable")
        return self

    @model_validator(mode="after")
    def _known_placeholders(self) -> "LaunchTable":
        unknown = sorted(self.placeholders() - PLACEHOLDERS)
        if unknown:
            known = ", ".join(f"{{{name}}}" for name in sorted(PLACEHOLDERS))
            raise ValueError(f"unknown placeholder {{{unknown[0]}}}; there are: {known}")
        return self

    def placeholders(self) -> frozenset[str]:
        """Names in braces in the command and its environment."""
        texts = (*self.command, *self.env.values())
        return frozenset(name for text in texts for name in _PLACEHOLDER.findall(text))

    def uses(self, placeholder: str) -> bool:
        """True when the command or its environment holds it."""
        return placeholder in self.placeholders()


class AttachingTable(Table):
    """An engine with an address: somebody else's, or with `launch` one that we start. ORCH-3207.

    `ADDRESS_KEY` is the key of the address, `OWN_ADDRESS` what stands there when we choose it.
    """

    ADDRESS_KEY: ClassVar[str] = "base_url"
    OWN_ADDRESS: ClassVar[str] = "http://127.0.0.1:{port}"

    model_id: str = Field(min_length=1, max_length=256, description="Name that jobs ask for.")
    api_key_env: str = Field(
        default="", description="Environment variable that holds the API key; empty: no key."
    )
    slots: int = Field(default=0, ge=0, le=256, description="Slots to use; 0: all it has.")
    model_ref: str = Field(
        default="",
        max_length=REF_CHARS_MAX,
        description="Model of a `launch` with {model_path}: a path, file:, hf: or https:.",
    )
    model_path: str = Field(
        default="",
        description="The server's model file or folder, if this host can read it; relative to "
        "the configuration file.",
    )
    launch: LaunchTable | None = Field(
        default=None, description="Starts the server; without it, it runs already."
    )
    api_key: SecretStr = Field(
        default=SecretStr(""), exclude=True, repr=False, description="(environment)"
    )

    @model_validator(mode="after")
    def _somewhere(self) -> "AttachingTable":
        if not getattr(self, self.ADDRESS_KEY) and self.launch is None:
            raise ValueError(f"{self.ADDRESS_KEY} is needed, or a launch table")
        address = getattr(self, self.ADDRESS_KEY)
        if self.launch is None and "{port" in address:
            raise ValueError(f"{self.ADDRESS_KEY} holds a port that only a launch table chooses")
        if self.launch is not None and address and "{port}" not in address:
            raise ValueError(
                f"{self.ADDRESS_KEY} of a server that is launched must hold {{port}}, which is "
                f"chosen anew for each start; without the key it is {self.OWN_ADDRESS}"
            )
        return self

    @model_validator(mode="after")
    def _one_model(self) -> "AttachingTable":
        if self.model_ref and self.model_path:
            raise ValueError("set model_ref, or model_path, and not both")
        takes_model = self.launch is not None and self.launch.uses("model_path")
        if self.model_ref and not takes_model:
            raise ValueError("model_ref needs a launch table whose command has {model_path}")
        if takes_model and not (self.model_ref or self.model_path):
            raise ValueError("launch uses {model_path}: set model_ref, or model_path")
        if self.model_ref:
            parse_model_ref(self.model_ref)
        return self


def whole_url(url: str) -> str:
    """Refuses what is no address of a server; ports may be left to be chosen."""
    try:
        parts = urlsplit(_CHOSEN.sub("1", url))
        host, port = (parts.hostname or "").encode("idna"), parts.port
    except UnicodeError as error:
        raise ValueError(f"{url} is no address: no host can have that name") from error
    except ValueError as error:
        raise ValueError(f"{url} is no address: {error}") from error
    if url and (not host or port == 0 or not url.isprintable() or " " in url):
        raise ValueError(f"{url} is no address: write http://HOST:PORT, without blanks")
    return url


class HttpTable(AttachingTable):
    """An engine behind HTTP."""

    base_url: Annotated[str, AfterValidator(whole_url)] = Field(
        default="",
        pattern=r"^(https?://.*)?$",
        description="Address, e.g. http://127.0.0.1:8080; with `launch` it may hold {port}.",
    )
