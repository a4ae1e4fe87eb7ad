"""The `llorch` command: run, stream and cancel, as a process against a scripted server."""

import asyncio
import json as json_module
import os
import re
import signal

import grpc
import pytest

from llamaorch.orchestrator.v1 import (
    job_pb2,
    orchestrator_service_pb2,
    pool_admin_service_pb2,
)
from tests.integration.clients import scripted_server as wire
from tests.integration.clients.llorch import finish, llorch, start, within
from tests.integration.clients.scripted_server import Failure, Hang, ScriptedServer

TEXT = "Grüße, 世界"
OUTPUT = [
    [wire.started()],
    [wire.tokens("", ["Grüße", ", "])],
    [wire.tokens("Grüße, ", ["世界"], 2), wire.end(TEXT)],
]


async def test_run_prints_the_output_exactly_and_everything_else_beside_it(
    server: ScriptedServer,
) -> None:
    """Into a pipe goes the job's text byte for byte; what is about it goes to stderr."""
    server.on("Enqueue", wire.accepted()).on("StreamTokens", OUTPUT)

    outcome = await llorch(server.address, "run", "--model", "tiny", "Say", "hello")

    assert (outcome.code, outcome.stdout) == (0, TEXT)
    assert outcome.stderr == (
        "job job-1 finished (eos), 5 tokens, 40.0 tok/s, first token after 20 ms\n"
    )


async def test_run_sends_what_was_asked_for(server: ScriptedServer) -> None:
    """Every option reaches its field; the prompt comes from stdin when it is not an argument."""
    server.on("Enqueue", wire.accepted()).on("StreamTokens", OUTPUT)
    options = (
        "--model tiny --priority batch --max-tokens 9 --seed 7 --temperature 0.5 --session s1 "
        "--deadline-s 60 --queue-timeout-s 1.5 --label team=a --stop END --engine llama.cpp "
        "--expected-tokens 5 --top-p 0.9 --job-id mine"
    )

    outcome = await llorch(server.address, "run", *options.split(), stdin="from stdin")

    assert outcome.code == 0
    spec = server.made("Enqueue")[0].request.spec
    assert (spec.input.text, spec.model_id, spec.job_id) == ("from stdin", "tiny", "mine")
    assert spec.priority == job_pb2.PRIORITY_BATCH
    sampling = spec.sampling
    assert (sampling.max_tokens, sampling.seed, sampling.temperature) == (9, 7, 0.5)
    assert (sampling.top_p, list(sampling.stop)) == (0.9, ["END"])
    assert (spec.session_id, spec.engine, spec.expected_tokens) == ("s1", "llama.cpp", 5)
    assert spec.queue_timeout.ToMilliseconds() == 1500
    assert spec.HasField("deadline")
    assert dict(spec.labels) == {"team": "a"}
    assert spec.request_id


async def test_run_takes_the_only_model_served_and_can_chat(server: ScriptedServer) -> None:
    """Without --model the one model of the server is meant; --system makes a conversation."""
    capabilities = orchestrator_service_pb2.GetCapabilitiesResponse(
        replica_sets=[orchestrator_service_pb2.ReplicaSet(model_id="only-one")]
    )
    server.on("GetCapabilities", capabilities).on("Enqueue", wire.accepted())
    server.on("StreamTokens", OUTPUT)

    outcome = await llorch(server.address, "run", "--system", "Be brief", "Hi")

    assert outcome.code == 0
    spec = server.made("Enqueue")[0].request.spec
    assert spec.model_id == "only-one"
    assert [(m.role, m.content) for m in spec.input.chat.messages] == [
        ("system", "Be brief"),
        ("user", "Hi"),
    ]


