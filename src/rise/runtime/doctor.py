"""The doctor: what is configured, what is there, what works, and what to do about the rest.

Promises: changes no message, and of files only its own, which it writes, syncs and removes; shows no secret; says the
same words as the log and `/healthz`; every line that is not ok names its remedy; one check that fails or
hangs does not keep the others from being made.

Refuses: to make or migrate anything, which is for a start to do; to say that all is well where the running server says
that it is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgspec
from pydantic import SecretStr

from rise.capabilities import CONSEQUENCES, REMEDIES, CapabilityStatus, meaning_of
from rise.clock import Clock
from rise.connections.sqlite import UNTIL_THEN
from rise.definitions.port import Kind
from rise.definitions.records import (
    NEWER,
    STAGES,
    TEMPORAL,
    BindingRecord,
    WorkflowRecord,
    bindings_of,
    secret_of,
    workflow_of,
)
from rise.envelope import Reason, new_key
from rise.errors import RestoreUnfinished, RiseError, StoreCorrupt, StoreUnavailable, Unavailable
from rise.queue.port import Queue, Selection
from rise.runtime import probes
from rise.runtime.alerts import in_number
from rise.runtime.assembly.channels import DEFAULT_ACCOUNT
from rise.runtime.assembly.stores import Stores, build_stores, mirror_lacks
from rise.runtime.assembly.temporal import build_temporal
from rise.runtime.backup import SECRETS, opened_to_read
from rise.runtime.binding_health import SEEN_BY_SERVERS, BindingHealth, HealthStatus, read_healths
from rise.runtime.directory import DataDirectory, space_of
from rise.runtime.open_files import ENOUGH, open_files_allowed
from rise.runtime.overload import MEGABYTE, refuses_below, warns_below
from rise.runtime.pipeline import CLOCKS_CONSEQUENCE, CLOCKS_REMEDY, clocks_apart
from rise.runtime.sealing import Seal
from rise.runtime.supervisor import SUSPENDED_REMEDY
from rise.settings import UNSHARED_KEY_REMEDY, Settings, unknown_names, unshared_key
from rise.telemetry import keep_out_of_logs, redact
from rise.tokens import is_digest
from rise.unreached import why_unreached
from rise.workflows.model import model_of

if TYPE_CHECKING:
    from rise.channels.telegram import TelegramChannel
    from rise.workflows.definition import WorkflowDefinition

GIGABYTE: Final = 1000 * MEGABYTE
ANSWER_SECONDS_MAX: Final = 5.0
UPDATES_WAITING_WARN: Final = 100
PAGE: Final = 1000

_SERVER: Final = re.compile(r"((?:rediss?|amqps?|mongodb(?:\+srv)?)://)([^@/?#]*@)?([^@/?#]*)(?:[/?#][^@]*)?")
_USERINFO: Final = re.compile(r"//[^/@\s]*@")


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(msgspec.Struct, frozen=True):
    """One line of the report."""

    name: str
    level: Level
    detail: str
    remedy: str = ""


class _NoAnswer(msgspec.Struct, frozen=True):
    """Why there is nothing that the server says."""

    why: str
    is_silence: bool = False
    """It did not refuse; it has not answered in time."""


Check = Callable[[], Awaitable[list[Finding]]]

_ENDS_BY_ITSELF: Final = frozenset({Reason.WORKFLOW_PENDING, Reason.SCHEMA_NEWER})
"""When the workflow, or the version, that it waits for is there: until then that is what is missing, and is said so."""
_SERVERS: Final = ("rise serve", "rise demo")
_LEVELS: Final = {
    CapabilityStatus.AVAILABLE: Level.OK,
    CapabilityStatus.DEGRADED: Level.WARN,
    CapabilityStatus.UNAVAILABLE: Level.FAIL,
}
_LEVELS_OF_HEALTH: Final = {HealthStatus.DEGRADED: Level.WARN, HealthStatus.DOWN: Level.FAIL}


@dataclass(frozen=True, slots=True)
class Doctor:
    settings: Settings
    clock: Clock

    @property
    def checks(self) -> Mapping[str, Check]:
        """By name, in the order of the report."""
        return {
            "settings": self._settings,
            "directory": self._directory,
            "disk": self._disk,
            "journal": self._journal,
            "database": self._database,
            "redis": self._redis,
            "rabbitmq": self._rabbitmq,
            "mongo": self._mongo,
            "temporal": self._temporal,
            "llm": self._llm,
            "secrets": self._secrets,
            "app": self._app,
            "bindings": self._bindings,
            "open work": self._open_work,
            "clock": self._clock,
            "open files": self._open_files,
            "telegram": self._telegram,
            "serve": self._serve,
            "capabilities": self._capabilities,
        }

    async def examine(self) -> AsyncIterator[Finding]:
        """Everything, one after the other; nothing is well that was found not to be."""
        found_wrong: set[str] = set()
        for name, check in self.checks.items():
            for finding in await _made(name, check):
                # What was seen just now, at Telegram and on the disk, outranks what the server has heard of it.
                if finding.level is Level.OK and finding.name in found_wrong:
                    continue
                if finding.level is not Level.OK:
                    found_wrong.add(finding.name)
                yield finding

    async def probe(self, name: str) -> list[Finding]:
        """One check by its name, or one capability, probed anew by the running server; what is both, in both ways."""
        check = self.checks.get(name)
        found = [] if check is None else await _made(name, check)
        if check is None or (found and name in CONSEQUENCES and self._place.is_owned()):
            found += await _made(name, lambda: self._probe_capability(name))
        return found

    # --- what is configured ---

    async def _settings(self) -> list[Finding]:
        settings = self.settings
        keep_out_of_logs(settings.secrets())
        shown = {name: _masked(getattr(settings, name)) for name in sorted(settings.model_fields_set)}
        detail = ", ".join(f"RISE_{name.upper()}={value}" for name, value in shown.items())
        remedy = "correct the name (docs/settings.md), or unset it"
        unknown = [_warn("settings", told, remedy) for told in unknown_names()]
        return [_ok("settings", detail or "all as by default"), *unknown]

    async def _app(self) -> list[Finding]:
        if self.settings.app is None:
            staged = sorted(name for name, one in (await self._published()).items() if one.kind == STAGES)
            if staged:
                return [_ok("app", f"RISE_APP is not set; made of stages: {', '.join(staged)}")]
            return [
                _warn(
                    "app",
                    "RISE_APP is not set: what comes in is kept and waits (workflow_pending)",
                    "set RISE_APP to the file or module with your workflows, or publish one made of stages",
                )
            ]
        try:
            workflows = self._workflows()
        except RiseError as error:
            remedy = "mend that; the worker is started again by itself until it loads, and what comes in is kept"
            return [_fail("app", redact(error.public_message), error.remedy or remedy)]
        return [_ok("app", f"{self.settings.app}: {', '.join(sorted(workflows))}")]

    def _workflows(self) -> dict[str, WorkflowDefinition]:
        from rise.workflows.definition import load_workflows

        with contextlib.redirect_stdout(sys.stderr):  # what a bot prints when imported is not ours to say
            return load_workflows(self.settings.app)

    async def _bindings(self) -> list[Finding]:
        """Each channel with what serves it, or will from the next start on."""
        known = await self._bound()
        try:
            workflows = self._workflows()
        except RiseError:
            workflows = {}  # said by the check of the app
        # A start binds the settings' own accounts to what asks for their channels, and no other bot.
        asked = {
            (channel, account): workflow_id
            for workflow_id, one in workflows.items()
            for channel, account in self._own_accounts()
            if channel in one.channels
        }
        published = await self._published()
        serving = [
            _binding(channel, account, known, workflows, published, asked.get((channel, account)))
            for channel, account in self._accounts(known)
        ]
        failing = await self._failing(sorted({one.channel for one in known}))
        without_temporal = [one for one in known if one.enabled and one.engine == TEMPORAL]
        return [
            *(failing.get(one.name, one) if one.level is Level.OK else one for one in serving),
            *(_without_temporal(one) for one in without_temporal if self.settings.temporal_address is None),
        ]

    async def _failing(self, channels: Iterable[str]) -> dict[str, Finding]:
        """Those whose messages do not come through, as the running server has seen: nobody else can."""
        failing: dict[str, Finding] = {}
        if not self._place.is_owned() or is_digest(self._admin_token()):
            return failing
        for channel in channels:
            status, body = await self._ask_server("GET", f"/api/channels/{channel}/health", as_admin=True)
            if status is None:
                break  # said by the check of the capabilities
            for health in read_healths(body) if status == 200 else ():
                if health.source in SEEN_BY_SERVERS and health.status in _LEVELS_OF_HEALTH:
                    name = f"{health.channel}:{health.account}"
                    failing[name] = _said_by_server(_unwell(name, health))
        return failing

    def _accounts(self, known: Iterable[BindingRecord]) -> list[tuple[str, str]]:
        """With the bots that have a token of their own."""
        accounts = self._own_accounts()
        if self.settings.effective_telegram_mode != "off":
            accounts += [(one.channel, one.account) for one in known if one.own.bot_token is not None]
        return list(dict.fromkeys(accounts))

    def _own_accounts(self) -> list[tuple[str, str]]:
        accounts = [("http", DEFAULT_ACCOUNT), ("webchat", DEFAULT_ACCOUNT)]
        if self._bot_token is not None:
            accounts.append(("telegram", self._bot_token.partition(":")[0]))
        return accounts

    async def _bound(self) -> list[BindingRecord]:
        async with self.stores() as stores:
            if stores is None:
                return []
            latest = await stores.definitions.latest([Kind.BINDINGS])
            return [binding for definition in latest.definitions for binding in bindings_of(definition)]

    async def _published(self) -> dict[str, WorkflowRecord]:
        async with self.stores() as stores:
            if stores is None:
                return {}
            latest = await stores.definitions.latest([Kind.PUBLISHED])
            return {definition.name: workflow_of(definition) for definition in latest.definitions}

    async def _open_work(self) -> list[Finding]:
        """Messages of a bot that is not configured, which nobody takes up and none of which fails; and those that wait
        for a person."""
        waiting: Counter[tuple[str, str]] = Counter()
        suspended: Counter[Reason] = Counter()
        try:
            async with self.stores() as stores:
                if stores is not None:
                    waiting, suspended = await _count_open(stores.queue)
        except Unavailable as error:  # what helps is said of the store itself
            return [
                _fail("open work", redact(error.public_message), error.remedy or "it is looked at when that answers")
            ]
        try:
            accounts = self._accounts(await self._bound())
        except Unavailable:  # said by the check of the bindings
            return _for_a_person(suspended)
        return [
            _warn(
                f"{channel}:{account}",
                f"{count} open, and this account of {channel} is not configured here: {CONSEQUENCES['channels']}",
                self._remedy_unconfigured(channel, account),
            )
            for (channel, account), count in sorted(waiting.items())
            if (channel, account) not in accounts
        ] + _for_a_person(suspended)

    async def _clock(self) -> list[Finding]:
        """Whether the store's clock says what the host's does."""
        async with self.stores() as stores:
            if stores is None:
                return []
            try:
                await stores.queue.list_open(Selection(), limit=1)  # a server's time is known once it has answered
                apart = clocks_apart(stores.queue.now_ms(), self.clock.now())
            except Unavailable:
                return []  # said by the check of what is open
        if apart is None:
            return [_ok("clock", "the store's and this host's agree")]
        return [_warn("clock", f"{apart}: {CLOCKS_CONSEQUENCE}", CLOCKS_REMEDY)]

    async def _open_files(self) -> list[Finding]:
        """As many as a `rise serve` that is started like this command."""
        allowed = open_files_allowed()
        if allowed >= ENOUGH:
            return [_ok("open files", "enough may be open at once")]
        return [
            _warn(
                "open files",
                f"{allowed} files and connections may be open at once: the web chat has {allowed // 4} pages of them",
                f"allow {ENOUGH} or more (ulimit -Hn; LimitNOFILE= of a service), and start `rise serve` again",
            )
        ]

    def _remedy_unconfigured(self, channel: str, account: str) -> str:
        drop = f"or end them: `rise tasks --channel {channel}` lists, `rise tasks drop` ends"
        if channel != "telegram":
            return f"run the Rise that has the channel {channel}, {drop}"
        token = self.settings.telegram_token
        if token is not None and token.get_secret_value().partition(":")[0] == account:
            return f"RISE_TELEGRAM_MODE is off: set it to webhook or polling, {drop}"
        return f"set RISE_TELEGRAM_TOKEN to the token of bot {account} again until they are answered, {drop}"

    @contextlib.asynccontextmanager
    async def stores(self) -> AsyncIterator[Stores | None]:
        """To look into; none where opening them would make or migrate something, which is for a start to do."""
        is_there = self._place.database.exists() and not self._half_restored() and not self._lost()
        if not is_there or await self._schema_problem() is not None:
            yield None
            return
        stores = build_stores(self.settings, self.clock)
        await stores.database.open()
        try:
            yield stores
        finally:
            await stores.database.close()
            if stores.mongo is not None:
                await stores.mongo.close()

    # --- what is there ---

    @property
    def _place(self) -> DataDirectory:
        return DataDirectory(self.settings.data_dir)

    async def _directory(self) -> list[Finding]:
        path = self._place.path
        if not path.exists():
            return [_warn("directory", f"{path} is not there yet", f"`rise serve` makes it; {self._place.elsewhere()}")]
        if not path.is_dir():
            return [_fail("directory", f"{path} is not a directory", "set RISE_DATA_DIR to one")]
        findings = [
            _warn(
                "directory",
                f"{open_to_others} can be read by others",
                f"chmod {'700' if open_to_others == path else '600'} {open_to_others}",
            )
            for open_to_others in (path, self._place.database, *(path / name for name in SECRETS))
            if _is_open_to_others(open_to_others, within=path)
        ]
        findings += self._half_restored()
        findings += [_fail("directory", problem, "nothing starts until then") for problem in self._weak_secrets()]
        return [*(findings or [_ok("directory", f"{path}, private")]), self._space("space", path)]

    def _half_restored(self) -> list[Finding]:
        try:
            self._place.refuse_half_restored()
        except RestoreUnfinished as error:
            return [_fail("directory", error.public_message, "`rise restore` the same backup again, or another")]
        return []

    def _lost(self) -> list[Finding]:
        try:
            self._place.refuse_lost()
        except StoreUnavailable as error:
            return [_fail("database", error.public_message, error.remedy or REMEDIES["ledger"])]
        return []

    def _weak_secrets(self) -> Iterator[str]:
        """Those of the directory that are in use and that a start would refuse."""
        configured = (self.settings.admin_token, self.settings.secret_key)
        for name, setting in zip(SECRETS, configured, strict=True):
            if setting is None and (self._place.path / name).exists():
                try:
                    self._place.kept_secret(name)
                except StoreCorrupt as error:
                    yield error.public_message

    async def _disk(self) -> list[Finding]:
        path = self._place.path
        return [await _written("disk", path)] if path.is_dir() else []

    async def _journal(self) -> list[Finding]:
        """Where it is kept, if that is a place of its own."""
        path = self.settings.journal_dir
        if path is None or path == self._place.path:
            return []
        if not path.is_dir():
            return [
                _fail("journal", f"{path} is not there: no copy is kept in it", f"mkdir -m 700 {path}, or mount it")
            ]
        findings = [await _written("journal", path), self._space("journal space", path, is_of_door=False)]
        if _is_open_to_others(path, within=path):
            findings.append(_warn("journal", f"{path} can be read by others", f"chmod 700 {path}"))
        return findings

    def _space(self, name: str, path: Path, *, is_of_door: bool = True) -> Finding:
        """As the running server judges it. `is_of_door`: with too little of this, it accepts nothing."""
        files = os.statvfs(path)
        if files.f_files and not files.f_favail:
            return _fail(name, "no more files can be made (inodes)", "remove files from this disk")
        free, size = space_of(path) or (0, 0)
        detail = f"{free / GIGABYTE:.1f} GB free" if free >= GIGABYTE else f"{free / MEGABYTE:.0f} MB free"
        if is_of_door and free < refuses_below(self.settings.disk_free_min_mb * MEGABYTE, size_bytes=size):
            return _fail(name, f"{detail}: new messages are answered 503", "make room (RISE_DISK_FREE_MIN_MB)")
        if free < warns_below(self.settings.disk_free_warn_mb * MEGABYTE, size_bytes=size, has_warned=False):
            return _warn(name, detail, "make room before messages have to be refused (RISE_DISK_FREE_WARN_MB)")
        return _ok(name, detail)

    async def _database(self) -> list[Finding]:
        path = self._place.database
        if unfinished := self._half_restored():
            return unfinished
        served = await self._as_served("disk" if self.settings.redis_url is None else "ledger")
        if served is not None and served.level is not Level.OK:
            return [msgspec.structs.replace(served, name="database")]
        if lost := self._lost():
            return lost
        if not path.exists():
            return [_ok("database", "not there yet; made at the first start")]
        async with opened_to_read(path, self.clock) as database:
            await database.read(partial(self._place.marker.refuse_another, path))
            verdict = await database.read(_quick_check)
        if verdict != "ok":
            return [
                _fail(
                    "database",
                    f"the database is damaged: {verdict}",
                    "stop Rise, keep the file, and `rise restore` a backup",
                )
            ]
        detail = f"sound, {_size_bytes(path) / (1 << 20):.1f} MB"
        detail += f"; the running server says {served.detail}" if served else ""
        versions = ", ".join(f"{part} {version}" for part, version in sorted((await self._versions_there()).items()))
        schema = await self._schema_problem() or _ok("schema", versions)
        return [_ok("database", detail), schema]

    # --- servers ---

    async def _redis(self) -> list[Finding]:
        full = build_stores(self.settings, self.clock).full
        if full is None:
            return []
        try:
            return [await _asked("redis", lambda: probes.ask_redis(full.redis))]
        finally:
            await full.redis.close()

    async def _rabbitmq(self) -> list[Finding]:
        """Whether its queues have the parameters that the promises need: quorum queues that refuse what is too much."""
        if self.settings.rabbitmq_url is None:
            return []
        missing: list[str] = []

        async def ask() -> probes.Answer:
            missing.extend(await mirror_lacks(self.settings, self.clock) or ())
            return CapabilityStatus.AVAILABLE, "answers; its queues are quorum queues, as Rise declares them"

        found = await _asked("rabbitmq", ask)
        if not missing:
            return [found]
        return [_warn("rabbitmq", f"answers; not there yet: {', '.join(missing)}", "`rise serve` makes them")]

    async def _mongo(self) -> list[Finding]:
        """The ledger, where it is on a server."""
        mongo = build_stores(self.settings, self.clock).mongo
        if mongo is None:
            return []
        try:
            return [await _asked("mongo", lambda: probes.ask_mongo(mongo))]
        finally:
            await mongo.close()

    async def _temporal(self) -> list[Finding]:
        temporal = build_temporal(self.settings, self.clock)
        if temporal is None:
            return []
        try:
            return [await _asked("temporal", lambda: probes.ask_temporal(temporal))]
        finally:
            temporal.close()

    async def _llm(self) -> list[Finding]:
        if self.settings.llm_base_url is None:
            return []
        model = model_of(self.settings)
        try:
            return [await _asked("llm", lambda: probes.ask_model(model))]
        finally:
            await model.close()

    # --- what is kept there ---

    async def _secrets(self) -> list[Finding]:
        """Whether what is sealed can be opened: here, and on all hosts that have it."""
        unshared = unshared_key(self.settings)
        findings = [] if unshared is None else [_fail("secrets", unshared, UNSHARED_KEY_REMEDY)]
        sealed, seal = await self._sealed(), self._seal()
        if seal is None or not sealed:
            return findings
        lost = [name for name, one in sealed.items() if seal.open(one) is None]
        if lost:
            named = f"{', '.join(lost)}: sealed with another key than this host has"
            findings.append(_fail("secrets", named, f"{UNSHARED_KEY_REMEDY}; or set them again"))
        return findings or [_ok("secrets", f"{len(sealed)} sealed, all of them open here")]

    async def _sealed(self) -> dict[str, str]:
        """What is kept sealed, by what it is called."""
        async with self.stores() as stores:
            if stores is None:
                return {}
            try:
                latest = await stores.definitions.latest([Kind.BINDINGS, Kind.SECRET])
            except Unavailable:
                return {}  # said by the check of its store
        bound = [binding for one in latest.definitions if one.kind is Kind.BINDINGS for binding in bindings_of(one)]
        tokens = {f"the token of {one.channel}:{one.account}": one.own.bot_token for one in bound}
        secrets = {
            f"secrets.{one.name}": secret_of(one).sealed for one in latest.definitions if one.kind is Kind.SECRET
        }
        return {name: sealed for name, sealed in (tokens | secrets).items() if sealed is not None}

    def _seal(self) -> Seal | None:
        """None: there is no key yet, so nothing can be sealed with it."""
        kept, former = self._place.path / "secret-key", self.settings.secret_key_former
        if self.settings.secret_key is not None:
            key = self.settings.secret_key.get_secret_value()
        elif kept.exists():
            key = kept.read_text().strip()
        else:
            return None
        return Seal(key, () if former is None else (former.get_secret_value(),))

    async def _schema_problem(self) -> Finding | None:
        there = await self._versions_there()
        for part, version in (await self._versions_of_this_rise()).items():
            found = there.get(part, 0)
            if found > version:
                return _fail(
                    "schema",
                    f"written by a newer Rise ({part} has version {found}, this one knows {version})",
                    "install that version; nothing was changed",
                )
            if found < version:
                return _warn(
                    "schema",
                    f"{part} has version {found}, this Rise has {version}: migrated at the next start",
                    "`rise backup` first",
                )
        return None

    async def _versions_there(self) -> dict[str, int]:
        async with opened_to_read(self._place.database, self.clock) as database:
            return await database.read(_schema_versions)

    async def _versions_of_this_rise(self) -> dict[str, int]:
        """As it would make a new directory."""
        with tempfile.TemporaryDirectory(prefix="rise-doctor-") as path:
            elsewhere = self.settings.model_copy(
                update={"data_dir": Path(path), "redis_url": None, "mongodb_url": None}
            )
            stores = build_stores(elsewhere, self.clock)
            await stores.open()
            try:
                return await stores.database.read(_schema_versions)
            finally:
                await stores.close()

    # --- what runs ---

    async def _serve(self) -> list[Finding]:
        roles = [_named(self._place, member) for member in self._place.members()]
        others = f"; running: {', '.join(roles)}" if roles else ""
        if self._place.is_owned():
            return [_ok("serve", f"`rise serve` runs{others}")]
        return [_warn("serve", f"no `rise serve` runs: nothing is accepted{others}", "start `rise serve`")]

    async def _capabilities(self) -> list[Finding]:
        """As the running server sees them."""
        if not self._place.is_owned():
            return []
        status, body = await self._ask_server("GET", "/healthz")
        if status is None:
            return [self._unanswered("capabilities", Level.WARN, body)]
        states = sorted(dict(body.get("capabilities") or {}).items())
        return [_said_by_server(_capability(name, state)) for name, state in states]

    async def _as_served(self, capability: str) -> Finding | None:
        """The running server's own word; None if none runs, or it cannot be asked."""
        return next((finding for finding in await self._capabilities() if finding.name == capability), None)

    async def _probe_capability(self, name: str) -> list[Finding]:
        known = ", ".join(self.checks)
        if not self._place.is_owned():
            return [_fail(name, "no `rise serve` runs that could probe it", f"start it, or probe one of {known}")]
        if is_digest(self._admin_token()):
            return [
                _fail(name, "RISE_ADMIN_TOKEN is a digest, which lets nobody in", "set it to the token itself, here")
            ]
        status, body = await self._ask_server(
            "POST", f"/internal/capabilities/{quote(name, safe='')}/probe", as_admin=True
        )
        if status == 200 and isinstance(body.get("data"), dict):
            return [_capability(name, body["data"])]
        if status == 404:
            return [_fail(name, "no such check or capability", f"checks are {known}; capabilities: /healthz")]
        return [self._unanswered(name, Level.FAIL, body if status is None else _NoAnswer(f"it answered {status}"))]

    def _unanswered(self, name: str, level: Level, no_answer: _NoAnswer) -> Finding:
        if no_answer.is_silence:
            return self._silent(name)
        remedy = "set RISE_HOST, RISE_PORT and RISE_ADMIN_TOKEN here as they are for `rise serve`"
        return Finding(name, level, f"the server could not be asked at {self._server_url}: {no_answer.why}", remedy)

    def _silent(self, name: str) -> Finding:
        """It took the connection and says nothing: whoever sends it a message waits as we did."""
        seen = [pid for member in self._place.members() if (pid := _seen_process(self._place, member))]
        servers = [pid for pid in seen if _role(pid) in _SERVERS]
        detail = f"a server holds {self._place.path} and does not answer at {self._server_url}: nothing is accepted"
        if stopped := [pid for pid in servers if _is_stopped(pid)]:
            return _fail(name, f"{detail}; process {stopped[0]} is stopped (SIGSTOP)", f"kill -CONT {stopped[0]}")
        pid = servers[0] if servers else "PID"
        return _fail(
            name,
            detail,
            "look again in a minute, it may be overloaded, and see its log; if it hangs, end it "
            f"(`kill {pid}`, else `kill -9 {pid}`) and start `rise serve`: what was accepted is kept",
        )

    @property
    def _server_url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.settings.host, self.settings.host)  # noqa: S104
        return f"http://{host}:{self.settings.port}"

    async def _ask_server(self, method: str, path: str, *, as_admin: bool = False) -> tuple[int | None, Any]:
        """Status and body; without a status, why there is none (`_NoAnswer`)."""
        import httpx

        if self.settings.port == 0:
            return None, _NoAnswer("RISE_PORT is 0, the server took a free one")
        headers = {"Authorization": f"Bearer {self._admin_token()}"} if as_admin else {}
        try:
            async with httpx.AsyncClient(
                base_url=self._server_url, timeout=ANSWER_SECONDS_MAX, trust_env=False
            ) as client:
                response = await client.request(method, path, headers=headers)
                return response.status_code, msgspec.json.decode(response.content or b"{}")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return None, _NoAnswer(why_unreached(error), is_silence=isinstance(error, httpx.TimeoutException))
        except msgspec.DecodeError:
            return None, _NoAnswer("something else than Rise answered")

    def _admin_token(self) -> str:
        if self.settings.admin_token is not None:
            return self.settings.admin_token.get_secret_value()
        kept = self._place.path / "admin-token"
        return kept.read_text().strip() if kept.exists() else ""

    # --- Telegram ---

    @property
    def _bot_token(self) -> str | None:
        token = self.settings.telegram_token
        return (
            token.get_secret_value() if token is not None and self.settings.effective_telegram_mode != "off" else None
        )

    async def _telegram(self) -> list[Finding]:
        from rise.channels.telegram import TelegramChannel

        if self._bot_token is None:
            is_off = self.settings.effective_telegram_mode == "off"
            return [_ok("telegram", "switched off" if is_off else "no bot of RISE_TELEGRAM_TOKEN")]
        keep_out_of_logs([self._bot_token])
        channel = TelegramChannel([self._bot_token], clock=self.clock, api_base=self.settings.telegram_api_base)
        [account] = channel.accounts
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                bot = await channel.get_me(account)
                name = f"bot {account} (@{bot.get('username', '?')}) answers"
                return [_ok("telegram", name), await self._webhook(channel, account)]
        except (RiseError, TimeoutError) as error:
            why = error.public_message if isinstance(error, RiseError) else "no answer in time"
            return [
                _fail(
                    "telegram",
                    f"bot {account}: {redact(why)}",
                    "check RISE_TELEGRAM_TOKEN and the way to RISE_TELEGRAM_API_BASE; replies wait meanwhile",
                )
            ]
        finally:
            await channel.close()

    async def _webhook(self, channel: TelegramChannel, account: str) -> Finding:
        """Whether Telegram delivers in the way that is configured."""
        state = await channel.webhook_info(account)
        waiting = f"updates waiting at Telegram: {state.pending_update_count}"
        if self.settings.telegram_is_polling:
            if state.url:
                return _fail(
                    "telegram_polling",
                    f"a webhook is set ({_without_userinfo(state.url)}): polling is answered 409",
                    "remove the webhook, or set RISE_PUBLIC_URL and receive by webhook",
                )
            return _ok("telegram_polling", waiting)
        wanted = f"{(self.settings.public_url or '').rstrip('/')}/telegram/webhook/{account}"
        if state.url != wanted:
            return _warn(
                "telegram_webhook",
                f"Telegram delivers to {_without_userinfo(state.url) or 'nobody'}, not to {wanted}",
                "`rise serve` registers it when it starts; if another installation uses this bot, give it its own",
            )
        if state.last_error_message and state.pending_update_count:
            return _warn(
                "telegram_webhook",
                f"{waiting}; its last try failed: {state.last_error_message}",
                "see that RISE_PUBLIC_URL reaches this server",
            )
        level = Level.WARN if state.pending_update_count > UPDATES_WAITING_WARN else Level.OK
        remedy = "see that RISE_PUBLIC_URL reaches this server" if level is Level.WARN else ""
        return Finding("telegram_webhook", level, f"delivering to {wanted}; {waiting}", remedy)


