"""Which workflow serves which message. The only place that knows.

An account has any number of bindings. A message meets exactly one of them: that of its chat, else that of its command,
else the default. A route whose workflow cannot be used leaves its messages waiting: they never fall to the default. Nor
do those of a binding that a newer version of Rise has written.

Refuses: to hand out what is switched off, not published, or cannot be read: what needs it waits.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Final, Literal, Protocol

import msgspec

from rise.bus.port import Bus, Topic
from rise.capabilities import meaning_of
from rise.clock import Clock
from rise.definitions.port import Definitions, Kind
from rise.definitions.records import (
    BindingRecord,
    PromptRecord,
    SecretRecord,
    WorkflowRecord,
    bindings_of,
    prompt_of,
    secret_of,
    workflow_of,
)
from rise.errors import BindingsUnknown, RiseError, Unavailable
from rise.queue.port import Route
from rise.service import Loop, Signal
from rise.telemetry import log

CHECK_SECONDS = 4.5
"""How often the version is looked at; makes up for lost events. Below the five seconds within which all agree, because
what is new has to be read, too."""
WHOLE_CHECK_SECONDS = 600.0
"""How often everything is read again, whatever the version says: a store that was restored may have the same."""
KNOWN_SECONDS = 1.0
"""How long a run waits for bindings that were never read; then it waits as for any dependency."""

# As Telegram finds one at the beginning of a text: what follows is neither of its name nor of a path.
_COMMAND: Final = re.compile(r"/([A-Za-z0-9_]{1,64})(?:@([A-Za-z0-9_]{3,32}))?(?![\w/<>])")
_WITH_COMMANDS: Final = frozenset(
    {
        *("message", "edited_message", "channel_post", "edited_channel_post"),
        *("business_message", "edited_business_message", "guest_message"),
    }
)


class Message(Protocol):
    """What decides whose a message is, before it is accepted and after."""

    @property
    def channel(self) -> str: ...
    @property
    def account(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def chat_id(self) -> str | None: ...
    @property
    def first_chat_id(self) -> str | None: ...
    @property
    def workflow_id(self) -> str | None: ...
    @property
    def user_text(self) -> str: ...


class Bound(msgspec.Struct, frozen=True):
    """What serves a task: the workflow, and how."""

    workflow: WorkflowRecord
    binding: BindingRecord | None
    """None when the caller named the workflow itself."""


class Met(msgspec.Struct, frozen=True):
    """What a message meets at one moment."""

    binding: BindingRecord | None
    """Whose it is, whether or not that can serve it. Of what asks for a workflow by name, that one's."""
    bound: Bound | None
    """What serves it; None if nothing usable does."""
    status: Literal["bound", "missing", "killed", "unknown"]
    """If nothing does, why: nothing usable is bound, its kill switch is on, or nobody has read what there is."""


class _Account:
    """Who serves one account. Never changed once it is made, so that reading it needs no lock."""

    __slots__ = ("by_chat", "by_command", "by_workflow", "default", "unread", "version")

    def __init__(self, bindings: Iterable[BindingRecord], version: int) -> None:
        self.version = version
        self.by_workflow = {one.workflow_id: one for one in bindings}
        self.unread = next((one for one in self.by_workflow.values() if not one.workflow_id), None)
        """Any message may be its: nobody here knows its routes."""
        usable = [one for one in self.by_workflow.values() if one.enabled]
        self.default = next((one for one in usable if one.is_default), None)
        routes = [(route, one) for one in usable for route in one.routes]
        self.by_chat = {route.value: one for route, one in routes if route.by == "chat"}
        self.by_command = {route.value.casefold(): one for route, one in routes if route.by == "command"}

    @property
    def is_routed(self) -> bool:
        return bool(self.by_chat or self.by_command)

    def binding_of(self, message: Message) -> BindingRecord | None:
        """Of what asks for a workflow by name, that one's."""
        if self.unread is not None:
            return self.unread
        if message.workflow_id is not None:
            return self.by_workflow.get(message.workflow_id)
        if self.by_chat:
            # A group that became a supergroup is known by both its ids.
            for chat_id in (message.chat_id, message.first_chat_id):
                if chat_id is not None and (binding := self.by_chat.get(chat_id)) is not None:
                    return binding
        if self.by_command and (binding := self._by_command_of(message)) is not None:
            return binding
        return self.default

    def _by_command_of(self, message: Message) -> BindingRecord | None:
        """`/start@a_bot` is that bot's; a route that names no bot takes it, too, for Telegram brings commands that are
        meant for another bot only to those that read everything."""
        for command in commands_of(message):
            if (binding := self.by_command.get(command)) is not None:
                return binding
        return None


def commands_of(message: Message) -> list[str]:
    """The routes by which the command at the beginning of a message is found, if there is one, the closest first."""
    found = _COMMAND.match(message.user_text) if message.kind in _WITH_COMMANDS else None
    if found is None:
        return []
    command, bot = f"/{found[1]}".casefold(), found[2]
    return [command] if bot is None else [f"{command}@{bot.casefold()}", command]


