"""The Dispatch stream, over real gRPC.

What a scripted orchestrator says, and what the host does.
"""

from llamaorch.orchestrator.v1 import events_pb2, job_pb2
from llamaorch.pool.v1 import dispatch_pb2, snapshot_pb2
from tests.integration.pool_managerd.fakes import ScriptedEngine, digest
from tests.integration.pool_managerd.harness import FAST, Options, RunHost


async def test_a_host_registers_with_its_pools_and_becomes_ready(run_host: RunHost) -> None:
    """The first message names host, boot and pools; READY follows preload. ORCH-3002, ORCH-3010."""
    host = await run_host()

    replica_id = await host.ready()

    register = host.orchestrator.sessions[0].register
    assert register.host_id == "test-host"
    assert [pool.pool_id for pool in register.pools] == ["p0"]
    assert replica_id.startswith("p0-")
    snapshot = host.orchestrator.ready()
    assert snapshot is not None
    assert (snapshot.slots_total, snapshot.slots_free, snapshot.ctx_max) == (1, 1, 512)
    assert snapshot.devices[0].kind == snapshot_pb2.DEVICE_KIND_CPU


async def test_tokens_arrive_in_order_with_offsets_and_digests(run_host: RunHost) -> None:
    """Every batch says where it stands and proves the text before it. LO-301."""
    host = await run_host()
    words = ["Hei", "ße ", "Soße", " 🍲", ""]

    await host.start("j1", 7, correlation_id="c1")
    host.engine.say("j1", *words, end=True)
    out = host.orchestrator.stored(7)
    await host.orchestrator.until(lambda: out.ended)

    assert len(out.started) == 1
    assert out.text == "".join(words)
    so_far, index = "", 0
    for batch in out.batches:
        assert (batch.first_index, batch.text_offset) == (index, len(so_far.encode()))
        assert batch.prefix_digest == digest(so_far)
        so_far += "".join(batch.pieces)
        index += len(batch.pieces)
    ended = out.ended[0]
    assert ended.finish_reason == job_pb2.FINISH_REASON_EOS
    assert (ended.next_index, ended.text_bytes) == (len(words), len(so_far.encode()))
    assert ended.text_digest == digest(so_far)
    assert (ended.usage.tokens_in, ended.usage.tokens_out) == (3, 5)
    assert not ended.usage.HasField("tokens_cached")


async def test_output_comes_in_several_frames_when_the_window_is_small(run_host: RunHost) -> None:
    """No more output than the send window is under way without an acknowledgement. LO-302."""
    host = await run_host(Options(config={"limits": {"frame_bytes": 4096}}))
    host.orchestrator.window_bytes, host.orchestrator.heartbeat_ms = 10, 600
    await host.ready()
    host.orchestrator.drop()
    await host.orchestrator.until(lambda: len(host.orchestrator.sessions) == 2)

    await host.start("j1", 1)
    host.engine.say("j1", *["abcde"] * 5, end=True)
    out = host.orchestrator.stored(1)
    await host.orchestrator.until(lambda: len(out.text) == 10)
    seq = host.orchestrator.send()
    await host.orchestrator.until(
        lambda: (
            host.orchestrator.sessions[-1].frames[-1].applied_dispatch_seq >= seq
            or len(out.text) > 10
        )
    )
    assert out.text == "abcde" * 2

    for offset in (10, 20):
        host.orchestrator.send(ack=dispatch_pb2.AckTokens(handles=[1], text_offsets=[offset]))
    await host.orchestrator.until(lambda: out.ended)

    assert out.text == "abcde" * 5


async def test_cancel_is_confirmed_once_the_slot_is_idle(run_host: RunHost) -> None:
    """The end of a cancelled attempt follows its output, and its slot is free by then.

    ORCH-3026.
    """
    host = await run_host()
    await host.start("j1", 1)
    host.engine.say("j1", "one ", "two ")
    out = host.orchestrator.stored(1)
    await host.orchestrator.until(lambda: out.text == "one two ")

    host.orchestrator.send(cancel=dispatch_pb2.CancelAttempt(handle=1))
    await host.orchestrator.until(lambda: out.ended)

    assert out.ended[0].finish_reason == job_pb2.FINISH_REASON_CANCELLED
    assert (out.ended[0].next_index, out.ended[0].usage.tokens_out) == (2, 2)
    assert host.engine.open_generations == 0
    await host.start("j2", 2)
    await host.orchestrator.until(lambda: host.orchestrator.stored(2).started)