@pytest.mark.parametrize(
    ("ready", "unready", "given", "told"),
    [
        (("tiny",), ("never",), "tiny", ""),
        (("a", "b"), ("never",), "", "choose a model with --model: a, b\n"),
        ((), ("soon",), "soon", ""),
        ((), ("a", "b"), "", "no model is served now; name the one to wait for with --model: a, b"),
        ((), (), "", "has no pool ready: no pool is registered; start pool-managerd on a GPU"),
    ],
)
async def test_without_a_model_those_that_are_served_count(
    server: ScriptedServer,
    ready: tuple[str, ...],
    unready: tuple[str, ...],
    given: str,
    told: str,
) -> None:
    """A pool that never was ready is no choice beside one that is; alone it is waited for."""
    kept = orchestrator_service_pb2.ReplicaSet
    sets = [kept(model_id=name, slots_ready=1) for name in ready]
    sets += [kept(model_id=name, slots_total=1) for name in unready]
    server.on(
        "GetCapabilities", orchestrator_service_pb2.GetCapabilitiesResponse(replica_sets=sets)
    )
    server.on("Enqueue", wire.accepted()).on("StreamTokens", OUTPUT)

    outcome = await within(server.address, "run", "Hi")

    assert outcome.code == (0 if not told else 2 if ready or unready else 3)
    assert told in outcome.stderr
    assert "never" not in outcome.stderr
    assert [call.request.spec.model_id for call in server.made("Enqueue")] == [given] * bool(given)


async def test_run_as_json_is_one_object_per_event(server: ScriptedServer) -> None:
    """Other programs read the receipt, every event and the outcome with stable keys."""
    server.on("Enqueue", wire.accepted()).on("StreamTokens", OUTPUT)

    outcome = await llorch(
        server.address, "--json", "run", "--model", "tiny", "--correlation-id", "c-1", "Hi"
    )

    records = outcome.records()
    assert [record["event"] for record in records] == [
        "accepted",
        "started",
        "tokens",
        "tokens",
        "end",
    ]
    assert (records[0]["job_id"], records[0]["correlation_id"]) == ("job-1", "c-1")
    assert "".join(record["text"] for record in records if record["event"] == "tokens") == TEXT
    assert (records[-1]["state"], records[-1]["usage"]["tokens_out"]) == ("FINISHED", 5)
    assert (outcome.code, outcome.stderr) == (0, "")


async def test_run_detached_prints_the_job_id_and_leaves(server: ScriptedServer) -> None:
    """The id alone is on stdout, so that a script can keep it."""
    server.on("Enqueue", wire.accepted("job-9"))

    outcome = await llorch(server.address, "run", "--model", "tiny", "--detach", "Hi")

    assert (outcome.code, outcome.stdout) == (0, "job-9\n")
    assert not server.made("StreamTokens")


async def test_a_failed_job_exits_with_1_and_says_why(server: ScriptedServer) -> None:
    """The outcome's reason and message are one sentence, below the text that came."""
    died = Failure(grpc.StatusCode.ABORTED, "WORKER_RESET", "the engine died")
    server.on("Enqueue", wire.accepted())
    server.on("StreamTokens", [[wire.tokens("", ["par"])], [wire.failed(died)]])

    outcome = await llorch(server.address, "run", "--model", "tiny", "Hi")

    assert (outcome.code, outcome.stdout) == (1, "par")
    assert outcome.stderr == "job job-1 failed: WORKER_RESET: the engine died\n"


async def test_a_bad_request_exits_with_2_and_names_every_field(server: ScriptedServer) -> None:
    """Each bad field stands on a line of its own."""
    bad = Failure(
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_PARAMS",
        "2 fields are wrong",
        violations=(("spec.sampling.top_p", "must be <= 1"), ("spec.model_id", "is required")),
    )
    server.on("Enqueue", bad)

    outcome = await llorch(server.address, "run", "--model", "tiny", "--top-p", "3", "Hi")

    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr.splitlines() == [
        "llorch: the request was refused: 2 fields are wrong",
        "  --top-p: must be <= 1",
        "  --model: is required",
    ]