def _ok(name: str, detail: str) -> Finding:
    return Finding(name, Level.OK, detail)


def _warn(name: str, detail: str, remedy: str) -> Finding:
    return Finding(name, Level.WARN, detail, remedy)


def _fail(name: str, detail: str, remedy: str) -> Finding:
    return Finding(name, Level.FAIL, detail, remedy)


async def _asked(name: str, ask: Callable[[], Awaitable[probes.Answer]]) -> Finding:
    """What a server is found to be, in the words that log and `/healthz` have for it."""
    remedy = ""
    try:
        status, detail = await ask()
    except RiseError as error:
        status, detail, remedy = CapabilityStatus.UNAVAILABLE, error.public_message, error.remedy
    if status is CapabilityStatus.AVAILABLE:
        return _ok(name, redact(detail))
    meaning = meaning_of(name, remedy)
    found = redact(detail).rstrip(".")
    return Finding(name, _LEVELS[status], f"{found}: {meaning['consequence']}", meaning["remedy"])


async def _written(name: str, path: Path) -> Finding:
    try:
        await asyncio.to_thread(_write_and_sync, path)
    except OSError as error:
        remedy = f"make room, or give the user of Rise the right to write there. {UNTIL_THEN}"
        return _fail(name, f"{path} cannot be written: {error.strerror}", remedy)
    return _ok(name, "written and synced")


