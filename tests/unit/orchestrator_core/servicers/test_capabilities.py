"""What clients are told that this server can do. ORCH-3095, ORCH-3096."""

from orchestrator_core.servicers.capabilities import API_VERSION, ServerFacts, capabilities
from tests.unit.orchestrator_core.core.bench import Bench
from tests.unit.orchestrator_core.core.build import snapshot

FACTS = ServerFacts("9.9", message_bytes_max=4, input_bytes_max=3, output_bytes_per_job=2)


def test_pools_that_may_stand_in_for_one_another_are_one_set() -> None:
    """Slots add up, the longest context counts, and a set is deterministic when all pools are."""
    bench = Bench(
        snapshot("a", slots_total=2, slots_free=2, ctx_max=4096, deterministic=True),
        snapshot("b", slots_total=3, slots_free=3, ctx_max=8192),
        snapshot("c", engine_version="2", deterministic=True),
        snapshot("d", model_id="other"),
    )

    told = capabilities(bench.core, FACTS).replica_sets

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


def test_limits_and_versions_are_those_in_force() -> None:
    """A client can pin the API version and need not find a limit by running into it."""
    bench = Bench(queue_capacity=7)

    told = capabilities(bench.core, FACTS)

    limits = told.limits
    assert (told.api_version, told.server_version, told.queue_policy) == (
        API_VERSION,
        "9.9",
        "reject",
    )
    assert (limits.queue_capacity, limits.message_bytes_max) == (7, 4)
    assert (limits.input_bytes_max, limits.output_bytes_per_job) == (3, 2)
    assert {"resume", "failover.verified_replay"} <= set(told.features)
