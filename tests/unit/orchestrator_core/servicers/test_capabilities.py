"""What clients are told that this server can do. ORCH-3095, ORCH-3096."""

from dataclasses import replace

from orchestrator_core.core.config import Limits, ThrottleConfig
from orchestrator_core.core.snapshot import PoolState
from orchestrator_core.servicers.capabilities import API_VERSION, ServerFacts, capabilities
from tests.unit.orchestrator_core.core.bench import Bench
from tests.unit.orchestrator_core.core.build import snapshot

FACTS = ServerFacts(
    "9.9",
    message_bytes_max=4,
    input_bytes_max=3,
    output_bytes_per_job=2,
    artifact_input_bytes_max=5,
)


def test_pools_that_may_stand_in_for_one_another_are_one_set() -> None:
    """Slots add up, the longest context counts, and a set is deterministic when all pools are."""
    bench = Bench(
        snapshot("a", slots_total=2, slots_free=2, ctx_max=4096, deterministic=True),
        snapshot("b", slots_total=3, slots_free=3, ctx_max=8192),
        snapshot("c", engine_version="2", deterministic=True),
        snapshot("d", model_id="other"),
    )

    told = capabilities(bench.core, FACTS, "", 0).replica_sets

    sets = {
        tuple(s.pool_ids): (s.model_id, s.engine_version, s.slots_total, s.deterministic)
        for s in told
    }
    assert sets == {
        ("a", "b"): ("m", "", 5, False),
        ("c",): ("m", "2", 1, True),
        ("d",): ("other", "", 1, False),
    }
    assert max(s.ctx_max for s in told) == 8192


def test_very_many_models_fit_into_a_message() -> None:
    """What takes work is told before what does not; what has no room is counted."""
    long = {"extensions": tuple(f"{number:03}" + "x" * 61 for number in range(64))}
    pools = [snapshot(f"p{n:04}", model_id=f"m{n:04}", **long) for n in range(800)]
    ready = snapshot("q", model_id="zz-ready", **long)
    bench = Bench(*(replace(pool, state=PoolState.UNREADY) for pool in pools), ready)

    told = capabilities(bench.core, FACTS, "", 0)

    names = [each.model_id for each in told.replica_sets]
    assert told.ByteSize() < 4 << 20
    assert names == sorted(names)
    assert names[-1] == "zz-ready"
    assert 0 < told.replica_sets_omitted == 801 - len(names)


def test_limits_and_versions_are_those_in_force() -> None:
    """A client can pin the API version and need not find a limit by running into it."""
    bench = Bench(queue_capacity=7)

    told = capabilities(bench.core, FACTS, "", 0)

    limits = told.limits
    assert (told.api_version, told.server_version, told.queue_policy) == (
        API_VERSION,
        "9.9",
        "reject",
    )
    assert (limits.queue_capacity, limits.message_bytes_max) == (7, 4)
    assert (limits.input_bytes_max, limits.output_bytes_per_job) == (3, 2)
    assert limits.artifact_input_bytes_max == 5
    assert {"resume", "failover.verified_replay"} <= set(told.features)


def test_slots_of_pools_that_take_no_work_are_not_ready() -> None:
    """ORCH-3096: what runs at once is told apart from what is registered; a busy slot is ready."""
    bench = Bench(
        snapshot("busy", slots_total=2, slots_free=0),
        snapshot("loading", state=PoolState.STARTING, slots_total=4, slots_free=4),
        snapshot("drained", slots_total=8, slots_free=8),
        throttle=ThrottleConfig(identities={"alice": Limits(queued_jobs=5)}),
    )
    bench.core.pools["drained"].draining = True

    (told,) = capabilities(bench.core, FACTS, "alice", 0).replica_sets
    (late,) = capabilities(bench.core, FACTS, "alice", 3_600_000).replica_sets

    assert (told.slots_total, told.slots_ready, late.slots_ready) == (14, 2, 0)


def test_what_every_pool_of_a_set_has_is_told() -> None:
    """A job within it fits whichever pool gets it."""
    bench = Bench(
        snapshot("a", ctx_max=4096, extensions=("x", "y"), quantizations=("q4", "q8")),
        snapshot("b", ctx_max=8192, extensions=("y", "z"), quantizations=("q8",)),
    )

    (told,) = capabilities(bench.core, FACTS, "", 0).replica_sets

    assert (told.ctx_min, told.ctx_max) == (4096, 8192)
    assert (list(told.extensions), list(told.quantizations)) == (["y"], ["q8"])


def test_a_client_is_told_its_own_limits_and_those_of_every_job() -> None:
    """ORCH-3095: no limit has to be found by running into it."""
    bench = Bench(
        throttle=ThrottleConfig(Limits(1, 2, 3), {"alice": Limits(10, 20, 30)}),
        queue_timeout_ms=11,
        wall_timeout_ms=12,
        idle_timeout_ms=13,
        retention_ms=14,
        idempotency_ttl_ms=15,
        session_ttl_ms=16,
        session_turns_max=17,
    )

    own, other = (capabilities(bench.core, FACTS, name, 0).limits for name in ("alice", "bob"))

    assert [
        own.queue_timeout_ms,
        own.wall_timeout_ms,
        own.idle_timeout_ms,
        own.retention_ms,
        own.idempotency_ttl_ms,
        own.session_ttl_ms,
        own.session_turns_max,
    ] == [11, 12, 13, 14, 15, 16, 17]
    assert (own.requests_per_min, own.tokens_per_min, own.queued_jobs) == (10, 20, 30)
    assert (other.requests_per_min, other.tokens_per_min, other.queued_jobs) == (1, 2, 3)
    assert own.exchange_jobs_max > 0
    unset = {field.name for field in own.DESCRIPTOR.fields} - {f.name for f, _ in own.ListFields()}
    assert unset == {"streams_per_connection_max"}