async def _made(name: str, check: Check) -> list[Finding]:
    try:
        return await check()
    except RiseError as error:
        return [_fail(name, redact(error.public_message), error.remedy or "the log of `rise serve` says more")]
    except Exception as error:  # noqa: BLE001 - border: a check that breaks is a finding, the others go on
        return [_fail(name, redact(f"the check broke: {type(error).__name__}: {error}"), "report it")]


def _said_by_server(finding: Finding) -> Finding:
    """What is wrong with it may be so no longer: it may have been found to be well in the same report."""
    if finding.level is Level.OK:
        return finding
    return msgspec.structs.replace(finding, detail=f"the running server says {finding.detail}")


def _capability(name: str, state: Mapping[str, Any]) -> Finding:
    try:
        level = _LEVELS[CapabilityStatus(state.get("status", ""))]
    except ValueError:
        level = Level.WARN
    detail = ": ".join(str(part) for part in (state.get("status"), state.get("detail")) if part)
    if level is Level.OK:
        return Finding(name, level, redact(detail))
    meaning = meaning_of(name, state.get("remedy", ""))
    if meaning:
        remedy = f"{meaning['remedy']}; it is probed again by itself, and until then {meaning['consequence']}"
    else:
        remedy = "it is probed again by itself; the log of `rise serve` says more"
    return Finding(name, level, redact(detail), remedy)


