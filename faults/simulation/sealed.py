"""Closes the doors through which chance enters: random numbers, sockets, log output, collection.

The services are run as they are, so what they take from the standard library and from gRPC is
replaced beneath them, for the duration of a run.
"""

import gc
import os
import random
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import grpc
import structlog

from orchestrator_core.servicers import rpc
from orchestrator_core.servicers.ids import Ids

BUG_EVENTS = frozenset(
    {
        "internal_error",
        "telemetry_failed",
        "command_failed",
        "engine_adapter_failed",
        "engine_close_failed",
        "engine_stop_failed",
        "snapshot_rejected",
        "snapshot_refused",
    }
)
"""Log events that say that something is wrong with us: a run that has one is not good."""


@contextmanager
def sealed(entropy: random.Random, channel: Callable[..., Any], bugs: list[str]) -> Iterator[None]:
    """Within the block, randomness comes from `entropy` and connections from `channel`.

    Log events that tell of a bug are added to `bugs`, all others are dropped.
    """

    def listen(_logger: object, _method: str, event: MutableMapping[str, Any]) -> Any:
        if event.get("event") in BUG_EVENTS:
            bugs.append(repr(dict(event)))
        raise structlog.DropEvent

    logs = structlog.get_config()
    collecting = gc.isenabled()
    state = random.getstate()
    structlog.configure(
        processors=[listen],
        wrapper_class=structlog.make_filtering_bound_logger(40),
        cache_logger_on_first_use=False,
    )
    # Collection runs finalizers, at a time that depends on what else is in memory.
    gc.disable()
    random.seed(entropy.getrandbits(64))
    try:
        with (
            mock.patch.object(os, "urandom", entropy.randbytes),
            mock.patch.object(random, "_urandom", entropy.randbytes),
            mock.patch.object(grpc.aio, "insecure_channel", channel),
            # Random bytes that an earlier run left over are not of this seed.
            mock.patch.object(rpc, "_ids", Ids()),
        ):
            yield
    finally:
        random.setstate(state)
        structlog.configure(**logs)
        if collecting:
            gc.enable()
