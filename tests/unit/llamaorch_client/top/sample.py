"""A server's state as `llorch top` may see it, with any numbers."""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from llamaorch_client.cli.top.state import Pane, Screen
from llamaorch_client.model import (
    Candidate,
    Decision,
    Exclusion,
    ExclusionReason,
    Explanation,
    FinishReason,
    Job,
    JobState,
    Overview,
    QueueView,
    Shortfall,
    Usage,
    WaitCause,
)
from llamaorch_client.model_fleet import Pool, PoolDevice
from llamaorch_client.request import Priority

NOW = datetime(2026, 11, 21, 20, 0, tzinfo=UTC)


def job(job_id: str, state: JobState = JobState.QUEUED, **fields: object) -> Job:
    """A job that came ten seconds ago."""
    base: dict[str, object] = {
        "job_id": job_id,
        "state": state,
        "priority": Priority.INTERACTIVE,
        "engine": "",
        "model_id": "tiny",
        "session_id": "",
        "accepted_at": NOW - timedelta(seconds=10),
        "started_at": None,
        "ended_at": None,
        "queue_position": None,
        "predicted_start_ms": None,
        "predicted_end_ms": None,
        "attempt": 0,
        "pool_id": "",
        "replica_id": "",
        "finish_reason": FinishReason.UNSPECIFIED,
        "error": None,
        "usage": Usage(),
        "trace_id": "",
    }
    return Job(**(base | fields))  # type: ignore[arg-type]


def running(job_id: str, **fields: object) -> Job:
    """A job that runs for four seconds."""
    base: dict[str, object] = {"pool_id": "gpu-a", "started_at": NOW - timedelta(seconds=4)}
    return job(job_id, JobState.RUNNING, **(base | fields))


def ended(job_id: str, state: JobState = JobState.FINISHED, **fields: object) -> Job:
    """A job that ended two seconds ago."""
    base: dict[str, object] = {
        "ended_at": NOW - timedelta(seconds=2),
        "finish_reason": FinishReason.LENGTH,
        "usage": Usage(tokens_out=64),
        "pool_id": "gpu-a",
    }
    return job(job_id, state, **(base | fields))


def decision(job_id: str, **fields: object) -> Decision:
    """A decision between three pools."""
    base: dict[str, object] = {
        "rules_version": 3,
        "job_id": job_id,
        "attempt": 1,
        "decided_at": NOW - timedelta(seconds=5),
        "pool_id": "gpu-a",
        "decided_by": "score",
        "candidates": (),
        "candidates_total": 3,
        "exclusions": (),
        "exclusions_total": 0,
        "waited_ms": 1_250,
    }
    return Decision(**(base | fields))  # type: ignore[arg-type]


def pool(pool_id: str, state: str = "READY", **fields: object) -> Pool:
    """A pool with one GPU, half used."""
    gpu = PoolDevice(
        device_id="GPU-1",
        name="RTX 3090",
        memory_total_bytes=24 << 30,
        memory_used_bytes=12 << 30,
        utilization_ratio=0.75,
        temperature_celsius=71,
    )
    base: dict[str, object] = {
        "pool_id": pool_id,
        "replica_id": f"{pool_id}-1",
        "host_id": "desk",
        "connected": True,
        "state": state,
        "state_reason": "",
        "engine": "llama.cpp",
        "engine_version": "b1",
        "model_id": "tiny",
        "model_digest": "",
        "slots_total": 4,
        "slots_free": 1,
        "ctx_max": 4096,
        "snapshot_age_ms": 10,
        "snapshot_version": 1,
        "devices": (gpu,),
        "tokens_per_s": 45.25,
    }
    return Pool(**(base | fields))  # type: ignore[arg-type]


def overview(**fields: object) -> Overview:
    """A server on which nothing happens, but for what is given."""
    base: dict[str, object] = {
        "queues": (
            QueueView(
                priority=Priority.INTERACTIVE, waiting=0, next=(), last_predicted_start_ms=None
            ),
            QueueView(priority=Priority.BATCH, waiting=0, next=(), last_predicted_start_ms=None),
        ),
        "queue_capacity": 100,
        "running": (),
        "running_total": 0,
        "decisions": (),
        "ended": (),
        "ended_total": 0,
        "draining": False,
        "store_unavailable": False,
        "observed_at": NOW,
    }
    return Overview(**(base | fields))  # type: ignore[arg-type]