def _unwell(name: str, health: BindingHealth) -> Finding:
    meaning = health.meaning()
    detail = f"{health.workflow_id} is {health.status}: {redact(health.detail)}: {meaning['consequence']}"
    return Finding(name, _LEVELS_OF_HEALTH[health.status], detail, meaning["remedy"])


def _without_temporal(binding: BindingRecord) -> Finding:
    return _warn(
        f"{binding.channel}:{binding.account}",
        f"{binding.workflow_id} is bound with engine temporal, and RISE_TEMPORAL_ADDRESS is not set: its messages wait",
        f"set RISE_TEMPORAL_ADDRESS, or `rise bindings bind {binding.workflow_id} --engine native`",
    )


def _binding(
    channel: str,
    account: str,
    known: list[BindingRecord],
    workflows: Mapping[str, WorkflowDefinition],
    published: Mapping[str, WorkflowRecord],
    asked: str | None,
) -> Finding:
    """What serves the account; `asked`: the workflow of RISE_APP that wants the channel, if one does."""
    name = f"{channel}:{account}"
    of_account = [one for one in known if (one.channel, one.account) == (channel, account)]
    if not all(one.is_readable for one in of_account):
        return _warn(
            name,
            f"a binding of its was written by {NEWER}: what it meets is kept and waits (workflow_pending)",
            "install that version here, too",
        )
    bound = [one for one in of_account if one.enabled and one.is_default]
    if not bound and asked is not None:
        return _ok(name, f"{asked} asks for it; bound at the next start")
    if channel == "webchat" and not any(one.channel == channel for one in known):
        return _ok(name, "no workflow asks for it: answered 404")
    if not bound:
        return _warn(
            name,
            "no workflow: what comes in is kept and waits (workflow_pending)",
            f"bind one: `rise bindings bind WORKFLOW --channel {channel} --account {account}`",
        )
    if bound[0].kill_switch is not None:
        return _warn(
            name,
            f"the kill switch of {bound[0].workflow_id} is on: what comes in is kept",
            "turn it off with `rise bindings unkill`, then let what was kept go on with `rise suspended resume`",
        )
    workflow_id = bound[0].workflow_id
    known_as = published.get(workflow_id)
    if known_as is not None and not known_as.enabled:
        return _warn(
            name,
            f"bound to {workflow_id}, which is switched off: what comes in is kept and waits (workflow_pending)",
            f"`rise workflows enable {workflow_id}`, or bind another",
        )
    is_staged = known_as is not None and known_as.kind == STAGES
    if workflows and workflow_id not in workflows and not is_staged:
        return _warn(
            name,
            f"bound to {workflow_id}, which RISE_APP does not hold",
            "add the workflow to RISE_APP, or bind another",
        )
    return _ok(name, f"served by {workflow_id}")


