"""The command `orchestratord token`: a token, and what the configuration says of it. AUTH-1006."""

import argparse
import re
import sys
from collections.abc import Sequence

from orchestrator_core.auth.tokens import NAME_PATTERN, Role, fingerprint, new_token, sha256_of


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
    arguments = parser.parse_args(argv)
    token = new_token()
    # The token goes to stdout alone, so that it can be piped into a file.
    print(token)
    lines = (
        f"# The token above is shown this once; its fingerprint in logs is {fingerprint(token)}.",
        "# Add to orchestratord.toml:",
        f'[auth.tokens."{arguments.name}"]',
        f'role = "{arguments.role}"',
        f'sha256 = "{sha256_of(token)}"',
    )
    print("\n".join(lines), file=sys.stderr)
    return 0


def _name(text: str) -> str:
    if not re.fullmatch(NAME_PATTERN, text):
        raise argparse.ArgumentTypeError("1 to 64 letters, digits, '.', '_' or '-'")
    return text
