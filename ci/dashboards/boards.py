"""All dashboards. Every metric in them is of the contract in `ci/metrics.lint.json`."""

from typing import Final

from ci.dashboards.machines import GPUS, RELIABILITY
from ci.dashboards.service import LATENCY, PREDICTION
from ci.dashboards.work import FLEET, QUEUE

BOARDS: Final = (FLEET, QUEUE, LATENCY, PREDICTION, GPUS, RELIABILITY)