async def test_an_unconfirmed_cancel_restarts_the_replica(run_host: RunHost) -> None:
    """An engine that keeps a cancelled slot busy is replaced, and the cancel is then confirmed."""

    def hold(engine: ScriptedEngine, number: int) -> None:
        engine.holds_slots = number == 0

    host = await run_host(Options(prepare=hold))
    first = await host.ready()
    await host.start("j1", 1)
    out = host.orchestrator.stored(1)
    await host.orchestrator.until(lambda: out.started)

    host.orchestrator.send(cancel=dispatch_pb2.CancelAttempt(handle=1))
    await host.orchestrator.until(lambda: out.ended)

    assert out.ended[0].finish_reason == job_pb2.FINISH_REASON_CANCELLED
    assert host.engines[0].stopped.is_set()
    await host.orchestrator.until(lambda: len(host.engines) == 2)
    await host.orchestrator.until(
        lambda: (s := host.orchestrator.ready()) is not None and s.replica_id != first
    )
    assert snapshot_pb2.POOL_STATE_REASON_CANCEL_UNCONFIRMED in {
        s.state_reason for s in host.orchestrator.snapshots
    }


async def test_a_start_that_arrives_again_after_its_release_changes_nothing(
    run_host: RunHost,
) -> None:
    """A copy that was long under way starts nothing: its number was obeyed. LO-304."""
    host = await run_host()
    await host.start("j1", 1)
    start = host.orchestrator.sent[-1]
    host.engine.say("j1", "one", end=True)
    await host.orchestrator.until(lambda: host.orchestrator.stored(1).ended)
    host.orchestrator.send(release=dispatch_pb2.ReleaseAttempts(handles=[1]))

    host.orchestrator.sessions[-1].commands.put_nowait(start)
    await host.start("j2", 2)
    await host.orchestrator.until(lambda: host.orchestrator.stored(2).started)

    assert len(host.engine.requests) == 2
    assert not host.orchestrator.stored(1).refused


async def test_a_start_sent_again_binds_the_new_handle_and_runs_once(run_host: RunHost) -> None:
    """Starting a known attempt is idempotent. ORCH-3024, LO-304."""
    host = await run_host()
    await host.start("j1", 1)
    host.engine.say("j1", "one ")
    await host.orchestrator.until(lambda: host.orchestrator.stored(1).text == "one ")

    await host.start("j1", 2)
    await host.orchestrator.until(lambda: host.orchestrator.stored(2).text == "one ")
    host.engine.say("j1", "two", end=True)
    await host.orchestrator.until(lambda: host.orchestrator.stored(2).ended)

    assert host.orchestrator.stored(2).text == "one two"
    assert host.orchestrator.stored(1).text == "one "
    assert len(host.engine.requests) == 1


async def test_what_cannot_start_is_refused_with_its_reason(run_host: RunHost) -> None:
    """Slots, replicas, models and inputs are checked again at the pool. LO-204."""
    host = await run_host()
    await host.start("j1", 1)
    await host.start("j2", 2)
    await host.start("j3", 3, replica_id="p0-ffffffff")
    await host.start("j4", 4, pool_id="nowhere")
    await host.start("j5", 5, model_id="another")
    await host.start("j6", 6, input=job_pb2.JobInput())

    await host.orchestrator.until(lambda: host.orchestrator.stored(6).refused)

    reasons = [host.orchestrator.stored(handle).refused[0].reason for handle in range(2, 7)]
    assert reasons == [
        dispatch_pb2.REFUSAL_REASON_NO_SLOT,
        dispatch_pb2.REFUSAL_REASON_UNKNOWN_REPLICA,
        dispatch_pb2.REFUSAL_REASON_UNKNOWN_REPLICA,
        dispatch_pb2.REFUSAL_REASON_UNSUPPORTED,
        dispatch_pb2.REFUSAL_REASON_UNSUPPORTED,
    ]
    assert host.engine.most_open == 1


