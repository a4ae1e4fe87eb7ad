"""The bounds of the core."""

from dataclasses import fields

import pytest

from orchestrator_core.core.config import CoreConfig


@pytest.mark.parametrize(
    "name", [f.name for f in fields(CoreConfig) if type(f.default) is int], ids=str
)
@pytest.mark.parametrize("value", [0, -1])
def test_a_bound_that_is_not_positive_is_refused(name: str, value: int) -> None:
    """The error names the field."""
    with pytest.raises(ValueError, match=f"{name} must be positive"):
        CoreConfig(**{name: value})  # type: ignore[arg-type]


def test_the_defaults_are_sound() -> None:
    """The default configuration is accepted, and scoring may be switched off."""
    assert not CoreConfig(performance_scoring=False).performance_scoring