def busy(waiting: int = 3, runs: int = 2, over: int = 4, pools: int = 2) -> Screen:
    """A screen of a busy server."""
    queue = QueueView(
        priority=Priority.INTERACTIVE,
        waiting=waiting,
        next=tuple(
            job(f"wait-{n}", queue_position=n + 1, predicted_start_ms=900 * n)
            for n in range(waiting)
        ),
        last_predicted_start_ms=900 * waiting,
    )
    told = overview(
        queues=(queue,) if waiting else (),
        running=tuple(
            running(f"run-{n}", output_pieces=10 * (n + 1), expected_tokens=64) for n in range(runs)
        ),
        running_total=runs,
        decisions=tuple(decision(f"run-{n}") for n in range(runs)),
        ended=tuple(ended(f"end-{n}") for n in range(over)),
        ended_total=over,
    )
    return Screen("127.0.0.1:7070", [pool(f"gpu-{n}") for n in range(pools)], told)


def explanation(job_id: str = "run-0") -> Explanation:
    """Two candidates and an excluded pool."""
    candidates = tuple(
        Candidate(
            pool_id=pool_id,
            replica_id=f"{pool_id}-1",
            predicted_end_ms=end_ms,
            first_token_ms=20,
            decode_ms=end_ms - 20,
            kv_warm=pool_id == "gpu-a",
            slots_free=1,
            vram_headroom_bytes=3 << 30,
            snapshot_version=12,
            snapshot_age_ms=40,
        )
        for pool_id, end_ms in (("gpu-a", 900), ("gpu-b", 1_400))
    )
    excluded = Exclusion("gpu-c", (Shortfall(ExclusionReason.COMPUTE_CAP, "8.6", "7.5"),))
    made = decision(job_id, candidates=candidates, exclusions=(excluded,), exclusions_total=1)
    return Explanation(running(job_id), (made,), (), "0af7651916cd43dd8448eb211c80319c")


# As a hostile client may choose them: wide, combining and control characters, turned around.
NAMES = (
    "",
    "a",
    "job-" + "0123456789abcdef" * 4,
    "\x1b[2J\x1b[H",
    "line\nbreak\ttab\r",
    "\u202eright to left\u2066",
    "\u2028separator\x85",
    "漢字かな交じり文" * 5,
    "é" * 20 + "e\u0301" * 20,
    "👩‍👩‍👧‍👦 family",
    "[bold]markup[/bold]",
)


def any_screen(rng: random.Random) -> Screen:
    """A screen with anything in it, within what the types allow."""
    screen = Screen(_name(rng), [_any_pool(rng) for _ in range(rng.randrange(5))])
    if rng.random() < 0.9:
        queue = QueueView(
            priority=rng.choice(list(Priority)),
            waiting=rng.randrange(10**6),
            next=_any_jobs(rng),
            last_predicted_start_ms=_number(rng),
        )
        screen.overview = overview(
            queues=(queue,),
            running=_any_jobs(rng),
            ended=_any_jobs(rng),
            decisions=tuple(
                decision(_name(rng), decided_by=_name(rng)) for _ in range(rng.randrange(4))
            ),
            draining=rng.random() < 0.2,
            store_unavailable=rng.random() < 0.2,
        )
    screen.paused = rng.random() < 0.3
    screen.problems = {"pools": _name(rng)} if rng.random() < 0.3 else {}
    if rng.random() < 0.3:
        told = _any_explanation(rng) if rng.random() < 0.7 else None
        screen.pane = Pane(_name(rng), told, rng.choice(["", _name(rng)]))
    return screen


def _any_explanation(rng: random.Random) -> Explanation:
    causes = tuple(
        WaitCause(ExclusionReason.NO_SLOT, _name(rng), _name(rng), 1, (_name(rng),))
        for _ in range(rng.randrange(3))
    )
    told = explanation(_name(rng))
    return replace(told, wait_summary=_name(rng), wait_remedy=_name(rng), wait_causes=causes)


def _any_jobs(rng: random.Random) -> tuple[Job, ...]:
    return tuple(
        job(
            _name(rng),
            rng.choice(list(JobState)),
            output_pieces=_number(rng),
            expected_tokens=_number(rng),
            predicted_end_ms=_number(rng),
            predicted_start_ms=_number(rng),
            model_id=_name(rng),
            pool_id=_name(rng),
        )
        for _ in range(rng.randrange(6))
    )


def _any_pool(rng: random.Random) -> Pool:
    devices = tuple(
        PoolDevice(
            device_id=_name(rng),
            name=_name(rng),
            memory_total_bytes=_number(rng),
            memory_used_bytes=_number(rng),
            utilization_ratio=rng.choice([None, 0.0, 0.5, 1.0]),
            temperature_celsius=_number(rng),
        )
        for _ in range(rng.randrange(3))
    )
    return pool(
        _name(rng),
        _name(rng),
        state_reason=_name(rng),
        slots_total=rng.randrange(1000),
        slots_free=rng.randrange(1000),
        devices=devices,
    )


def _name(rng: random.Random) -> str:
    return rng.choice(NAMES)


def _number(rng: random.Random) -> int | None:
    return rng.choice([None, 0, 1, 999, 10**6, 10**12])
