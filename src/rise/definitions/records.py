"""What stands in definitions, as this version of Rise reads it: workflows as they run, and what they are bound to.

Refuses: to let one that it cannot read hide the others. That one serves nobody, and code does not take it for its own.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from rise.clock import from_epoch_ms, iso
from rise.definitions.port import Definition, Kind
from rise.envelope import encode_json

CODE: Final = "code"
"""Who changed it, where no person did."""
NEWER: Final = "a newer version of Rise"


class WorkflowRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow as it runs."""

    workflow_id: str
    name: str
    kind: str = CODE
    version: int = 1
    channels: tuple[str, ...] = ()
    published: bool = True
    enabled: bool = True
    updated_at: str = ""
    updated_by: str = ""


class BindingRoute(msgspec.Struct, frozen=True):
    """What is meant for this workflow and not for the account's default."""

    by: Literal["chat", "command"]
    value: str
    """A chat's id; or a command, `/start`, for one bot of several in a group `/start@its_name`."""


class KillSwitch(msgspec.Struct, frozen=True):
    """It is on: nothing of this binding runs until a person turns it off."""

    reason: str
    since: str
    by: str


class ChannelOwn(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What only its channel makes something of, apart from what all bindings have."""

    bot_token: str | None = None
    """Sealed (`runtime/sealing.py`); None: the settings have it."""
    webhook_url: str | None = None
    """Where the platform delivers; None: as the settings say."""
    use_polling: bool | None = None
    """None: as the settings say. These three are the bot's, and the same in all bindings of an account."""
    allowed_chat_ids: tuple[str, ...] = ()
    """Only these are served; empty: all are."""
    rate_limit_per_min: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """So many messages of one chat are run within any minute; None: as many as come."""
    locale: str | None = None
    metadata: dict[str, Any] = {}
    """What else somebody has noted here. Nothing is decided by it."""


OF_THE_ACCOUNT: Final = ("bot_token", "webhook_url", "use_polling")


class BindingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Which workflow serves a channel's account. Identity: (channel, account, workflow_id)."""

    channel: str
    account: str
    workflow_id: str
    is_default: bool = True
    """It serves what no route of the account names."""
    enabled: bool = True
    routes: tuple[BindingRoute, ...] = ()
    kill_switch: KillSwitch | None = None
    waits_for_result: bool = True
    """Whoever wrote is told when the answer takes long."""
    workflow_missing_message: str | None = None
    timeout_message: str | None = None
    """Said when the answer takes long. Of both texts, None: as the settings word it."""
    own: ChannelOwn = ChannelOwn()
    version: int = 0
    """Of its account's bindings, when it was changed last."""
    updated_at: str = ""
    updated_by: str = ""
    bound_by: str = ""
    """Who has decided what is bound: whoever changed it last, but for its kill switch."""


def account_name(channel: str, account: str) -> str:
    """What the bindings of an account are called."""
    return f"{channel}:{account}"


def workflow_of(definition: Definition) -> WorkflowRecord:
    """As it was published; one that cannot be read is switched off: what needs it waits."""
    unusable = WorkflowRecord(workflow_id=definition.name, name=definition.name, enabled=False, updated_by=NEWER)
    try:
        return msgspec.json.decode(definition.body or b"", type=WorkflowRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return unusable


def bindings_of(definition: Definition) -> list[BindingRecord]:
    """Of one account, by workflow; of those that cannot be read, whatever is left of their names."""
    channel, _, account = definition.name.partition(":")
    try:
        kept = msgspec.json.decode(definition.body or b"[]", type=list[msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        kept = [msgspec.Raw(b"null")]
    return [_binding_of(channel, account, raw) for raw in kept]


def _binding_of(channel: str, account: str, raw: msgspec.Raw) -> BindingRecord:
    try:
        return msgspec.json.decode(raw, type=BindingRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return BindingRecord(
            channel=channel, account=account, workflow_id="", is_default=False, enabled=False, updated_by=NEWER
        )


def published(record: WorkflowRecord, *, version: int, at_ms: int, by: str, comment: str = "") -> Definition:
    """The next version of a workflow as it runs."""
    dated = msgspec.structs.replace(record, updated_at=iso(from_epoch_ms(at_ms)), updated_by=by)
    return Definition(
        kind=Kind.PUBLISHED,
        name=record.workflow_id,
        version=version,
        body=encode_json(dated),
        at_ms=at_ms,
        by=by,
        comment=comment,
    )