def is_command(value: str) -> bool:
    """Whether it can be the value of a route."""
    return _COMMAND.fullmatch(value) is not None


def allows(binding: BindingRecord, message: Message, user_id: str | None = None) -> bool:
    """Whether the binding serves its chat. Where there is no chat (an inline query), the person's own counts."""
    allowed = binding.own.allowed_chat_ids
    if not allowed:
        return True
    if message.chat_id is None:
        return user_id in allowed
    return message.chat_id in allowed or message.first_chat_id in allowed


class BindingsSnapshot(msgspec.Struct, frozen=True):
    """What is bound at one moment, never half of one and half of another. Read by attribute, or by name."""

    version: int = -1
    """-1: nothing was read yet."""
    active: tuple[BindingRecord, ...] = ()
    """Those that are switched on and not killed, and whose workflow can be used."""
    options: tuple[WorkflowRecord, ...] = ()
    """The workflows that can be bound."""
    last_refresh: datetime | None = None
    """When this was last seen to be in force."""

    def __getitem__(self, name: str) -> Any:
        if name not in self.__struct_fields__:
            raise KeyError(name)
        return getattr(self, name)


class BindingRegistry:
    """The bindings as of the latest version this process has seen; reading is a look in memory."""

    name = "bindings"

    def __init__(
        self,
        definitions: Definitions,
        bus: Bus,
        clock: Clock,
        *,
        on_trouble: Callable[[str | None], None] = lambda trouble: None,
    ) -> None:
        """`on_trouble`: told why they cannot be read, and None when they are, as soon as either is known."""
        self._definitions = definitions
        self._clock = clock
        self._on_trouble = on_trouble
        self._trouble: str | None = "not read yet"
        self._whole_check_at = 0.0
        self._refreshing = asyncio.Lock()
        self._snapshot = BindingsSnapshot()
        self._listeners: list[Callable[[BindingsSnapshot], None]] = []
        self._version = -1
        self._workflows: dict[str, WorkflowRecord] = {}
        self._accounts: dict[tuple[str, str], _Account] = {}
        self._prompts: dict[str, PromptRecord] = {}
        self._secrets: dict[str, SecretRecord] = {}
        self._changed = Signal()
        self._unsubscribe = bus.subscribe(Topic.DEFINITIONS_CHANGED, lambda _: self._changed.set())
        self._loop = Loop(
            "bindings", self._follow, sleep=clock.sleep, on_error=self._report, pause_seconds_max=CHECK_SECONDS
        )

    @property
    def version(self) -> int:
        return self._version

    async def start(self) -> None:
        # A failure is retried by the loop: until then nothing is bound, and what comes in waits.
        await self._loop.start()
        self._changed.set()

    async def stop(self) -> None:
        await self._loop.stop()
        self._unsubscribe()

    @property
    def snapshot(self) -> BindingsSnapshot:
        return self._snapshot

    def on_refresh(self, listener: Callable[[BindingsSnapshot], None]) -> Callable[[], None]:
        """Called now, and whenever they were looked at, changed or not; returns what ends it. It raises nothing."""
        self._listeners.append(listener)
        listener(self._snapshot)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    async def refresh(self, *, whole: bool = False) -> None:
        """Take over what is in force now. `whole`: read it even if it seems to be what is known."""
        # One after the other: a slow look that began before a change would put back what was in force before it.
        async with self._refreshing:
            if whole or await self._definitions.changes() != self._version:
                await self._read()
        self._show(msgspec.structs.replace(self._snapshot, last_refresh=self._clock.now()))

    async def _read(self) -> None:
        latest = await self._definitions.latest([Kind.PUBLISHED, Kind.BINDINGS, Kind.PROMPT, Kind.SECRET])
        workflows, prompts, secrets = [], [], []
        accounts: dict[tuple[str, str], _Account] = {}
        for definition in latest.definitions:
            if definition.kind is Kind.PUBLISHED:
                workflows.append(workflow_of(definition))
            elif definition.kind is Kind.PROMPT:
                prompts.append(prompt_of(definition))
            elif definition.kind is Kind.SECRET:
                secrets.append(secret_of(definition))
            elif bindings := bindings_of(definition):
                accounts[bindings[0].channel, bindings[0].account] = _Account(bindings, definition.version)
        self._workflows = {workflow.workflow_id: workflow for workflow in workflows}
        self._prompts = {prompt.prompt_id: prompt for prompt in prompts}
        self._secrets = {secret.name: secret for secret in secrets}
        self._accounts = accounts
        self._version = latest.changes
        usable = {one.workflow_id: one for one in workflows if one.published and one.enabled}
        active = tuple(
            one for one in self.bindings() if one.enabled and _is_in_force(one) and one.workflow_id in usable
        )
        shown = BindingsSnapshot(self._version, active, tuple(usable.values()), self._clock.now())
        if shown.version == self._snapshot.version and _content(shown) != _content(self._snapshot):
            log.warning(
                "bindings.drifted",
                version=shown.version,
                consequence="what is in the store is in force from now on; until now it was not, here",
            )
        self._snapshot = shown

    def _show(self, snapshot: BindingsSnapshot) -> None:
        self._snapshot = snapshot
        for listener in list(self._listeners):
            listener(snapshot)

    async def known(self) -> None:
        """They have been read at least once. Raises `BindingsUnknown`: nobody knows yet what there is."""
        if self._version >= 0:
            return
        try:
            async with asyncio.timeout(KNOWN_SECONDS):
                await self.refresh()
        except (TimeoutError, Unavailable) as error:
            raise BindingsUnknown("the bindings have not been read yet, and their store does not answer") from error

    def is_asked_for(self, channel: str, account: str) -> bool:
        """Whether somebody has bound a workflow there, usable or not, switched off or on."""
        return (channel, account) in self._accounts

    def version_of(self, channel: str, account: str) -> int:
        """Of the account's bindings; 0 if there are none."""
        bound = self._accounts.get((channel, account))
        return 0 if bound is None else bound.version

    def met_by(self, message: Message) -> Met:
        """Which one binding it meets now, and what serves it. Only looks in memory."""
        account = self._accounts.get((message.channel, message.account))
        binding = None if account is None else account.binding_of(message)
        named = message.workflow_id
        workflow = self._usable(named or (binding.workflow_id if binding else ""), binding)
        if workflow is not None:
            return Met(binding, Bound(workflow, None if named else binding), "bound")
        if self._version < 0:
            return Met(None, None, "unknown")
        return Met(binding, None, "killed" if binding is not None and binding.kill_switch is not None else "missing")

    def _usable(self, workflow_id: str, binding: BindingRecord | None) -> WorkflowRecord | None:
        workflow = self._workflows.get(workflow_id)
        if workflow is None or not workflow.published or not workflow.enabled:
            return None
        return None if binding is not None and not _is_in_force(binding) else workflow

    def served(self, routes: Iterable[Route]) -> tuple[Route, ...]:
        """Of these, the ones of which every message can be served now. Not `routed` ones: see there."""
        return tuple(route for route in routes if not self._is_routed(route) and self._serves(route))

    def routed(self, routes: Iterable[Route]) -> tuple[Route, ...]:
        """Of these, the ones of which each message has to be looked up by itself."""
        return tuple(route for route in routes if self._is_routed(route))

    def _is_routed(self, route: Route) -> bool:
        account = self._accounts.get((route.channel, route.account))
        return account is not None and not route.workflow_id and account.is_routed

    def _serves(self, route: Route) -> bool:
        account = self._accounts.get((route.channel, route.account))
        if account is not None and account.unread is not None:
            return False
        if route.workflow_id:
            binding = None if account is None else account.by_workflow.get(route.workflow_id)
            return self._usable(route.workflow_id, binding) is not None
        default = None if account is None else account.default
        return default is not None and self._usable(default.workflow_id, default) is not None

    def bindings(self) -> list[BindingRecord]:
        """All of them, of all accounts."""
        return [one for account in self._accounts.values() for one in account.by_workflow.values()]

    def binding(self, channel: str, account: str, workflow_id: str | None) -> BindingRecord | None:
        """The one of that workflow, on or off."""
        bound = self._accounts.get((channel, account))
        return None if bound is None or workflow_id is None else bound.by_workflow.get(workflow_id)

    def workflow(self, workflow_id: str) -> WorkflowRecord | None:
        return self._workflows.get(workflow_id)

    def prompt(self, prompt_id: str) -> PromptRecord | None:
        return self._prompts.get(prompt_id)

    def secret(self, name: str) -> SecretRecord | None:
        """Sealed, as it is kept."""
        return self._secrets.get(name)

    async def _follow(self) -> None:
        await self._changed.wait(CHECK_SECONDS)
        now = self._clock.monotonic()
        whole = now >= self._whole_check_at
        await self.refresh(whole=whole)
        if whole:
            self._whole_check_at = now + WHOLE_CHECK_SECONDS
        self._say(None)

    def _report(self, name: str, error: BaseException) -> None:
        trouble = error.public_message if isinstance(error, RiseError) else type(error).__name__
        if trouble != self._trouble:
            log.warning("bindings.refresh_failed", error=error, **meaning_of("bindings"))
        self._say(trouble)
        # What it was woken for is not done yet.
        self._changed.set()

    def _say(self, trouble: str | None) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._on_trouble(trouble)


def _is_in_force(binding: BindingRecord) -> bool:
    """Whether what it meets is run at all."""
    return binding.kill_switch is None and binding.is_readable


def _content(snapshot: BindingsSnapshot) -> object:
    return snapshot.active, snapshot.options
