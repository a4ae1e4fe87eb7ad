# SPDX-License-Identifier: Apache-2.0
"""policy check: may a tool connect to an address?"""

import argparse

from llamaorch_client.aio import AsyncClient
from llamaorch_client.cli.failure import ExitCode
from llamaorch_client.cli.output import Output


async def policy(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    """Asks about one address; 5 when it is denied. Connects to nothing (ORCH-3080, ORCH-3206)."""
    decision = await client.check_outbound(
        arguments.url,
        job_id=arguments.job,
        session_id=arguments.session,
        tool=arguments.tool,
        correlation_id=arguments.correlation_id,
    )
    if out.as_json:
        out.record({"decision": decision})
    else:
        target = f"{decision.scheme}://{decision.host}"
        out.result(
            f"{target} is allowed by {decision.rule}"
            if decision.allowed
            else f"denied: {decision.reason} (decision {decision.decision_id})"
        )
    return ExitCode.FINISHED if decision.allowed else ExitCode.DENIED
