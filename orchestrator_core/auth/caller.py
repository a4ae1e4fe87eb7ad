"""Whose call is being answered, and what that opens. AUTH-1007.

Each call is answered in a task of its own, so the answer is a variable of its context; tasks that
it starts inherit it.
"""

from contextvars import ContextVar

from orchestrator_core.auth.tokens import Identity, Role

# Whoever calls a server that asks for no tokens. It has always been allowed everything.
ANONYMOUS = "anonymous"

_NOBODY = Identity(ANONYMOUS, Role.ADMIN, "", sees_all=True)

_caller: ContextVar[Identity] = ContextVar("orchestratord_caller", default=_NOBODY)


def identify(who: Identity) -> None:
    """Says whose call this task answers, from here on."""
    _caller.set(who)


def caller() -> Identity:
    """Whose call this task answers; outside of a call, and without tokens, `ANONYMOUS`."""
    return _caller.get()


def sees(owner: str) -> bool:
    """True when this task's caller may see, follow and stop what belongs to `owner`."""
    who = _caller.get()
    return who.sees_all or who.name == owner