async def _count_open(queue: Queue) -> tuple[Counter[tuple[str, str]], Counter[Reason]]:
    """How many tasks are open, by channel and account; how many are suspended, by reason."""
    by_account: Counter[tuple[str, str]] = Counter()
    suspended: Counter[Reason] = Counter()
    after = ""
    while page := await queue.list_open(Selection(), limit=PAGE, after=after):
        by_account.update((task.head.channel, task.head.account) for task in page)
        suspended.update(task.reason for task in page if task.reason is not None)
        after = page[-1].head.task_id
    return by_account, suspended


def _for_a_person(suspended: Counter[Reason]) -> list[Finding]:
    counts = {reason: count for reason, count in sorted(suspended.items()) if reason not in _ENDS_BY_ITSELF}
    if not counts:
        return []
    count = sum(counts.values())
    waits = f"{in_number(count)} {'waits' if count == 1 else 'wait'} for a person"
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    return [_warn("suspended", f"{waits}: {reasons}", SUSPENDED_REMEDY)]


def _masked(value: Any) -> str:
    if isinstance(value, SecretStr):
        return _place_of(value.get_secret_value())
    if isinstance(value, dict):
        # Of tokens, who they are for.
        return " ".join(
            f"{held}:***" if isinstance(held, str) else f"{name}={_masked(held)}" for name, held in value.items()
        )
    if isinstance(value, tuple):
        return ",".join(f"{item:g}" for item in value)
    return redact(_without_userinfo(str(value)))


