"""What stands in definitions, as this version of Rise reads it: workflows as they are edited and as they run, prompts,
secrets, and what is bound to what. Which version it is, and who wrote it when, is the definition's word, not its own.

Refuses: to let one that it cannot read hide the others. That one serves nobody, and code does not take it for its own.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from rise.clock import from_epoch_ms, iso
from rise.definitions.port import Definition
from rise.envelope import encode_json

CODE: Final = "code"
"""Who changed it, where no person did; and of a workflow, that its function is in the code."""
STAGES: Final = "stages"
"""Of a workflow, that it is made of stages, which stand in its definition."""
NEWER: Final = "a newer version of Rise"
NATIVE: Final = "native"
TEMPORAL: Final = "temporal"
ENGINES: Final = (NATIVE, TEMPORAL)


class WorkflowRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow as it runs."""

    workflow_id: str
    name: str
    kind: str = CODE
    version: int = 1
    channels: tuple[str, ...] = ()
    published: bool = True
    """Of one in code: whether the code that was loaded last has it."""
    enabled: bool = True
    """Whether it may serve channels: a person's switch, which code leaves as it is."""
    stages: list[Any] | None = None
    """As they were written; None if its function is in the code."""
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


class BurstPolicy(msgspec.Struct, frozen=True):
    """Short messages that one person writes one after the other are one turn."""

    quiet_seconds: Annotated[float, msgspec.Meta(gt=0)]
    """So long after a message the next one is still of its burst."""
    longest_wait_seconds: Annotated[float, msgspec.Meta(gt=0)]
    """So long after its first message a burst is answered, whether or not more of it comes."""


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


class DraftRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow made of stages, as somebody edits it."""

    workflow_id: str
    name: str
    stages: list[Any] = []
    version: int = 0
    updated_at: str = ""
    updated_by: str = ""


class PromptRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A text for a language model, which stages refer to by its id."""

    prompt_id: str
    name: str
    template: str
    system: str | None = None
    placeholders: tuple[str, ...] = ()
    """What the stage that uses it must give a value for, beside what every template has."""
    model: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    version: int = 0
    updated_at: str = ""
    updated_by: str = ""


class SecretRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A key that stages put into their requests and refer to by its name."""

    name: str
    sealed: str
    """`runtime/sealing.py` opens it."""
    version: int = 0
    updated_at: str = ""
    updated_by: str = ""


Dated = TypeVar("Dated", WorkflowRecord, DraftRecord, PromptRecord, SecretRecord)


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
    burst: BurstPolicy | None = None
    """None: each message is a turn of its own."""
    engine: Literal["native", "temporal"] = "native"
    """Where it is run: by the worker itself, or by its chat's conversation on Temporal."""
    own: ChannelOwn = ChannelOwn()
    version: int = 0
    """Of its account's bindings, when it was changed last."""
    updated_at: str = ""
    updated_by: str = ""
    bound_by: str = ""
    """Who has decided what is bound: whoever changed it last, but for its kill switch."""

    @property
    def is_readable(self) -> bool:
        """Or a newer version has written it: what is meant for it waits."""
        return self.updated_by != NEWER

    @property
    def is_met(self) -> bool:
        """Whether any message may meet it, but those that name its workflow: another may have become the default."""
        return self.enabled and (self.is_default or bool(self.routes))


def account_name(channel: str, account: str) -> str:
    """What the bindings of an account are called."""
    return f"{channel}:{account}"


def workflow_of(definition: Definition) -> WorkflowRecord:
    """As it was published; one that cannot be read is switched off: what needs it waits."""
    unusable = WorkflowRecord(workflow_id=definition.name, name=definition.name, enabled=False)
    return _read(definition, WorkflowRecord, unusable)


class _Switch(msgspec.Struct, frozen=True):
    enabled: bool = True


def is_switched_on(definition: Definition) -> bool:
    """What a person has said of it, also where nothing else can be read."""
    try:
        return msgspec.json.decode(definition.body or b"", type=_Switch).enabled
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return True


def draft_of(definition: Definition) -> DraftRecord:
    """As it was left; one that cannot be read is a newer version's, and has no stages here."""
    return _read(definition, DraftRecord, DraftRecord(workflow_id=definition.name, name=definition.name))


def prompt_of(definition: Definition) -> PromptRecord:
    """As it was stored; one that cannot be read is a newer version's, and says nothing here."""
    return _read(definition, PromptRecord, PromptRecord(prompt_id=definition.name, name=definition.name, template=""))


def secret_of(definition: Definition) -> SecretRecord:
    """As it was set; one that cannot be read is a newer version's, and opens with no key."""
    return _read(definition, SecretRecord, SecretRecord(name=definition.name, sealed=""))


def _read(definition: Definition, kind: type[Dated], unreadable: Dated) -> Dated:
    moment, by = iso(from_epoch_ms(definition.at_ms)), definition.by
    try:
        read = msgspec.json.decode(definition.body or b"", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        read, by = unreadable, NEWER
    return msgspec.structs.replace(read, version=definition.version, updated_at=moment, updated_by=by)


def body_of(record: WorkflowRecord | DraftRecord | PromptRecord | SecretRecord) -> bytes:
    """What is written of it, the same for all that say the same: neither its version nor who wrote it when."""
    fields = msgspec.structs.asdict(record)
    return encode_json({name: value for name, value in fields.items() if name not in _OF_THE_DEFINITION})


_OF_THE_DEFINITION: Final = frozenset({"version", "updated_at", "updated_by"})


class _Meets(msgspec.Struct, frozen=True):
    """What of a binding says which messages it meets."""

    workflow_id: str
    is_default: bool = True
    enabled: bool = True
    routes: tuple[BindingRoute, ...] = ()


def bindings_of(definition: Definition) -> list[BindingRecord]:
    """Of one account, by workflow; of those that cannot be read, what they meet. Where not even that can be read, the
    workflow has no name: any message of the account may be its."""
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
        meets = _met_by(raw)
    return BindingRecord(
        channel=channel,
        account=account,
        workflow_id=meets.workflow_id,
        is_default=meets.is_default,
        enabled=meets.enabled,
        routes=meets.routes,
        updated_by=NEWER,
    )


def _met_by(raw: msgspec.Raw) -> _Meets:
    try:
        return msgspec.json.decode(raw, type=_Meets)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Meets(workflow_id="", is_default=False, enabled=False)
