# SPDX-License-Identifier: Apache-2.0
"""The server's clock. Instants that it tells are by it, and this machine's may be hours off."""

from datetime import UTC, datetime

from llamaorch_client.aio import AsyncClient
from llamaorch_client.errors import LlamaOrchError


async def server_now(client: AsyncClient, correlation_id: str | None) -> datetime:
    """What the server's clock shows; this machine's, where the server does not tell."""
    try:
        overview = await client.overview(1, correlation_id=correlation_id)
    except LlamaOrchError:
        # An older one. What else was asked for is not to fail for it.
        return datetime.now(UTC)
    return overview.observed_at or datetime.now(UTC)
