"""Which stores a simulated installation has."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Profile(StrEnum):
    EMBEDDED = "embedded"
    """One file."""
    REDIS = "redis"
    """Redis hands out the work, and a journal holds it."""
    FULL = "full"
    """RabbitMQ holds it, too."""
    MONGO = "mongo"
    """The ledger is a server of its own, too, that may be away: results wait in Redis."""

    @property
    def servers(self) -> tuple[str, ...]:
        return _SERVERS[self]


_SERVERS: Final = {
    Profile.EMBEDDED: (),
    Profile.REDIS: ("redis",),
    Profile.FULL: ("redis", "rabbitmq"),
    Profile.MONGO: ("redis", "rabbitmq", "mongodb"),
}
