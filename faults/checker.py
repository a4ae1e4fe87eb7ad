"""Checks a history against the invariants of a system that loses nothing.

`check` is pure. Each rule is one function over an `Observed`, a history sorted into columns once:

    delivery_rules     I1 one outcome, I2 text whole, I3 attempts not mixed,
                       I4 nothing after the end, I12 one job per request
    scheduling_rules   I5 arrival order, I7 bounded queue and its victims, I8 slots,
                       I9 each attempt once
    recovery_rules     I13 nothing of who was replaced, I14 nothing told before it was durable,
                       I15 all ended in time, I16 no leak, I21 what was finished counts
    operator_rules     I17 an operator's word counts, I18 a refused change changes nothing,
                       I19 models retire as promised, I20 drained pools get nothing

What was not observed is not judged: without journal events the rules about them say nothing.
"""

from collections.abc import Iterable

from faults import delivery_rules, operator_rules, recovery_rules, scheduling_rules
from faults.history import AnyEvent
from faults.observed import Expect, Observed, Violation

__all__ = ["Expect", "Violation", "check"]

RULES = (
    *delivery_rules.RULES,
    *scheduling_rules.RULES,
    *recovery_rules.RULES,
    *operator_rules.RULES,
)


def check(history: Iterable[AnyEvent], expect: Expect | None = None) -> list[Violation]:
    """All violations in a history, rule by rule. Linear in the history, but for I5 and I7.

    Those two are linear in the events times the jobs that wait at once.
    """
    observed = Observed(tuple(history), expect or Expect())
    return [violation for rule in RULES for violation in rule(observed)]
