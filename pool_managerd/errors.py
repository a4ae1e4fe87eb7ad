"""Exceptions of the pool manager.

PoolManagerError
├── ConfigError               the configuration cannot be used
├── DevicesUnavailableError   the configured devices cannot be read
└── SessionLostError          the stream to the orchestrator is over
"""


class PoolManagerError(Exception):
    """Base of what the pool manager raises."""


class DevicesUnavailableError(PoolManagerError):
    """The configured devices cannot be read. The message says what to install or to change."""


class SessionLostError(PoolManagerError):
    """The stream to the orchestrator is over; the message says why, for people."""
