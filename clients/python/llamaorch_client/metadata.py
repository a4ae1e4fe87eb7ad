# SPDX-License-Identifier: Apache-2.0
"""The metadata that travels with every call: correlation id, credentials, trace context."""

import re
import uuid
from collections.abc import Iterable

from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

CORRELATION_ID_KEY = "x-correlation-id"
_CORRELATION_ID = re.compile(r"[\x21-\x7e]{1,128}")
# The wire promises W3C Trace Context, whatever propagators the process has configured for other
# peers.
_PROPAGATOR = TraceContextTextMapPropagator()


def new_correlation_id() -> str:
    """Returns a fresh correlation id."""
    return uuid.uuid4().hex


def checked_correlation_id(value: str | None) -> str:
    """Returns `value`, or a fresh id for None (HME-030).

    Raises:
        ValueError: it is not 1 to 128 visible ASCII characters, which metadata could not carry.
    """
    if value is None:
        return new_correlation_id()
    if not _CORRELATION_ID.fullmatch(value):
        raise ValueError("correlation_id must be 1 to 128 visible ASCII characters")
    return value


def call_metadata(
    correlation_id: str, token: str | None, context: Context | None
) -> tuple[tuple[str, str], ...]:
    """Returns the metadata of one call; `context` None is the current trace context."""
    carrier = {CORRELATION_ID_KEY: correlation_id}
    if token is not None:
        carrier["authorization"] = f"Bearer {token}"
    _PROPAGATOR.inject(carrier, context)
    return tuple(carrier.items())


def first_value(metadata: Iterable[tuple[str, str | bytes]], key: str) -> str:
    """Returns the first text value of `key`, or an empty string."""
    for name, value in metadata:
        if name == key and isinstance(value, str):
            return value
    return ""