def _place_of(secret: str) -> str:
    """Where the address of a server leads, for that is what is mostly wrong with one. Of other secrets nothing."""
    found = _SERVER.fullmatch(secret)  # one that a password with a slash or @ makes unclear is none
    return f"{found[1]}{'***@' if found[2] else ''}{found[3]}" if found else "***"


def _without_userinfo(url: str) -> str:
    return _USERINFO.sub("//***@", url)


def _is_open_to_others(path: Path, *, within: Path) -> bool:
    """Readable by somebody else; what is in a private directory is not, whatever its own mode."""
    if not path.exists() or (path != within and not stat.S_IMODE(within.stat().st_mode) & 0o077):
        return False
    return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)


def _size_bytes(database: Path) -> int:
    """With what is still in its log."""
    return sum(file.stat().st_size for file in (database, Path(f"{database}-wal")) if file.exists())


def _write_and_sync(path: Path) -> None:
    trial = path / f"doctor.{new_key()[:8]}"
    fd = os.open(trial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        os.write(fd, b"written by rise doctor\n")
        os.fsync(fd)
    finally:
        os.close(fd)
        trial.unlink()


def _schema_versions(connection: Any) -> dict[str, int]:
    return dict(connection.execute("SELECT part, version FROM schema_versions"))


def _quick_check(connection: Any) -> str:
    """The first thing that is wrong with it, or `ok`."""
    return str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])


def _named(place: DataDirectory, member: str) -> str:
    pid = _seen_process(place, member)
    return f"{_role(pid)} (process {pid})" if pid else "a process that is not seen from here (in another container)"


def _seen_process(place: DataDirectory, member: str) -> str | None:
    """Its number, if it is one of those that can be seen from here.

    Containers that share a directory each count their processes from one: under the same number is another here. The
    kernel shows of the locks on a file only those of processes that have a number here.
    """
    pid = member.partition("-")[0]
    try:
        inode = (place.bus / f"{member}.lock").stat().st_ino
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return None
    return pid if any(words[-4] == pid and words[-3].endswith(f":{inode}") for words in locks) else None


def _role(pid: str) -> str:
    """`rise serve`, `rise worker` …, as the process was started."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "a process"
    verbs = [word for word in words[1:] if word.isalpha() and word != "rise"]
    return f"rise {verbs[0]}" if verbs else "a process"


def _is_stopped(pid: str) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return status.rpartition(") ")[2].startswith(("T", "t"))
