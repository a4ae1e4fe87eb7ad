# SPDX-License-Identifier: Apache-2.0
"""Lets `python -m llamaorch_client.cli` be `llorch`."""

import sys

from llamaorch_client.cli.main import main

sys.exit(main())
