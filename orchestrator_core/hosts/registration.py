"""What a host must say to be registered, and how much of it. LO-301, LO-306."""

import re

from llamaorch.pool.v1 import dispatch_pb2
from orchestrator_core.auth.tokens import Identity, Role
from orchestrator_core.core.outcome import FieldViolation, Reason, Refusal
from orchestrator_core.errors import RefusalError
from orchestrator_core.hosts.link import HostLink, LinkTerms

POOLS_PER_HOST_MAX = 256
# The verdicts about them have to fit one message.
HELD_MAX = 16_384
# Far above what so many pools and attempts take, and all that one stream may make us keep.
BYTES_MAX = 32 << 20
# A whole registration needs a message for each few megabytes.
MESSAGES_MAX = 1_024
HELD_ID_CHARS_MAX = 256
PROTOCOL_MAJOR = 1

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ID_FORM = "1 to 128 characters of A-Z, a-z, 0-9, '.', '_', ':' and '-'"


class Registration:
    """Collects the Register messages of one stream until there are no more.

    `whole` is the registration with all its pools and held attempts.
    """

    def __init__(self, terms: LinkTerms) -> None:
        self._terms = terms
        self.whole: dispatch_pb2.Register | None = None
        self.complete = False
        self._messages = self._bytes = 0

    def add(self, register: dispatch_pb2.Register) -> None:
        """Takes the next message.

        Raises:
            RefusalError: when it is not fit to be obeyed.
        """
        self._messages += 1
        self._bytes += register.ByteSize()
        _refuse(_volume_problems(self._messages, self._bytes))
        _refuse(_held_problems(register))
        if self.whole is None:
            _refuse(self._identity_problems(register))
            self.whole = register
        else:
            self.whole.pools.extend(register.pools)
            self.whole.held.extend(register.held)
        self.complete = not register.more
        _refuse(_size_problems(self.whole))

    def _identity_problems(self, register: dispatch_pb2.Register) -> list[FieldViolation]:
        bad = [
            FieldViolation(f"register.{name}", f"must be {_ID_FORM}")
            for name, value in (("host_id", register.host_id), ("boot_id", register.boot_id))
            if _ID.fullmatch(value) is None
        ]
        version = register.protocol_version
        if version and version.partition(".")[0] != str(PROTOCOL_MAJOR):
            speaks = f"the host speaks {version[:32]!r}, this orchestrator {PROTOCOL_MAJOR}"
            bad.append(FieldViolation("register.protocol_version", speaks))
        # Epochs of another journal say nothing about this one.
        terms = self._terms
        if register.journal_id == terms.journal_id and register.epoch > terms.epoch:
            seen = f"the host has seen epoch {register.epoch}, this orchestrator is older: "
            bad.append(FieldViolation("register.epoch", f"{seen}{terms.epoch}"))
        return bad


def check_not_taken(
    present: HostLink | None, last_dial: int, register: dispatch_pb2.Register
) -> None:
    """Refuses a second pool manager under the id of one that is alive, and a stream of the past.

    One that started anew has another boot id too, but then the earlier stream is broken or silent.
    A registration that was under way for long may come after a later one of the same boot, and
    after the end of that: what the host took up since then is not in it, so it must not be
    believed. `last_dial` is `Hosts.last_dial` of who registers.

    Raises:
        RefusalError: when the id is taken.
    """
    host_id = register.host_id
    if 0 < register.dial_seq <= last_dial:
        text = f"stream {register.dial_seq} of {host_id} was overtaken by {last_dial}"
    elif present is not None and present.boot_id != register.boot_id and present.alive:
        text = (
            f"host_id {host_id} is in use by another pool manager that is connected:"
            " set a different host_id in the configuration of one of them"
        )
    else:
        return
    what = {"resource_type": "host"}
    raise RefusalError(Refusal(Reason.DUPLICATE, text, resource=host_id, metadata=what))


def check_token_fits(who: Identity, owner: str, host_id: str) -> None:
    """Refuses a host in the name of another.

    A token that is bound to a host registers that one alone, and nobody else may. Who comes with a
    token that is not bound gets a host that nobody registered yet; it is that token's from then on,
    whether the host is connected or not. `owner` is `Hosts.owner`. AUTH-1007.

    Raises:
        RefusalError: PERMISSION_DENIED, with the setting to change.
    """
    name = who.name
    if who.role is Role.ADMIN or who.host_id == host_id:
        return
    if who.host_id:
        text = f"the token of {name} is for host_id {who.host_id}, and this host is {host_id}: set"
        text += " host_id of this host, or auth.tokens of the orchestrator"
    elif host_id in who.hosts_bound:
        text = f"host_id {host_id} is bound to another token than that of {name}: set another"
        text += " host_id of this host, or auth.tokens of the orchestrator"
    elif owner not in ("", name):
        text = f"host_id {host_id} was registered with the token of {owner}, not of {name}: set"
        text += f' another host_id, or auth.tokens."{name}".host_id = "{host_id}" where it moved'
    else:
        return
    raise RefusalError(Refusal(Reason.PERMISSION_DENIED, text, resource=host_id))


def unexpected_register() -> RefusalError:
    """The answer to another Register message on a stream that is established."""
    what = FieldViolation("register", "this stream is registered already: open another one")
    return _refusal([what])


def not_a_register() -> RefusalError:
    """The answer to a stream that begins with something else."""
    what = FieldViolation("message", "the first message must be `register`")
    return _refusal([what])


def _size_problems(whole: dispatch_pb2.Register) -> list[FieldViolation]:
    if len(whole.pools) > POOLS_PER_HOST_MAX or len(whole.held) > HELD_MAX:
        limits = f"at most {POOLS_PER_HOST_MAX} pools and {HELD_MAX} held attempts"
        return [FieldViolation("register", limits)]
    return []


def _volume_problems(messages: int, size_bytes: int) -> list[FieldViolation]:
    if messages <= MESSAGES_MAX and size_bytes <= BYTES_MAX:
        return []
    limits = f"at most {MESSAGES_MAX} messages with {BYTES_MAX} bytes in all"
    return [FieldViolation("register", limits)]


def _held_problems(register: dispatch_pb2.Register) -> list[FieldViolation]:
    """Ids that are too long to be anybody's: the answer repeats them."""
    for index, held in enumerate(register.held):
        for name in ("job_id", "pool_id", "replica_id"):
            if len(getattr(held, name)) > HELD_ID_CHARS_MAX:
                what = f"may have {HELD_ID_CHARS_MAX} characters"
                return [FieldViolation(f"register.held[{index}].{name}", what)]
    return []


def _refuse(bad: list[FieldViolation]) -> None:
    if bad:
        raise _refusal(bad)


def _refusal(bad: list[FieldViolation]) -> RefusalError:
    text = "the registration cannot be accepted"
    return RefusalError(Refusal(Reason.INVALID_PARAMS, text, violations=tuple(bad)))
