"""How well each binding serves: in which words it is said, and what every process knows of it.

Promises: the worst that was found is what is shown, with its source. Who finds it out: `examiner.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import msgspec

from rise.capabilities import REMEDIES
from rise.clock import iso

BINDING: Final = "binding"
WORKFLOW: Final = "workflow"
WEBHOOK: Final = "getWebhookInfo"
BOT: Final = "getMe"
TEST: Final = "test"
RUNS: Final = "runs"
SEEN_BY_SERVERS: Final = frozenset({TEST, RUNS})
"""What only shows where messages pass."""


class HealthStatus(StrEnum):
    OK = "ok"
    DEGRADED = "degraded"
    DOWN = "down"
    UNKNOWN = "unknown"


_WORSE: Final = {status: place for place, status in enumerate(["ok", "unknown", "degraded", "down"])}
_CONSEQUENCES: Final = {
    HealthStatus.DEGRADED: "some messages come late or are answered late; none is lost",
    HealthStatus.DOWN: "what comes in is kept and waits; it is not answered",
    HealthStatus.UNKNOWN: "nothing is known to be wrong, nor to be well",
}
_REMEDIES: Final = {
    BINDING: "install that version here, too",
    WORKFLOW: "publish the workflow, switch it on, or bind another",
    WEBHOOK: REMEDIES["telegram_webhook"],
    BOT: REMEDIES["telegram_sending"],
    TEST: "`rise doctor` says what does not work, `rise tasks` what waits",
    RUNS: "see in the log why it fails; `rise suspended` shows what has to be run again",
}

Identity = tuple[str, str, str]
"""Channel, account, workflow."""


class Finding(msgspec.Struct, frozen=True):
    status: HealthStatus
    source: str
    detail: str


class BindingHealth(msgspec.Struct, frozen=True, rename="camel"):
    """How well one binding serves."""

    channel: str
    account: str
    workflow_id: str
    status: HealthStatus = HealthStatus.UNKNOWN
    source: str = ""
    detail: str = "not looked at yet"
    last_checked_at: datetime | None = None

    @property
    def identity(self) -> Identity:
        return self.channel, self.account, self.workflow_id

    def shown(self) -> dict[str, Any]:
        """As events and answers have it."""
        checked = None if self.last_checked_at is None else iso(self.last_checked_at)
        shown: dict[str, Any] = msgspec.to_builtins(self)
        return shown | {"lastCheckedAt": checked}

    def meaning(self) -> dict[str, str]:
        """What follows from it, and what helps."""
        return {"consequence": _CONSEQUENCES[self.status], "remedy": _REMEDIES.get(self.source, "")}


def read_healths(answer: Any) -> list[BindingHealth]:
    """What `GET /api/channels/{channel}/health` answers; nothing of another version's."""
    try:
        return msgspec.convert(answer["data"]["bindings"], list[BindingHealth])
    except (msgspec.ValidationError, KeyError, TypeError):
        return []


def worst(healths: Iterable[BindingHealth]) -> HealthStatus:
    """Of several; of none nothing is known."""
    return max((one.status for one in healths), key=_WORSE.__getitem__, default=HealthStatus.UNKNOWN)


def worst_of(findings: Iterable[Finding | None]) -> Finding | None:
    """What is shown of a binding of which all of these were found."""
    return max((one for one in findings if one), key=lambda one: _WORSE[one.status], default=None)


class HealthBook:
    """What is known of each binding, in every process."""

    def __init__(self) -> None:
        self._known: dict[Identity, BindingHealth] = {}

    def health_of(self, channel: str, account: str, workflow_id: str) -> BindingHealth:
        """The last known, however long ago; `unknown` of what nobody has looked at."""
        return self._known.get((channel, account, workflow_id)) or BindingHealth(channel, account, workflow_id)

    def put(self, health: BindingHealth) -> None:
        self._known[health.identity] = health

    def hear(self, event: Mapping[str, Any]) -> None:
        """That of the process that looks."""
        try:
            self.put(msgspec.convert(event, BindingHealth))
        except msgspec.ValidationError:
            return  # another version's

    def keep_only(self, identities: Iterable[Identity]) -> None:
        """What is not bound any more is not known any more."""
        kept = set(identities)
        self._known = {identity: health for identity, health in self._known.items() if identity in kept}
