"""What a snapshot tells of the room for keys and values. LO-205."""

from llamaorch.pool.v1 import snapshot_pb2
from pool_managerd.engines.port import EngineInfo
from pool_managerd.snapshots import add_kv


def told(slots_free: int, **fields: object) -> snapshot_pb2.PoolSnapshot:
    """The part of a snapshot that is about keys and values."""
    message = snapshot_pb2.PoolSnapshot(slots_total=4, slots_free=slots_free)
    add_kv(message, EngineInfo("e", "1", "m", "d", "s", 4, 100, **fields))  # type: ignore[arg-type]
    return message


def test_each_free_slot_of_a_preallocated_cache_has_room_of_its_own() -> None:
    """Also none at all, which is not the same as not known."""
    sizes = {"kv_preallocated": True, "kv_bytes_per_token": 3, "kv_slot_bytes": 250}

    for slots_free in (4, 1, 0):
        message = told(slots_free, **sizes)
        assert (message.kv_bytes_per_token, message.kv_slot_bytes) == (3, 250)
        assert message.HasField("kv_free_bytes")
        assert message.kv_free_bytes == 250 * slots_free
        assert message.kv_cache_usage_ratio == 1 - slots_free / 4


def test_what_an_engine_does_not_tell_stays_absent() -> None:
    """No room is made up: of a foreign server's cache only its having one is known."""
    foreign, plain = told(2, kv_preallocated=True), told(2, kv_bytes_per_token=3, kv_slot_bytes=250)

    assert foreign.kv_preallocated
    assert not plain.kv_preallocated
    for message in (foreign, plain):
        assert not message.HasField("kv_free_bytes")
    assert not foreign.HasField("kv_bytes_per_token")
    assert not foreign.HasField("kv_slot_bytes")
    assert foreign.kv_cache_usage_ratio == 0.5
    assert not plain.HasField("kv_cache_usage_ratio")
