"""Which stores a simulated installation has."""

from __future__ import annotations

from enum import StrEnum


class Profile(StrEnum):
    EMBEDDED = "embedded"
    """One file."""
    REDIS = "redis"
    """Redis hands out the work, and a journal holds it."""
    FULL = "full"
    """RabbitMQ holds it, too."""

    @property
    def servers(self) -> tuple[str, ...]:
        return {Profile.EMBEDDED: (), Profile.REDIS: ("redis",), Profile.FULL: ("redis", "rabbitmq")}[self]
