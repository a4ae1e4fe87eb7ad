"""The command `orchestratord token`: a token, and what the configuration says of it. AUTH-1006."""

import argparse
import datetime as dt
import re
import sys
from collections.abc import Sequence

from orchestrator_core import clock
from orchestrator_core.auth.tokens import (
    HOST_ID_PATTERN,
    NAME_PATTERN,
    Role,
    fingerprint,
    new_token,
    sha256_of,
)

DAYS_MAX = 3_650


def run(argv: Sequence[str]) -> int:
    """Prints a new token, once, and its table for the configuration; exits with 2 on misuse."""
    parser = argparse.ArgumentParser(
        prog="orchestratord token",
        description="Makes a bearer token. Only its hash goes into the configuration.",
    )
    parser.add_argument("--role", required=True, choices=[role.value for role in Role])
    parser.add_argument(
        "--name", required=True, type=_name, help="whose it is, in logs and limits: unique"
    )
    parser.add_argument(
        "--host-id", type=_host_id, help="of a pool's token: the only host that it may register"
    )
    parser.add_argument(
        "--days", type=int, choices=range(1, DAYS_MAX + 1), metavar="N", help="ends after N days"
    )
    arguments = parser.parse_args(argv)
    if arguments.host_id and arguments.role != Role.POOL.value:
        parser.error("--host-id is for --role pool")
    token = new_token()
    # The token goes to stdout alone, so that it can be piped into a file.
    print(token)
    lines = (
        f"# The token above is shown this once; its fingerprint in logs is {fingerprint(token)}.",
        "# Add to orchestratord.toml:",
        f'[auth.tokens."{arguments.name}"]',
        f'role = "{arguments.role}"',
        f'sha256 = "{sha256_of(token)}"',
        *([f'host_id = "{arguments.host_id}"'] if arguments.host_id else []),
        *([f"expires = {_end(arguments.days)}"] if arguments.days else []),
    )
    print("\n".join(lines), file=sys.stderr)
    return 0


def _name(text: str) -> str:
    if not re.fullmatch(NAME_PATTERN, text):
        raise argparse.ArgumentTypeError("1 to 64 letters, digits, '.', '_' or '-'")
    return text


def _host_id(text: str) -> str:
    if not text or not re.fullmatch(HOST_ID_PATTERN, text):
        raise argparse.ArgumentTypeError("1 to 128 letters, digits, '.', '_', ':' or '-'")
    return text


def _end(days: int) -> str:
    """The midnight, in UTC, that ends the last of so many days."""
    today = dt.datetime.fromtimestamp(clock.wall_s(), dt.UTC).date()
    return f"{today + dt.timedelta(days=days + 1)}T00:00:00Z"