async def test_a_server_that_is_away_exits_with_3_and_says_what_to_start(
    unused_address: str,
) -> None:
    """The sentence names the address, what to start and how to name another server."""
    outcome = await llorch(unused_address, "run", "--model", "tiny", "Hi")

    assert outcome.code == 3
    assert unused_address in outcome.stderr
    assert "start orchestratord" in outcome.stderr
    assert "Traceback" not in outcome.stderr


async def test_a_rejected_job_exits_with_4_and_says_when_to_retry(server: ScriptedServer) -> None:
    """ORCH-3016, ORCH-3017: policy and delay are told; the command does not wait by itself."""
    server.on("Enqueue", wire.rejected(1500, "shed-low-priority"))

    outcome = await llorch(server.address, "--json", "run", "--model", "tiny", "Hi")

    assert outcome.code == 4
    assert "rejected by policy shed-low-priority: the queue is full" in outcome.stderr
    assert "try again in 1.5 s" in outcome.stderr
    error = outcome.records()[0]["error"]
    assert (error["kind"], error["reason"]) == ("Rejected", "ADMISSION_REJECT")
    assert (error["retry_after_ms"], error["retriable"]) == (1500, True)
    assert len(server.made("Enqueue")) == 1


async def test_a_rejected_job_is_retried_when_told_to_wait(server: ScriptedServer) -> None:
    """ORCH-2007: --wait-s gives the job again after the server's delay."""
    server.on("Enqueue", wire.rejected(1), wire.accepted()).on("StreamTokens", OUTPUT)

    outcome = await llorch(server.address, "run", "--wait-s", "30", "--model", "tiny", "Hi")

    assert (outcome.code, outcome.stdout) == (0, TEXT)
    sent = server.made("Enqueue")
    assert sent[0].request.spec.request_id == sent[1].request.spec.request_id


@pytest.mark.parametrize("as_json", [False, True])
async def test_a_job_that_waits_for_a_pool_that_gave_up_is_told_so(
    server: ScriptedServer, as_json: bool
) -> None:
    """Not only a position: which pool of the model is not ready, and why. Once."""
    gone = pool_admin_service_pb2.Pool(
        pool_id="p", model_id="tiny", state="UNREADY", state_reason="restart_storm: no\n memory"
    )
    other = pool_admin_service_pb2.Pool(pool_id="q", model_id="large", state="READY")
    server.on("ListPools", pool_admin_service_pb2.ListPoolsResponse(pools=[gone, other]))
    server.on("Enqueue", wire.accepted()).on("StreamTokens", [[wire.queued(1)], Hang()])
    server.on(
        "Cancel",
        orchestrator_service_pb2.CancelResponse(job=wire.job(state=job_pb2.JOB_STATE_CANCELLED)),
    )
    json = ["--json"] if as_json else []
    process = await start(server.address, *json, "run", "--model", "tiny", "Hi")
    await server.wait_for("ListPools")

    stream = process.stdout if as_json else process.stderr
    assert stream is not None
    said = ""
    async with asyncio.timeout(20):
        while "no pool" not in said:
            said = (await stream.readline()).decode()
    process.send_signal(signal.SIGINT)
    await finish(process)

    sentence = "no pool for tiny is ready: p is UNREADY: restart_storm: no memory"
    if as_json:
        assert json_module.loads(said) == {"event": "waiting", "reason": sentence}
    else:
        assert said == sentence + "\n"


async def test_a_reader_that_leaves_the_pipe_cancels_the_job(server: ScriptedServer) -> None:
    """`llorch run ... | head` does not leave a job behind that nobody reads."""
    server.on("Enqueue", wire.accepted())
    server.on("StreamTokens", [[wire.tokens("", ["a"])], Hang()])
    server.on("Cancel", orchestrator_service_pb2.CancelResponse(job=wire.job()))
    process = await start(server.address, "run", "--model", "tiny", "Hi")
    assert process.stdout is not None
    process.stdout._transport.close()  # type: ignore[attr-defined]

    outcome = await finish(process)

    assert outcome.code == 1
    assert "Traceback" not in outcome.stderr
    assert len(server.made("Cancel")) == 1