async def test_the_deadline_backstop_ends_an_attempt(run_host: RunHost) -> None:
    """An attempt that outlives remaining_ms ends with TIMEOUT."""
    host = await run_host()

    await host.start("j1", 1, remaining_ms=30)
    out = host.orchestrator.stored(1)
    await host.orchestrator.until(lambda: out.ended)

    assert out.ended[0].error.kind == dispatch_pb2.ATTEMPT_ERROR_KIND_TIMEOUT


async def test_engine_death_ends_attempts_and_starts_a_new_replica(run_host: RunHost) -> None:
    """A dead engine is told as such, and its successor has another replica id. ORCH-3038."""
    host = await run_host()
    first = await host.ready()
    await host.start("j1", 1)
    host.engine.say("j1", "one ")
    out = host.orchestrator.stored(1)
    await host.orchestrator.until(lambda: out.text)

    host.engine.die()
    await host.orchestrator.until(lambda: out.ended)
    await host.orchestrator.until(
        lambda: (s := host.orchestrator.ready()) is not None and s.replica_id != first
    )

    assert out.ended[0].error.kind == dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_DIED
    assert (out.text, out.ended[0].next_index) == ("one ", 1)
    await host.start("j2", 2)
    host.engine.say("j2", "ok", end=True)
    await host.orchestrator.until(lambda: host.orchestrator.stored(2).ended)


async def test_an_engine_that_fails_too_often_is_left_alone(run_host: RunHost) -> None:
    """Restarts are bounded: the pool says RESTART_STORM and why. ORCH-3053, ORCH-3003."""

    def broken(engine: ScriptedEngine, _number: int) -> None:
        engine.preload_problem = "model file is missing"

    host = await run_host(
        Options(prepare=broken, config={"supervision": {**FAST, "storm_failures": 3}})
    )

    await host.orchestrator.until(
        lambda: (
            (s := host.orchestrator.newest()) is not None
            and s.state_reason == snapshot_pb2.POOL_STATE_REASON_RESTART_STORM
        )
    )

    newest = host.orchestrator.newest()
    assert newest is not None
    assert newest.state_detail.startswith("model file is missing (failure 3 within 300 s")
    assert "SIGHUP" in newest.state_detail
    assert len(host.engines) == 3


async def test_a_replay_is_verified_and_only_the_rest_is_sent(run_host: RunHost) -> None:
    """Equal text is withheld, the piece across the boundary is split. LO-304."""
    host = await run_host()
    point = events_pb2.ResumePoint(attempt=1, text_offset=6, prefix_digest=digest("Grüße"[:-1]))
    point.text_offset = len("Grüß".encode())

    await host.start("j1", 1, attempt=2, verify_until=point)
    host.engine.say("j1", "Gr", "üße", " an", attempt=2, end=True)
    out = host.orchestrator.stored(1)
    await host.orchestrator.until(lambda: out.ended)

    assert out.text == "e an"
    assert out.batches[0].text_offset == point.text_offset
    assert out.batches[0].prefix_digest == digest("Grüß")
    assert out.ended[0].text_digest == digest("Grüße an")


async def test_a_replay_with_other_text_ends_with_a_mismatch(run_host: RunHost) -> None:
    """Other bytes before the boundary, or too few of them, are a mismatch. LO-304."""
    host = await run_host(Options(slots=2))
    point = events_pb2.ResumePoint(attempt=1, text_offset=4, prefix_digest=digest("abcd"))

    await host.start("j1", 1, attempt=2, verify_until=point)
    await host.start("j2", 2, attempt=2, verify_until=point)
    host.engine.say("j1", "abXde", "more", attempt=2, end=True)
    host.engine.say("j2", "abc", attempt=2, end=True)
    await host.orchestrator.until(
        lambda: host.orchestrator.stored(1).ended and host.orchestrator.stored(2).ended
    )

    for handle in (1, 2):
        out = host.orchestrator.stored(handle)
        assert out.ended[0].error.kind == dispatch_pb2.ATTEMPT_ERROR_KIND_REPLAY_MISMATCH
        assert out.text == ""


