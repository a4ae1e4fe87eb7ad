"""Calls of NVML that give a value or nothing, and remember what went wrong.

Everything here runs in the one thread that reads devices.
"""

from typing import Any

import pynvml

from pool_managerd.core import nvml_codes as codes
from pool_managerd.telemetry import log

RETRY_UNSUPPORTED_READINGS = 300
"""What is not supported is asked for again after so many readings: a mode may have changed."""


_Query = tuple[str, str, tuple[int, ...], bool]
"""Device id, function, its plain arguments, and whether options were given."""


class NvmlError(Exception):
    """NVML cannot be opened. The text says what to do."""


class NvmlCalls:
    """The binding (`pynvml`), with answers instead of exceptions.

    `failed` holds the last error of each device's queries in the present reading, other than that
    something is not supported; "" is the key of queries that concern no device.
    """

    def __init__(self) -> None:
        self.failed: dict[str, int] = {}
        self._unsupported: set[_Query] = set()
        self._told: set[_Query] = set()
        self._readings = 0
        self._open = False

    def open(self) -> None:
        """Initialises NVML; what was not supported before is asked for again.

        Raises:
            NvmlError: saying what to do.
        """
        self._unsupported.clear()
        self.failed.clear()
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise NvmlError(codes.open_problem(error.value, _message(error))) from None
        self._open = True

    def close(self) -> None:
        """Shuts NVML down, so that a GPU can be reset or the driver reloaded. Idempotent."""
        if self._open:
            self._open = False
            self.ask("", "nvmlShutdown")

    def begin_reading(self) -> None:
        """Forgets the errors of the last reading."""
        self.failed.clear()
        self._readings += 1
        if self._readings % RETRY_UNSUPPORTED_READINGS == 0:
            self._unsupported.clear()

    def ask(self, device_id: str, name: str, *args: Any, **options: Any) -> Any:
        """The value, or None when this device, driver or binding does not give it.

        What is not supported is not asked for again for a while: each call takes the driver's lock.
        """
        key = (device_id, name, tuple(arg for arg in args if type(arg) is int), bool(options))
        if key in self._unsupported:
            return None
        function = getattr(pynvml, name, None)
        if function is None:
            return None
        try:
            return function(*args, **options)
        except pynvml.NVMLError as error:
            self._note(key, error)
        except Exception as error:  # noqa: BLE001 - one odd field must not end the readings
            # Some integrated devices report success with bytes that are not what was asked for.
            self._tell(key, type(error).__name__)
        return None

    def _note(self, key: _Query, error: Any) -> None:
        code = error.value
        if code == codes.TIMEOUT:
            return
        if code in codes.UNSUPPORTED:
            self._unsupported.add(key)
        else:
            self.failed[key[0]] = code
        self._tell(key, _message(error), warn=code == codes.NO_PERMISSION)

    def _tell(self, key: _Query, problem: str, *, warn: bool = False) -> None:
        if key in self._told:
            return
        self._told.add(key)
        write = log.warning if warn else log.debug
        write("nvml_query_unavailable", device_id=key[0], query=key[1], error=problem)


def text_or_none(value: object) -> str | None:
    """Text of the binding, which some versions give as bytes; None when it is empty."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return value if isinstance(value, str) and value else None


def _message(error: Any) -> str:
    # Without the library there is nothing that could translate the code.
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - the code says as much
        return f"NVML error {error.value}"
