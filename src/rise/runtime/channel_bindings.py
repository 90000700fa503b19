"""What people see and change of bindings, for the HTTP API and the command line alike.

Reads what is in force from the store, not from what this process has seen of it: whoever has just changed something
finds it changed, wherever he asks.

Promises: a bot's token leaves here sealed, into the definitions, and masked everywhere else. What a change leaves out
stays as it was.

Refuses: to switch on what lacks something it needs (`PayloadInvalid`, naming all of it); a workflow that nobody has
published or is writing (`WorkflowUnknown`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from rise.bindings import BindingRegistry, is_command
from rise.bus.port import Bus, Topic
from rise.channels.http import CHAT_ID_CHARS_MAX, identifier
from rise.channels.telegram import CHANNEL as TELEGRAM
from rise.channels.telegram import bot_id_of
from rise.clock import Clock, iso
from rise.definitions.port import Definition, Definitions, Kind
from rise.definitions.records import TEMPORAL as TEMPORAL_ENGINE
from rise.definitions.records import (
    BindingRecord,
    BindingRoute,
    ChannelOwn,
    KillSwitch,
    WorkflowRecord,
    account_name,
    bindings_of,
    workflow_of,
)
from rise.envelope import is_in_digits
from rise.errors import BindingMissing, PayloadInvalid, WorkflowUnknown
from rise.runtime.binding_health import BindingHealth, HealthBook, HealthStatus
from rise.runtime.editor import EVENT_QUEUED, Editor, Rebound
from rise.runtime.sealing import Seal, masked

ROUTES_MAX: Final = 1000
Status = Literal["unbound", "bound", "degraded", "down", "disabled", "killed"]


class BindingChange(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants of a binding. What is UNSET stays as it is; None goes back to what there is without it."""

    enabled: bool
    is_default: bool | msgspec.UnsetType = msgspec.UNSET
    """UNSET: what it was, where its routes are left out, too, and it is switched on already; else it is one if it has
    no routes, for then it is meant for everything."""
    routes: tuple[BindingRoute, ...] | msgspec.UnsetType = msgspec.UNSET
    bot_token: str | msgspec.UnsetType | None = msgspec.UNSET
    of_all_channels: Mapping[str, Any] = {}
    """Fields of `BindingRecord`."""
    own: Mapping[str, Any] = {}
    """Fields of `ChannelOwn`."""
    notes: Mapping[str, Any] = {}
    """Of the metadata that nothing is decided by; a note that is None is taken away."""
    version: int | None = None
    """The one that was read before; None: whatever is in force is overwritten."""

    def with_routes(self, routes: tuple[BindingRoute, ...]) -> BindingChange:
        return msgspec.structs.replace(self, routes=routes)


class BindingShown(msgspec.Struct, frozen=True, kw_only=True):
    """A binding, or that there could be one, beside its workflow."""

    binding: BindingRecord
    """Version 0: there is none yet."""
    workflow: WorkflowRecord | None
    """As it runs; None: it is not published yet."""
    published_version: int
    health: BindingHealth
    bot_token: str | None = None
    """Masked."""
    demoted: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def status(self) -> Status:
        binding = self.binding
        if not binding.version:
            return "unbound"
        if binding.kill_switch is not None:
            return "killed"
        if not binding.enabled:
            return "disabled"
        if not binding.is_met:
            return "unbound"
        match self.health.status:
            case HealthStatus.DEGRADED:
                return "degraded"
            case HealthStatus.DOWN:
                return "down"
            case _:
                return "bound"


def routes_from(lines: str) -> tuple[BindingRoute, ...]:
    """Routes as a person writes them, one on each line: a command, which begins with a slash, or a chat's id. Raises
    `PayloadInvalid`."""
    values = list(dict.fromkeys(line.strip() for line in lines.splitlines() if line.strip()))
    if len(values) > ROUTES_MAX:
        raise PayloadInvalid(f"there are more than {ROUTES_MAX} routes", field="routes")
    return tuple(_route_from(value) for value in values)


def _route_from(value: str) -> BindingRoute:
    if not value.startswith("/"):
        return BindingRoute("chat", identifier(value, "routes", chars_max=CHAT_ID_CHARS_MAX))
    if not is_command(value):
        raise PayloadInvalid("a command is written /start, or /start@its_bot", field="routes")
    return BindingRoute("command", value)


