"""How many requests a model works on, from Triton's metrics: what confirms a cancel.

Triton's own statistics cannot: a decoupled model counts as done as soon as it has taken a request.
"""

import math
from dataclasses import dataclass, field

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from pool_managerd.engines.port import EngineError
from pool_managerd.engines.triton_profiles import Profile

_TIMEOUT = aiohttp.ClientTimeout(total=5.0)
_MAX_ANSWER_BYTES = 4 * 1024 * 1024
_OK = 200


class MetricsError(EngineError):
    """The metrics do not tell how busy the model is; the message says why."""


@dataclass(slots=True)
class BusyGauge:
    """Reads the gauges of `profile.busy` at `metrics_url`; those of the model `model_name` alone.

    `metric` replaces the profile's gauges unless empty.
    """

    metrics_url: str
    model_name: str
    profile: Profile
    metric: str = ""
    _session: aiohttp.ClientSession | None = field(default=None, init=False)

    async def read(self) -> int:
        """Returns the number of requests at work.

        Raises:
            MetricsError: when the metrics cannot be had, or hold no such gauge.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=_TIMEOUT)
        try:
            async with self._session.get(self.metrics_url, allow_redirects=False) as response:
                status, answer = response.status, await _read(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise MetricsError(
                f"{self.metrics_url} does not answer ({type(error).__name__})"
            ) from error
        if status != _OK:
            raise MetricsError(f"{self.metrics_url} answers with HTTP status {status}")
        return self._sum(answer.decode("utf-8", "replace"))

    def _sum(self, text: str) -> int:
        wanted = ((self.metric, {}),) if self.metric else self.profile.busy
        try:
            samples = [
                sample
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            ]
        except ValueError as error:
            raise MetricsError(f"{self.metrics_url} gives no metrics: {error}") from error
        counts = []
        for name, labels in wanted:
            values = [sample.value for sample in samples if self._is(sample, name, dict(labels))]
            if not values:
                raise MetricsError(f"{self.metrics_url} has no gauge {name}")
            counts += values
        busy = sum(counts)
        if not math.isfinite(busy):
            raise MetricsError(f"{self.metrics_url} tells {busy} requests at work")
        return round(busy)

    def _is(self, sample: Sample, name: str, labels: dict[str, str]) -> bool:
        model = sample.labels.get("model", self.model_name)
        other_model = self.profile.busy_of_model and model != self.model_name
        return sample.name == name and not other_model and labels.items() <= sample.labels.items()

    async def close(self) -> None:
        """Closes the connection. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


async def _read(response: aiohttp.ClientResponse) -> bytes:
    answer = bytearray()
    async for chunk in response.content.iter_any():
        answer += chunk
        if len(answer) > _MAX_ANSWER_BYTES:
            raise MetricsError(f"the metrics are longer than {_MAX_ANSWER_BYTES} bytes")
    return bytes(answer)
