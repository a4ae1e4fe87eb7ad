"""The table of sessions: who is idle, who is warm, who goes first. ORCH-3021, ORCH-3022."""

from orchestrator_core.core.session import Hold, Session, Sessions, Spent, session_key


def table(*names: str) -> tuple[Sessions, dict[str, Session]]:
    """Sessions of one client, opened in this order."""
    sessions = Sessions()
    made = {name: Session("me", name, 0, 0) for name in names}
    for session in made.values():
        sessions.add(session)
    return sessions, made


def test_names_of_different_clients_never_meet() -> None:
    """However the two texts are cut, the key tells them apart."""
    assert session_key("a", "bc") != session_key("ab", "c")
    assert session_key("", "a") != session_key("a", "")


def test_the_least_recently_used_idle_session_goes_first() -> None:
    """One with a job that has not ended is not idle, however long ago it was used."""
    sessions, made = table("s", "t", "u")
    made["s"].held["job"] = Hold()
    sessions.touch(made["s"])
    sessions.touch(made["t"])

    assert sessions.oldest_idle() is made["u"]
    sessions.forget(made["u"])
    assert sessions.oldest_idle() is made["t"]
    sessions.forget(made["t"])
    assert sessions.oldest_idle() is None
    made["s"].held.clear()
    sessions.touch(made["s"])
    assert sessions.oldest_idle() is made["s"]


def test_a_pool_is_warm_for_as_many_sessions_as_it_has_slots() -> None:
    """ORCH-3022: the ones served longest ago have lost their place in the cache."""
    sessions, made = table("s", "t", "u")
    for name in ("s", "t", "s", "u"):
        sessions.warm(made[name], "p", "p#1", 7, slots=2)

    assert [made[name].pool_id for name in "stu"] == ["p", "", "p"]
    assert (made["s"].replica_id, made["s"].kv_tokens) == ("p#1", 7)
    assert (made["t"].replica_id, made["t"].kv_tokens) == ("", None)


def test_a_session_that_moved_frees_its_place() -> None:
    """Its cache at the former pool counts no more."""
    sessions, made = table("s", "t", "u")
    sessions.warm(made["s"], "p", "p#1", 1, slots=2)
    sessions.warm(made["s"], "q", "q#1", 2, slots=2)
    sessions.warm(made["t"], "p", "p#1", 3, slots=2)
    sessions.warm(made["u"], "p", "p#1", 4, slots=2)

    assert [made[name].pool_id for name in "stu"] == ["q", "p", "p"]


def test_what_is_set_aside_is_the_sum_of_the_holds() -> None:
    """And what is spent only grows."""
    session = Session("me", "s", 0, 0, held={"a": Hold(1, 2, 3, 4), "b": Hold(10, 20, 30, 40)})
    session.spend(Spent(1, 2, 3))
    session.spend(Spent(1, 1, 1))

    assert session.reserved() == Spent(33, 33, 44)
    assert session.spent == Spent(2, 3, 4)