async def test_stream_of_an_unknown_job_exits_with_2(server: ScriptedServer) -> None:
    """A wrong id is the user's to correct."""
    server.on("GetJob", Failure(grpc.StatusCode.NOT_FOUND, "NOT_FOUND", "no job nope"))
    server.on("ListJobs", orchestrator_service_pb2.ListJobsResponse())

    outcome = await llorch(server.address, "stream", "nope")

    assert outcome.code == 2
    assert (
        outcome.stderr
        == "llorch: not found: no job nope; `llorch jobs` lists what the server knows\n"
    )


@pytest.mark.parametrize("colour", [True, False])
async def test_a_terminal_gets_a_progress_line_and_no_color_is_honoured(
    server: ScriptedServer, colour: bool
) -> None:
    """State, position, pool and tokens show on a terminal; NO_COLOR leaves out the colours."""
    server.on("Enqueue", wire.accepted())
    server.on("StreamTokens", [[wire.queued(3)], *OUTPUT])
    terminal, slave = os.openpty()
    extra = {"TERM": "xterm-256color", **({} if colour else {"NO_COLOR": "1"})}

    process = await start(server.address, "run", "--model", "tiny", "Hi", stderr=slave, **extra)
    outcome = await finish(process)
    os.close(slave)
    shown = os.read(terminal, 65536).decode()
    os.close(terminal)

    assert (outcome.code, outcome.stdout) == (0, TEXT)
    # What reads the output may write it to this terminal.
    assert re.search(r"\r\n(\x1b\[32m)?job job-1 finished", shown)
    assert "tokens  " not in shown
    assert "job-1  queued  position 3  starts in 1.5 s" in shown
    assert "job-1  running  gpu-a" in shown
    assert ("\x1b[32m" in shown) is colour


async def test_a_usage_error_exits_with_2(unused_address: str) -> None:
    """What argparse refuses is told with the option's name."""
    outcome = await llorch(unused_address, "run", "--deadline-s", "nan", "Hi")

    assert outcome.code == 2
    assert "--deadline-s: must be more than 0" in outcome.stderr


async def test_what_is_no_text_is_shown(server: ScriptedServer) -> None:
    """Bytes of another encoding in an argument; the sentence can be written anywhere."""
    outcome = await within(server.address, "run", "--model", "tiny", "--label", "a=\udcff", "Hi")

    assert outcome.code == 2
    assert outcome.stderr == "llorch: type it in UTF-8: '\\udcff' is not\n"
    assert not server.made("Enqueue")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--session-tokens", "5"), "the budgets of a session need one: name it by --session"),
        (("--correlation-id", "ä"), "llorch: --correlation-id must be 1 to 128 visible ASCII"),
        (("--max-tokens", "4294967296"), "--max-tokens: must be a whole number from 1 to"),
        (("--seed", "-1"), "--seed: must be a whole number from 0 to 4294967295, is '-1'"),
        (("--session-cost-micros", "1" * 30), "--session-cost-micros: must be a whole number"),
    ],
)
async def test_what_cannot_be_sent_is_told_by_its_option(
    server: ScriptedServer, words: tuple[str, ...], says: str
) -> None:
    """Before anything is sent, and in no words of the wire."""
    outcome = await within(server.address, "run", "--model", "tiny", *words, "Hi")

    assert outcome.code == 2
    assert says in outcome.stderr
    assert not server.made("Enqueue")


async def test_a_job_id_that_was_used_is_told_as_an_option(server: ScriptedServer) -> None:
    """DUPLICATE says what to change."""
    used = Failure(grpc.StatusCode.ALREADY_EXISTS, "DUPLICATE", "job_id 'j' was used; choose")
    server.on("Enqueue", used)

    outcome = await within(server.address, "run", "--model", "tiny", "--job-id", "j", "Hi")

    assert (outcome.code, outcome.stderr) == (2, "llorch: --job-id 'j' was used; choose\n")