@dataclass(frozen=True, slots=True)
class ChannelBindings:
    """Look, bind, switch off, kill."""

    definitions: Definitions
    editor: Editor
    health: HealthBook
    registry: BindingRegistry
    bus: Bus
    clock: Clock
    seal: Seal
    accounts: Mapping[str, str]
    """The default account of each channel that is configured."""
    public_url: str | None
    """Where webhooks go unless a binding says otherwise."""
    is_polling: bool
    delivers_to_https_only: bool = True
    """As Telegram itself does; a Bot API server of one's own need not."""
    served: frozenset[str] = frozenset((TELEGRAM,))
    """The channels that were configured when this process was started: the others are from the next start on."""
    has_temporal: bool = False
    """Whether there is a Temporal for conversations."""

    # --- looking ---

    async def options(self) -> list[BindingShown]:
        """Each published workflow that is switched on, once for each place where it is bound or asks to be."""
        latest = await self.definitions.latest([Kind.PUBLISHED, Kind.BINDINGS])
        bound: dict[str, list[BindingRecord]] = {}
        for definition in latest.definitions:
            for binding in bindings_of(definition) if definition.kind is Kind.BINDINGS else ():
                bound.setdefault(binding.workflow_id, []).append(binding)
        options = []
        for definition in latest.definitions:
            if definition.kind is not Kind.PUBLISHED:
                continue
            workflow = workflow_of(definition)
            if workflow.published and workflow.enabled:
                known = bound.get(workflow.workflow_id, [])
                options += [self._shown(one, definition) for one in [*known, *self._unbound(workflow, known)]]
        return sorted(options, key=lambda one: (one.binding.workflow_id, one.binding.channel, one.binding.account))

    async def all(self) -> list[BindingShown]:
        """Every binding there is, of whatever workflow."""
        latest = await self.definitions.latest([Kind.PUBLISHED, Kind.BINDINGS])
        published = {one.name: one for one in latest.definitions if one.kind is Kind.PUBLISHED}
        bindings = [one for kept in latest.definitions if kept.kind is Kind.BINDINGS for one in bindings_of(kept)]
        return [self._shown(one, published.get(one.workflow_id)) for one in bindings]

    async def one(self, workflow_id: str, channel: str, account: str | None = None) -> BindingShown:
        """The binding of a workflow, or that there is none. Raises `WorkflowUnknown`."""
        published = await self._published(workflow_id)
        place = await self._place(workflow_id, channel, account)
        return self._shown(await self._binding(workflow_id, channel, place or ""), published)

    # --- changing ---

    async def change(
        self, workflow_id: str, channel: str, account: str | None, change: BindingChange, *, by: str, why: str = ""
    ) -> BindingShown:
        """Bind a workflow, change how, or switch it off. Raises `WorkflowUnknown`, `PayloadInvalid`, `VersionStale`,
        or `RouteTaken` if a route is another's."""
        await self._published(workflow_id)
        account = self._account_of_token(channel, account, change.bot_token)
        account = await self.account(workflow_id, channel, account)

        def changed(former: BindingRecord | None) -> BindingRecord:
            known = former or _none_yet(workflow_id, channel, account)
            return self._changed(known, change)

        rebound = await self.editor.rebind(
            channel,
            account,
            workflow_id,
            changed,
            by=by,
            action=_verb(change.enabled),
            why=why,
            version=change.version,
            check=self._refuse_unusable,
        )
        # Once more, for somebody may have removed it meanwhile, when nothing was bound to it yet.
        return await self._told(rebound, await self._last(Kind.PUBLISHED, workflow_id))

    async def switch(
        self, workflow_id: str, channel: str, account: str | None, *, on: bool, reason: str, by: str
    ) -> BindingShown:
        """Turn the kill switch; turned the way it is, it stays so. Raises `BindingMissing` if nothing is bound."""
        published = await self._published(workflow_id)
        account = await self.account(workflow_id, channel, account)
        switch = KillSwitch(reason, iso(self.clock.now()), by)

        def switched(former: BindingRecord | None) -> BindingRecord:
            if former is None:
                raise BindingMissing(f"{workflow_id} is not bound to {account_name(channel, account)}")
            if on == (former.kill_switch is not None):
                return former
            return msgspec.structs.replace(former, kill_switch=switch if on else None)

        action = "kill switch on" if on else "kill switch off"
        rebound = await self.editor.rebind(
            channel, account, workflow_id, switched, by=by, action=action, why=f"{workflow_id}: {reason}"
        )
        return await self._told(rebound, published)

    async def refresh(self, workflow_id: str, channel: str, account: str | None) -> BindingShown:
        """Have this process take over what is in force now, and tell the others to."""
        shown = await self.one(workflow_id, channel, account)
        await self.registry.refresh()
        self.bus.publish(Topic.DEFINITIONS_CHANGED)
        return shown

    async def seal_anew(self, *, by: str) -> tuple[int, list[str]]:
        """Each token under the key that is in force: how many were under the former one, and which under neither."""
        sealed, unreadable = 0, []
        for one in await self.all():
            binding, token = one.binding, one.binding.own.bot_token
            if token is None:
                continue
            if self.seal.open(token) is None:
                unreadable.append(f"{binding.workflow_id} at {account_name(binding.channel, binding.account)}")
            elif self.seal.anew(token) is not None:
                identity = (binding.channel, binding.account, binding.workflow_id)
                await self.editor.rebind(*identity, self._sealed_anew, by=by, action="seal anew")
                sealed += 1
        return sealed, unreadable

    # --- details ---

    def _sealed_anew(self, binding: BindingRecord | None) -> BindingRecord:
        if binding is None:
            raise BindingMissing("it has been unbound meanwhile")
        anew = self.seal.anew(binding.own.bot_token)
        own = binding.own if anew is None else msgspec.structs.replace(binding.own, bot_token=anew)
        return msgspec.structs.replace(binding, own=own)

    def _unbound(self, workflow: WorkflowRecord, known: Sequence[BindingRecord]) -> list[BindingRecord]:
        bound = {binding.channel for binding in known}
        # What asks for no channel by itself may be bound where people write.
        asked = [channel for channel in workflow.channels or (TELEGRAM,) if channel not in bound]
        return [_none_yet(workflow.workflow_id, channel, self.accounts.get(channel, "")) for channel in asked]

    async def _published(self, workflow_id: str) -> Definition | None:
        """As it runs; None if it is only being written."""
        for kind in (Kind.PUBLISHED, Kind.WORKFLOW):
            known = await self._last(kind, workflow_id)
            if known is not None:
                return known if kind is Kind.PUBLISHED else None
        raise WorkflowUnknown(f"there is no workflow {ascii(workflow_id)[1:-1][:80]}", field="workflowId")

    async def _last(self, kind: Kind, workflow_id: str) -> Definition | None:
        known = await self.definitions.version(kind, workflow_id)
        return None if known is None or known.body is None else known

    async def _bindings(self, channel: str, account: str) -> list[BindingRecord]:
        kept = await self.definitions.version(Kind.BINDINGS, account_name(channel, account))
        return [] if kept is None or kept.body is None else bindings_of(kept)

    async def _binding(self, workflow_id: str, channel: str, account: str) -> BindingRecord:
        known = await self._bindings(channel, account)
        found = (one for one in known if one.workflow_id == workflow_id)
        return next(found, _none_yet(workflow_id, channel, account))

    def _shown(self, binding: BindingRecord, published: Definition | None) -> BindingShown:
        workflow = None if published is None else workflow_of(published)
        token = self.seal.open(binding.own.bot_token)
        if token is None and self._is_configured(binding.channel, binding.account):
            token = f"{binding.account}:"  # shown without the rest in any case
        return BindingShown(
            binding=binding,
            workflow=workflow,
            published_version=0 if published is None else published.version,
            health=self.health.health_of(binding.channel, binding.account, binding.workflow_id),
            bot_token=masked(token),
        )

    async def _told(self, rebound: Rebound, published: Definition | None) -> BindingShown:
        shown, warnings = self._shown(rebound.binding, published), []
        if rebound.demoted is not None:
            warnings.append(f"{rebound.demoted} is no longer the default of its account")
        if rebound.binding.enabled and rebound.leaves_no_default:
            warnings.append("its account has no default any more: what no route names waits")
        if rebound.binding.enabled and not rebound.binding.is_met:
            warnings.append("it serves nothing: no routes, not the default. isDefault (--default) makes it that")
        if rebound.binding.enabled and (shown.workflow is None or not shown.workflow.published):
            warnings.append("its workflow is not published: messages wait until it is")
        elif rebound.binding.enabled and shown.workflow is not None and not shown.workflow.enabled:
            warnings.append("its workflow is switched off: messages wait until it is on")
        warnings += self._of_its_bot(rebound.binding)
        if await self.editor.event_is_queued():
            warnings.append(EVENT_QUEUED)
        return msgspec.structs.replace(shown, demoted=rebound.demoted, warnings=tuple(warnings))

    def _of_its_bot(self, binding: BindingRecord) -> list[str]:
        if binding.channel != TELEGRAM:
            return []
        if TELEGRAM not in self.served and binding.enabled:
            return ["Telegram is not served here yet: it is from the next start of `rise serve` on, unless it is off"]
        if self._is_configured(TELEGRAM, binding.account) and binding.own.bot_token is not None:
            return ["RISE_TELEGRAM_TOKEN is this bot's, too, and goes before the token that is bound"]
        return []

    def _account_of_token(self, channel: str, account: str | None, token: object) -> str | None:
        if channel != TELEGRAM or not isinstance(token, str):
            return account
        bot = bot_id_of(token)
        if account not in (None, bot):
            raise PayloadInvalid(f"the token is another bot's than {account}'s", field="config.botToken")
        return bot

    async def account(self, workflow_id: str, channel: str, account: str | None) -> str:
        """To be changed. Raises `PayloadInvalid`."""
        place = await self._place(workflow_id, channel, account)
        if place is None:
            unnamed = (
                "RISE_TELEGRAM_TOKEN, which would name a bot, is not set here: name its account, or another channel"
            )
            raise PayloadInvalid(unnamed, field="account")
        return place

    async def _place(self, workflow_id: str, channel: str, account: str | None) -> str | None:
        """The account that is named, or the channel's default; without either, the one that the workflow is bound to.
        Raises `PayloadInvalid`."""
        default = self.accounts.get(channel)
        if channel != TELEGRAM and account not in (None, default):
            raise PayloadInvalid(f"the channel {channel} has the account {default} only", field="account")
        if account is not None and not is_in_digits(account) and channel == TELEGRAM:
            raise PayloadInvalid("an account of telegram is a bot's number", field="account")
        return account or default or await self._only_account(workflow_id, channel)

    async def _only_account(self, workflow_id: str, channel: str) -> str | None:
        latest = (await self.definitions.latest([Kind.BINDINGS])).definitions
        known = [one for kept in latest for one in bindings_of(kept)]
        bots = [one.account for one in known if (one.workflow_id, one.channel) == (workflow_id, channel)]
        if len(bots) > 1:
            several = f"{workflow_id} is bound to {', '.join(bots)}: name one of these bots by its account"
            raise PayloadInvalid(several, field="account")
        return bots[0] if bots else None

    def _changed(self, known: BindingRecord, change: BindingChange) -> BindingRecord:
        own = dict(change.own)
        if change.bot_token is not msgspec.UNSET:
            own["bot_token"] = self._sealed(known.own.bot_token, change.bot_token)
        if change.notes:
            notes = {**known.own.metadata, **change.notes}
            own["metadata"] = {name: value for name, value in notes.items() if value is not None}
        routes = known.routes if change.routes is msgspec.UNSET else change.routes
        is_default = known.is_default
        if change.is_default is not msgspec.UNSET:
            is_default = change.is_default
        elif change.enabled and change.routes is not msgspec.UNSET:
            is_default = not routes
        elif change.enabled and not known.enabled:
            is_default = known.is_default or not routes
        changed = msgspec.structs.replace(
            known,
            enabled=change.enabled,
            is_default=is_default,
            routes=routes,
            own=msgspec.structs.replace(known.own, **own),
            **change.of_all_channels,
        )
        # Where another has taken the default over, it was so before: whatever else is changed then is not refused.
        if changed.enabled and not changed.is_met and (known.is_met or not known.enabled):
            raise PayloadInvalid("without routes it is the default, or it would serve nothing", field="isDefault")
        return changed

    def _sealed(self, known: str | None, token: str | None) -> str | None:
        """The same token keeps its seal: sealed anew it would look like a change."""
        if token is None or self.seal.open(known) == token:
            return known if token is not None else None
        return self.seal.close(token)

    def _refuse_unusable(self, binding: BindingRecord) -> None:
        """Raises `PayloadInvalid` with the first of the fields that are missing, and all of them in its words."""
        if not binding.enabled:
            return
        if binding.engine == TEMPORAL_ENGINE and not self.has_temporal:
            unset = "engine temporal needs a Temporal: set RISE_TEMPORAL_ADDRESS, here and where workers run"
            raise PayloadInvalid(f"{unset}, or bind it with engine native", field="config.engine")
        if binding.channel != TELEGRAM:
            return
        polls = self.is_polling if binding.own.use_polling is None else binding.own.use_polling
        url = binding.own.webhook_url or ("" if polls else self.public_url) or ""
        if self.delivers_to_https_only and url.lower().startswith("http:"):
            raise PayloadInvalid(
                "config.webhookUrl, or else RISE_PUBLIC_URL, is https://: Telegram delivers to no other",
                field="config.webhookUrl",
            )
        missing = []
        if not self._is_configured(TELEGRAM, binding.account) and self.seal.open(binding.own.bot_token) is None:
            missing.append("config.botToken")
        if not polls and binding.own.webhook_url is None and self.public_url is None:
            missing.append("config.webhookUrl")
        if missing:
            raise PayloadInvalid(f"to serve telegram it needs {' and '.join(missing)}", field=missing[0])

    def _is_configured(self, channel: str, account: str) -> bool:
        """Whether the settings have its token."""
        return channel == TELEGRAM and self.accounts.get(TELEGRAM) == account


def _none_yet(workflow_id: str, channel: str, account: str) -> BindingRecord:
    return BindingRecord(
        channel=channel, account=account, workflow_id=workflow_id, is_default=False, enabled=False, own=ChannelOwn()
    )


def _verb(enabled: bool) -> str:
    return "bind" if enabled else "disable"
