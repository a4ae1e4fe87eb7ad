"""How far a reload is, as it is told. OC-CTRL-2003."""

from collections.abc import Callable

import pytest

from pool_managerd.core.reload import Reload, ReloadState, kept_former

Step = Callable[[Reload], None]


def loading(reload: Reload) -> None:
    """The engine is replaced."""
    reload.loading()


def served(reload: Reload) -> None:
    """An engine serves."""
    reload.served()


def new_failed(reload: Reload) -> None:
    """The new model's engine did not start."""
    reload.failed("new-is-broken", former=False)


def former_failed(reload: Reload) -> None:
    """The engine of the model that the pool had did not start."""
    reload.failed("former-is-broken", former=True)


@pytest.mark.parametrize(
    ("steps", "state", "problem"),
    [
        ([], ReloadState.WAITING, ""),
        ([loading], ReloadState.LOADING, ""),
        ([loading, served], ReloadState.DONE, ""),
        ([loading, new_failed], ReloadState.LOADING, "new-is-broken"),
        ([loading, new_failed, served], ReloadState.ROLLED_BACK, "new-is-broken"),
        ([loading, new_failed, former_failed], ReloadState.FAILED, "new-is-broken"),
        ([loading, former_failed], ReloadState.FAILED, "former-is-broken"),
        # What the engine does before and after is not the reload's.
        ([served, former_failed], ReloadState.WAITING, ""),
        ([loading, served, former_failed], ReloadState.DONE, ""),
        ([loading, former_failed, served], ReloadState.FAILED, "former-is-broken"),
        ([loading, served, loading], ReloadState.DONE, ""),
    ],
)
def test_a_reload_ends_once(steps: list[Step], state: ReloadState, problem: str) -> None:
    """READY with the new model, or as before, or neither; nothing changes it afterwards."""
    reload = Reload("r")

    for step in steps:
        step(reload)

    assert (reload.state, reload.problem) == (state, problem)


@pytest.mark.parametrize("chars", [0, 40, 5_000])
def test_a_pool_that_kept_its_former_model_says_how_to_go_on(chars: int) -> None:
    """The way out is told whole, however long the engine's words are."""
    said = kept_former("x" * chars, "gpu-a", 700)

    assert len(said) <= 700
    assert said.startswith("x" * min(chars, 400))
    assert "`llorch reload gpu-a --model REF`" in said
    assert said.endswith("or `llorch reload gpu-a` to stay with it")
