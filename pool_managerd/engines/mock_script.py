"""What the mock engine does with one generation, and how a request may change it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from pool_managerd.engines.port import Failed, Failure, GenerationRequest

_MAX_TOKENS = 10_000_000
_MAX_WAIT_MS = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class MockScript:
    """One generation, step by step. Times are in milliseconds.

    Attributes:
        token_count: Tokens until the engine ends by itself (EOS); continued ones count.
        first_token_delay_ms: Wait before the first token.
        token_interval_ms: Wait before each later token.
        multi_byte: Tokens hold characters of two to four bytes.
        fail_after_tokens: Fails with `failure` after so many tokens; -1 never.
        failure: How it fails: a value of `port.Failure`, e.g. "engine_error".
        stall_after_tokens: Goes silent for good after so many tokens; -1 never.
        die_after_tokens: The whole engine dies after so many tokens; -1 never.
        cancel_unconfirmed: A closed generation never gives its slot back.
    """

    token_count: int = 16
    first_token_delay_ms: int = 0
    token_interval_ms: int = 0
    multi_byte: bool = False
    fail_after_tokens: int = -1
    failure: str = Failure.ENGINE_ERROR.value
    stall_after_tokens: int = -1
    die_after_tokens: int = -1
    cancel_unconfirmed: bool = False

    def __post_init__(self) -> None:
        """Refuses scripts without a bound, and failures that the port does not know."""
        if not 0 <= self.token_count <= _MAX_TOKENS:
            raise ValueError(f"token_count must be from 0 to {_MAX_TOKENS}")
        for wait_ms in (self.first_token_delay_ms, self.token_interval_ms):
            if not 0 <= wait_ms <= _MAX_WAIT_MS:
                raise ValueError(f"delays must be from 0 to {_MAX_WAIT_MS} ms")
        if self.failure not in {failure.value for failure in Failure}:
            raise ValueError(f"failure {self.failure!r} is unknown")


_TYPES: Mapping[str, type] = {entry.name: type(entry.default) for entry in fields(MockScript)}


def script_of(request: GenerationRequest, default: MockScript) -> MockScript | Failed:
    """Returns the script for a request: `default`, changed by its engine option `mock`.

    The option is an object with fields of `MockScript`; whole numbers may arrive as doubles. Other
    engine options, unknown fields and wrong types give `Failed(INVALID_REQUEST)`.
    """
    options = dict(request.sampling.engine_options)
    changes = options.pop("mock", {})
    if options:
        return _invalid(f"engine option {min(options)!r} is unknown to the mock engine")
    if not isinstance(changes, Mapping):
        return _invalid("engine option 'mock' must be an object")
    try:
        values = {str(name): _value(str(name), value) for name, value in changes.items()}
        return replace(default, **values)  # type: ignore[arg-type] # _value checked each type
    except ValueError as error:
        return _invalid(f"engine option 'mock': {error}")


def _value(name: str, value: object) -> int | bool | str:
    kind = _TYPES.get(name)
    if kind is None:
        raise ValueError(f"{name!r} is unknown")
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, (int, str)) and type(value) is kind:
        return value
    raise ValueError(f"{name!r} must be of type {kind.__name__}")


def _invalid(message: str) -> Failed:
    return Failed(Failure.INVALID_REQUEST, message)