async def test_release_frees_the_memory_of_an_attempt(run_host: RunHost) -> None:
    """Released output is gone: the next Register does not list it. LO-305."""
    host = await run_host()
    for handle in (1, 2):
        await host.start(f"j{handle}", handle)
        host.engine.say(f"j{handle}", "text", end=True)
        await host.orchestrator.until(lambda h=handle: host.orchestrator.stored(h).ended)
    seq = host.orchestrator.send(release=dispatch_pb2.ReleaseAttempts(handles=[2]))
    await host.orchestrator.until(
        lambda: (s := host.orchestrator.newest()) is not None and s.applied_dispatch_seq >= seq
    )
    host.orchestrator.drop()
    await host.orchestrator.until(lambda: len(host.orchestrator.sessions) == 2)

    assert [held.job_id for held in host.orchestrator.sessions[1].register.held] == ["j1"]


async def test_an_unhealthy_engine_is_replaced(run_host: RunHost) -> None:
    """An engine that does not answer its health check is restarted. OC-CTRL-2001."""

    def ill(engine: ScriptedEngine, number: int) -> None:
        engine.well = number > 0

    host = await run_host(Options(prepare=ill))

    await host.orchestrator.until(lambda: len(host.engines) == 2)

    await host.orchestrator.until(
        lambda: (
            snapshot_pb2.POOL_STATE_REASON_ENGINE_UNHEALTHY
            in {s.state_reason for s in host.orchestrator.snapshots}
        )
    )


async def test_options_that_no_engine_can_read_are_refused(run_host: RunHost) -> None:
    """A number that JSON has no word for is refused, and the host goes on. ORCH-3014."""
    host = await run_host()
    sampling = job_pb2.Sampling(seed=1)
    sampling.engine_options.fields["x"].number_value = float("nan")

    await host.start("j1", 1, sampling=sampling)
    await host.start("j2", 2)
    await host.orchestrator.until(lambda: host.orchestrator.stored(2).started)

    reason = host.orchestrator.stored(1).refused[0].reason
    assert reason == dispatch_pb2.REFUSAL_REASON_UNSUPPORTED


async def test_output_beyond_the_cap_ends_the_attempt(run_host: RunHost) -> None:
    """More output than a host may hold for one job is a typed end. LO-302."""
    host = await run_host(Options(config={"limits": {"held_bytes_per_job": 4096}}))

    await host.start("j1", 1)
    host.engine.say("j1", *["x" * 500] * 20)
    out = host.orchestrator.stored(1)
    await host.orchestrator.until(lambda: out.ended)

    assert out.ended[0].error.kind == dispatch_pb2.ATTEMPT_ERROR_KIND_OUTPUT_TOO_LARGE
    assert out.ended[0].text_bytes == len(out.text)


async def test_a_store_without_room_refuses_attempts(run_host: RunHost) -> None:
    """Held attempts are bounded, and a release makes room. LO-302."""
    host = await run_host(Options(slots=2, config={"limits": {"held_attempts_max": 1}}))
    await host.start("j1", 1)
    host.engine.say("j1", "x", end=True)
    await host.orchestrator.until(lambda: host.orchestrator.stored(1).ended)

    await host.start("j2", 2)
    await host.orchestrator.until(lambda: host.orchestrator.stored(2).refused)
    host.orchestrator.send(release=dispatch_pb2.ReleaseAttempts(handles=[1]))
    await host.start("j3", 3)
    await host.orchestrator.until(lambda: host.orchestrator.stored(3).started)

    reason = host.orchestrator.stored(2).refused[0].reason
    assert reason == dispatch_pb2.REFUSAL_REASON_STORE_FULL
