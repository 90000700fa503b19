"""The doctor says what is wrong, in the words of the log and `/healthz`, and shows no secret."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import apsw
import pytest

from rise.admission import Admission
from rise.bus.local import LocalBus, _locked_file
from rise.capabilities import CONSEQUENCES, CapabilityRegistry, CapabilityStatus
from rise.channels.telegram import read_update
from rise.clock import SystemClock
from rise.definitions.port import Definition, Kind
from rise.definitions.records import BindingRecord, ChannelOwn
from rise.envelope import Reason, Status
from rise.queue.port import Selection
from rise.runtime import open_files
from rise.runtime.alerts import AlertMessage, Alerts
from rise.runtime.assembly.house import build
from rise.runtime.assembly.operations import build_stage_secrets
from rise.runtime.directory import DataDirectory
from rise.runtime.doctor import Doctor, Finding, Level
from rise.runtime.overload import MEGABYTE, Load, Overload, OverloadLimits
from rise.settings import load_settings
from rise.telemetry import _known_secrets
from rise.testing.clock import ManualClock
from rise.testing.installation import Installation, hold_port
from rise.testing.telegram import TelegramStandIn
from rise.tokens import digest_of

pytestmark = pytest.mark.req("OPS-1", "CAP-6")

TOKEN = "123456789:AAaaBBbbCCccDDddEEeeFFffGGggHHhhIIi"
BOT = """
import rise
print("a bot that prints when it is imported")

@rise.workflow("greeter", channels=["http", "webchat"])
async def greeter(turn): ...
"""


@pytest.fixture(autouse=True)
def no_secrets_left_behind() -> Iterator[None]:
    before = set(_known_secrets)
    yield
    _known_secrets.clear()
    _known_secrets.update(before)


@pytest.fixture
async def data_dir(tmp_path: Path) -> Path:
    """A directory that has been used once."""
    house = build(load_settings(data_dir=tmp_path / "data", _env_file=None))
    await house.stores.open()
    await house.stores.close()
    return tmp_path / "data"


def doctor(data_dir: Path, **settings: object) -> Doctor:
    return Doctor(load_settings(data_dir=data_dir, _env_file=None, **settings), SystemClock())


async def examined(doctor: Doctor) -> dict[str, Finding]:
    return {finding.name: finding async for finding in doctor.examine()}


def levels(findings: dict[str, Finding], level: Level) -> set[str]:
    return {name for name, finding in findings.items() if finding.level is level}


async def test_a_directory_that_is_not_there_yet_is_no_failure_and_is_not_made(tmp_path: Path):
    findings = await examined(doctor(tmp_path / "data"))
    assert not levels(findings, Level.FAIL)
    assert findings["directory"].level is Level.WARN
    assert not (tmp_path / "data").exists()


async def test_a_used_directory_is_well_and_every_other_line_names_its_remedy(data_dir: Path):
    before = sorted(data_dir.iterdir())
    findings = await examined(doctor(data_dir))
    assert levels(findings, Level.OK) >= {"settings", "directory", "space", "disk", "database", "schema", "telegram"}
    assert levels(findings, Level.WARN) == {"serve", "app", "http:default"}
    assert findings["webchat:default"].detail == "no workflow asks for it: answered 404"
    assert all(finding.remedy for finding in findings.values() if finding.level is not Level.OK)
    assert findings["disk"].detail == "written and synced"
    assert [path for path in sorted(data_dir.iterdir()) if path.name != "bus"] == before


@pytest.mark.req("SEC-4")
async def test_a_process_takes_what_it_may_have_open_and_doctor_warns_where_that_is_little(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 1024), most))
    try:
        open_files.allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most)
        assert open_files.open_files_max() == open_files.open_files_allowed() >= open_files.ENOUGH
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
    [finding] = await doctor(data_dir).probe("open files")
    assert finding.level is Level.OK
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 2048))
    [finding] = await doctor(data_dir).probe("open files")
    assert (finding.level, finding.detail.partition(" ")[0]) == (Level.WARN, "2048")


async def test_secrets_are_masked(data_dir: Path):
    examination = doctor(
        data_dir,
        telegram_token=TOKEN,
        telegram_mode="off",
        admin_token="an-admin-token-nobody-may-see",
        tokens="ann:viewer:the-token-of-ann-is-long",
        telegram_api_base="http://user:password@127.0.0.1:1",
        retry_seconds_for="telegram=5,30 http=1",
        retry_max_for="http=0",
        workflow_missing_message=f"do not say {TOKEN}",
    )
    [finding] = await examination.probe("settings")
    assert "RISE_TELEGRAM_TOKEN=***" in finding.detail
    assert "RISE_RETRY_SECONDS_FOR=telegram=5,30 http=1" in finding.detail
    assert "RISE_RETRY_MAX_FOR=http=0" in finding.detail
    assert "ann:viewer:***" in finding.detail
    for secret in (TOKEN, "an-admin-token", "the-token-of-ann", "password"):
        assert secret not in finding.detail


@pytest.mark.failure("M1")
@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:1/0?password=hunter22", "redis://127.0.0.1:1"),
        ("redis://ann:hunter22@redis.example:6379/1", "redis://***@redis.example:6379"),
        ("redis://:hunter22/b@redis.example", "***"),
        ("redis://redis.example?password=b@hunter22", "***"),
        ("unix://hunter22", "***"),
    ],
)
async def test_of_the_address_of_a_server_is_shown_where_it_leads_and_no_password(data_dir: Path, url: str, shown: str):
    [finding] = await doctor(data_dir, redis_url=url).probe("settings")
    assert f"RISE_REDIS_URL={shown}" in f"{finding.detail}, ".split(", ")
    assert "hunter22" not in finding.detail


@pytest.mark.failure("M1")
async def test_a_name_that_is_no_setting_is_a_warning_without_its_value(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RISE_RETRY_MX", "what nobody may see")
    well, warned = await doctor(data_dir).probe("settings")
    assert (warned.level, well.level) == (Level.WARN, Level.OK)
    assert "RISE_RETRY_MAX meant?" in warned.detail
    assert "nobody" not in warned.detail + well.detail


async def test_a_directory_that_others_can_read_is_a_warning_with_its_remedy(data_dir: Path):
    data_dir.chmod(0o755)
    (data_dir / "secret-key").chmod(0o644)
    found = [finding for finding in await doctor(data_dir).probe("directory") if finding.level is Level.WARN]
    assert {finding.remedy for finding in found} >= {f"chmod 700 {data_dir}", f"chmod 600 {data_dir / 'secret-key'}"}


@pytest.mark.req("SEC-4")
async def test_a_secret_that_could_be_guessed_is_a_failure_and_not_shown(data_dir: Path):
    (data_dir / "secret-key").write_text("guess-me")
    found = [finding for finding in await doctor(data_dir).probe("directory") if finding.level is Level.FAIL]
    assert ["secret-key holds 8 characters" in finding.detail for finding in found] == [True]
    assert "guess-me" not in found[0].detail
    configured = await doctor(data_dir, secret_key="k" * 32).probe("directory")
    assert not [finding for finding in configured if finding.level is Level.FAIL]


SERVERS: dict[str, object] = {"redis_url": "redis://127.0.0.1:1", "mongodb_url": "mongodb://127.0.0.1:1/rise"}


@pytest.mark.req("SEC-2", "EMB-3")
async def test_on_mongodb_a_key_that_is_this_hosts_alone_is_a_failure(data_dir: Path):
    [finding] = await doctor(data_dir, **SERVERS).probe("secrets")
    assert (finding.level, "no other can open" in finding.detail) == (Level.FAIL, True)
    assert "set RISE_SECRET_KEY to the same on all hosts" in finding.remedy
    assert (data_dir / "secret-key").read_text().strip() not in finding.detail + finding.remedy
    assert await doctor(data_dir, secret_key="k" * 32, **SERVERS).probe("secrets") == []
    assert await doctor(data_dir).probe("secrets") == []


@pytest.mark.req("SEC-2")
async def test_what_was_sealed_with_another_key_is_a_failure_that_names_it(data_dir: Path):
    house = build(load_settings(data_dir=data_dir, _env_file=None))
    await house.stores.open()
    await build_stage_secrets(house).set("SHOP", "key-of-the-shop", by="ann")
    own = ChannelOwn(bot_token=house.seal.close(TOKEN))
    await house.editor.bind(BindingRecord(channel="telegram", account="8", workflow_id="a", own=own), by="ann")
    await house.stores.close()
    [well] = await doctor(data_dir).probe("secrets")
    assert (well.level, well.detail) == (Level.OK, "2 sealed, all of them open here")
    [lost] = await doctor(data_dir, secret_key="k" * 32).probe("secrets")
    assert lost.level is Level.FAIL
    assert "the token of telegram:8, secrets.SHOP" in lost.detail
    key = (data_dir / "secret-key").read_text().strip()
    assert [one.level for one in await doctor(data_dir, secret_key=key).probe("secrets")] == [Level.OK]


@pytest.mark.req("BND-4")
@pytest.mark.failure("D12")
async def test_a_binding_that_a_newer_version_wrote_is_a_warning(data_dir: Path):
    house = build(load_settings(data_dir=data_dir, _env_file=None))
    await house.stores.open()
    body = b'[{"workflow_id":"a","kill_switch":{"of":"tomorrow"}}]'
    newer = Definition(kind=Kind.BINDINGS, name="http:default", version=1, body=body, at_ms=0, by="ann")
    await house.stores.definitions.put(newer)
    await house.stores.close()
    [warned] = [one for one in await doctor(data_dir).probe("bindings") if one.name == "http:default"]
    assert (warned.level, "a newer version of Rise" in warned.detail) == (Level.WARN, True)
    assert "install that version" in warned.remedy


@pytest.mark.req("TMP-1", "TMP-4")
async def test_what_is_bound_to_a_temporal_that_is_not_configured_is_a_warning(data_dir: Path):
    house = build(load_settings(data_dir=data_dir, _env_file=None))
    await house.stores.open()
    bound = BindingRecord(channel="http", account="default", workflow_id="wf_a", engine="temporal")
    await house.editor.bind(bound, by="ann")
    await house.stores.close()
    findings = [one for one in await doctor(data_dir).probe("bindings") if "temporal" in one.detail]
    assert [(one.name, one.level) for one in findings] == [("http:default", Level.WARN)]
    assert "RISE_TEMPORAL_ADDRESS" in findings[0].remedy
    known = await doctor(data_dir, temporal_address="127.0.0.1:7233").probe("bindings")
    assert not [one for one in known if "temporal" in one.detail]


async def test_a_damaged_database_is_a_failure(data_dir: Path):
    content = bytearray((data_dir / "rise.db").read_bytes())
    for at in range(8192, len(content), 4096):
        content[at : at + 16] = b"\xff" * 16
    (data_dir / "rise.db").write_bytes(content)
    [finding] = await doctor(data_dir).probe("database")
    assert finding.level is Level.FAIL
    assert "damaged" in finding.detail


@pytest.mark.failure("C10")
@pytest.mark.parametrize("how", ["gone", "empty", "not the one"])
async def test_a_lost_database_is_a_failure_and_nothing_is_made_in_its_place(data_dir: Path, how: str):
    path = data_dir / "rise.db"
    path.write_bytes(b"") if how == "empty" else path.unlink()
    if how == "not the one":
        another = build(load_settings(data_dir=data_dir.parent / "another", _env_file=None))
        await another.stores.open()
        await another.stores.close()
        (data_dir.parent / "another" / "rise.db").rename(path)
    finding = (await examined(doctor(data_dir)))["database"]
    assert finding.level is Level.FAIL and how in finding.detail
    assert "rise restore --force" in finding.remedy
    assert path.exists() == (how != "gone") and (how != "empty" or not path.read_bytes())


@pytest.mark.req("SUP-2")
@pytest.mark.failure("C5")
@pytest.mark.parametrize(
    ("settings", "size_mb", "free_mb", "level"),
    [
        ({}, 10**6, 600, Level.OK),
        ({}, 10**6, 500, Level.WARN),
        ({}, 10**6, 80, Level.WARN),
        ({}, 10**6, 60, Level.FAIL),
        ({"disk_free_warn_mb": 2000, "disk_free_min_mb": 1000}, 10**6, 990, Level.FAIL),
        ({"disk_free_warn_mb": 40, "disk_free_min_mb": 20}, 10**6, 50, Level.OK),
        ({}, 1000, 99, Level.WARN),
        ({}, 1000, 101, Level.OK),
        ({}, 1000, 49, Level.FAIL),
        ({"disk_free_warn_mb": 0, "disk_free_min_mb": 0}, 10**6, 1, Level.OK),
    ],
)
async def test_how_little_room_is_too_little_is_as_it_is_for_the_server(
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, int],
    size_mb: int,
    free_mb: int,
    level: Level,
):
    def space_of(path: Path) -> tuple[int, int]:
        return free_mb * MEGABYTE, size_mb * MEGABYTE

    monkeypatch.setattr("rise.runtime.doctor.space_of", space_of)
    finding = (await examined(doctor(data_dir, **settings)))["space"]
    assert (finding.level, finding.detail.partition(":")[0]) == (level, f"{free_mb} MB free")
    assert judged_by_the_server(free_mb, size_mb, **settings) == level


def judged_by_the_server(free_mb: int, size_mb: int, **settings: int) -> Level:
    """What a server that has just been started says of it."""
    clock, told = ManualClock(), list[AlertMessage]()
    known = load_settings(_env_file=None, **settings)
    limits = OverloadLimits(
        disk_free_warn_bytes=known.disk_free_warn_mb * MEGABYTE, disk_free_min_bytes=known.disk_free_min_mb * MEGABYTE
    )
    capabilities = CapabilityRegistry(clock)
    overload = Overload(limits, admission=Admission(), capabilities=capabilities, alerts=Alerts(clock, told.append))
    overload.judge(Load(0, 0, disk_free_bytes=free_mb * MEGABYTE, disk_size_bytes=size_mb * MEGABYTE))
    if capabilities.all()["admission"].status is CapabilityStatus.UNAVAILABLE:
        return Level.FAIL
    return Level.WARN if [one for one in told if one.alert == "disk_space"] else Level.OK


async def test_something_else_in_place_of_the_database_is_a_failure_and_the_rest_is_still_said(data_dir: Path):
    (data_dir / "rise.db").write_text("not a database, whatever its name says\n" * 500)
    findings = await examined(doctor(data_dir))
    assert "database" in levels(findings, Level.FAIL)
    assert "telegram" in findings


@pytest.mark.failure("M3")
@pytest.mark.parametrize(("version", "level"), [(99, Level.FAIL), (0, Level.WARN)], ids=["newer", "older"])
async def test_another_versions_database_is_named_and_not_migrated(data_dir: Path, version: int, level: Level):
    connection = apsw.Connection(str(data_dir / "rise.db"))
    connection.execute("UPDATE schema_versions SET version = ? WHERE part = 'queue'", (version,))
    findings = await examined(doctor(data_dir))
    assert findings["schema"].level is level
    assert connection.execute("SELECT version FROM schema_versions WHERE part = 'queue'").fetchall() == [(version,)]
    connection.close()


# --- the bot's code ---------------------------------------------------------------------------------------


async def test_the_workflows_and_what_they_will_serve_are_named(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "bot.py").write_text(BOT)
    findings = await examined(doctor(data_dir, app=str(tmp_path / "bot.py")))
    assert findings["app"].detail.endswith("wf_greeter")
    assert findings["http:default"].detail == "wf_greeter asks for it; bound at the next start"
    assert capsys.readouterr().out == "", "what the bot prints would spoil JSON"


async def test_a_bot_that_does_not_load_is_a_failure(data_dir: Path, tmp_path: Path):
    (tmp_path / "broken_bot.py").write_text("import nothing_of_that_name")
    [finding] = await doctor(data_dir, app=str(tmp_path / "broken_bot.py")).probe("app")
    assert "mend that" in finding.remedy
    assert finding.level is Level.FAIL
    assert "nothing_of_that_name" in finding.detail


# --- the time ---------------------------------------------------------------------------------------------


async def test_clocks_that_disagree_are_a_warning_with_what_it_means_and_what_to_do(data_dir: Path):
    settings = load_settings(data_dir=data_dir, _env_file=None)
    clock = ManualClock(SystemClock().now())
    [agreeing] = await Doctor(settings, clock).probe("clock")
    assert agreeing.level is Level.OK
    clock.step_wall(-2 * 86_400)
    [apart] = await Doctor(settings, clock).probe("clock")
    assert apart.level is Level.WARN
    assert "48.0 h apart, the store's ahead: nothing is lost" in apart.detail
    assert "NTP" in apart.remedy


# --- open work --------------------------------------------------------------------------------------------


async def accept_for(data_dir: Path, account: str, *numbers: int) -> None:
    house = build(load_settings(data_dir=data_dir, _env_file=None))
    await house.stores.open()
    for number in numbers:
        body = json.dumps({"update_id": number, "message": {"message_id": number, "chat": {"id": 5}, "text": "Hi"}})
        await house.intake.accept(read_update(body.encode(), account=account, now=house.clock.now(), webhook=False))
    await house.stores.close()


async def test_open_work_of_a_bot_that_is_not_configured_is_a_warning_that_names_the_bot(data_dir: Path):
    await accept_for(data_dir, "7", 1, 2)
    [without] = await doctor(data_dir).probe("open work")
    assert (without.name, without.level) == ("telegram:7", Level.WARN)
    assert without.detail.startswith("2 open, and this account of telegram is not configured")
    assert CONSEQUENCES["channels"] in without.detail, "in the words of log and /healthz"
    assert "the token of bot 7 again" in without.remedy
    assert "`rise tasks drop`" in without.remedy
    [with_anothers] = await doctor(data_dir, telegram_token=TOKEN).probe("open work")
    assert with_anothers == without
    [switched_off] = await doctor(data_dir, telegram_token="7:ABC", telegram_mode="off").probe("open work")
    assert switched_off.remedy.startswith("RISE_TELEGRAM_MODE is off: set it to webhook or polling, or ")


async def test_open_work_of_what_is_configured_is_no_finding(data_dir: Path):
    await accept_for(data_dir, "7", 1)
    assert await doctor(data_dir, telegram_token="7:ABC").probe("open work") == []


@pytest.mark.req("TGM-1")
async def test_a_bot_whose_token_came_with_its_binding_is_served_and_its_open_work_no_finding(data_dir: Path):
    await accept_for(data_dir, "8", 1)
    house = build(load_settings(data_dir=data_dir, _env_file=None))
    await house.stores.open()
    own = ChannelOwn(bot_token=house.seal.close("8:ABC"))
    await house.editor.bind(BindingRecord(channel="telegram", account="8", workflow_id="a", own=own), by="ann")
    await house.stores.close()
    assert await doctor(data_dir).probe("open work") == []
    assert "telegram:8" in [finding.name for finding in await doctor(data_dir).probe("bindings")]
    [switched_off] = await doctor(data_dir, telegram_mode="off").probe("open work")
    assert switched_off.name == "telegram:8"


@pytest.mark.req("TGM-1")
async def test_a_workflow_that_asks_for_telegram_is_not_said_to_serve_a_bot_with_a_token_of_its_own(
    data_dir: Path, tmp_path: Path
):
    """A start binds the default bot, and no other."""
    house = build(load_settings(data_dir=data_dir, _env_file=None))
    await house.stores.open()
    own = ChannelOwn(bot_token=house.seal.close("8:ABC"))
    off = BindingRecord(channel="telegram", account="8", workflow_id="a", own=own, enabled=False)
    await house.editor.bind(off, by="ann")
    await house.stores.close()
    (tmp_path / "bot.py").write_text(BOT.replace('"webchat"', '"telegram"'))
    asked = doctor(data_dir, app=str(tmp_path / "bot.py"), telegram_token="7:ABC")
    found = {finding.name: finding for finding in await asked.probe("bindings")}
    assert found["telegram:7"].level is Level.OK
    assert found["telegram:8"].level is Level.WARN
    assert "`rise bindings bind WORKFLOW --channel telegram --account 8`" in found["telegram:8"].remedy


@pytest.mark.req("SUS-2")
async def test_what_waits_for_a_person_is_a_warning_that_counts_it_by_reason(data_dir: Path):
    await accept_for(data_dir, "7", 1, 2, 3, 4, 5)
    reasons = (Reason.POISON, Reason.WORKFLOW_PENDING, Reason.REPLY_HELD, Reason.POISON, None)
    await suspend(data_dir, reasons)
    [finding] = await doctor(data_dir, telegram_token="7:ABC").probe("open work")
    assert (finding.name, finding.level) == ("suspended", Level.WARN)
    assert finding.detail == "3 messages wait for a person: 2 poison, 1 reply_held"
    assert finding.remedy.startswith("`rise suspended` shows which")
    await suspend(data_dir, (None, None, None, Reason.POISON, Reason.SCHEMA_NEWER))
    [one] = await doctor(data_dir, telegram_token="7:ABC").probe("open work")
    assert one.detail == "1 message waits for a person: 1 poison"


async def suspend(data_dir: Path, reasons: tuple[Reason | None, ...]) -> None:
    """One task after the other, for its reason or not at all."""
    house = build(load_settings(data_dir=data_dir, _env_file=None))
    await house.stores.open()
    open_tasks = await house.queue.list_open(Selection(), limit=len(reasons))
    rows = [
        (Status.PENDING if reason is None else Status.SUSPENDED, reason, task.head.task_id)
        for task, reason in zip(open_tasks, reasons, strict=True)
    ]
    sql = "UPDATE tasks SET status = ?, reason = ? WHERE task_id = ?"
    await house.stores.database.write(lambda sqlite: sqlite.executemany(sql, rows))
    await house.stores.close()


# --- what runs --------------------------------------------------------------------------------------------


@asynccontextmanager
async def server(answers: dict[str, tuple[int, object]]) -> AsyncIterator[int]:
    """Answers as a running `rise serve` would; yields the port."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = request.split(" ", 2)
        is_allowed = method == "GET" or "bearer an-admin-token-of-tests" in request.lower()
        status, body = answers.get(f"{method} {path}", (404, {})) if is_allowed else (401, {})
        content = json.dumps(body).encode()
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode())
        writer.write(content)
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


@pytest.fixture
def owned(data_dir: Path) -> Iterator[DataDirectory]:
    """As if a `rise serve` ran on it."""
    directory = DataDirectory(data_dir)
    directory.own()
    yield directory
    directory.disown()


async def test_the_running_servers_capabilities_are_told_in_its_own_words(data_dir: Path, owned: DataDirectory):
    shown = {
        "disk": {"status": "available", "detail": "written and synced"},
        "worker": {"status": "unavailable", "detail": "it ended (exit 1); restarted in 5 s"},
        "telegram_webhook": {"status": "degraded", "detail": "not registered yet"},
    }
    async with server({"GET /healthz": (200, {"capabilities": shown})}) as port:
        findings = {finding.name: finding for finding in await doctor(data_dir, port=port).probe("capabilities")}
    assert [finding.level for finding in findings.values()] == [Level.OK, Level.WARN, Level.FAIL]
    assert findings["disk"].detail == "available: written and synced"
    assert findings["worker"].detail == "the running server says unavailable: it ended (exit 1); restarted in 5 s"
    assert CONSEQUENCES["worker"] in findings["worker"].remedy, "and of what follows from them, in the log's"


HTTP_BINDING = {"channel": "http", "account": "default", "workflowId": "echo"}


@pytest.mark.req("BND-8")
@pytest.mark.parametrize(
    ("status", "source", "level"),
    [
        ("degraded", "runs", Level.WARN),
        ("down", "runs", Level.FAIL),
        ("down", "test", Level.FAIL),
        ("ok", "runs", Level.OK),
        ("down", "getMe", Level.OK),
        ("of a newer version", "runs", Level.OK),
    ],
)
async def test_of_a_binding_whose_messages_fail_the_running_servers_word_is_told(
    data_dir: Path, owned: DataDirectory, status: str, source: str, level: Level
):
    house = build(load_settings(data_dir=data_dir, _env_file=None))
    await house.stores.open()
    await house.editor.bind(BindingRecord(channel="http", account="default", workflow_id="echo"), by="ann")
    await house.stores.close()
    health = HTTP_BINDING | {"status": status, "source": source, "detail": "its last 4 runs have failed: boom"}
    answers: dict[str, tuple[int, object]] = {
        "GET /api/channels/http/health": (200, {"data": {"bindings": [health | {"lastCheckedAt": None}]}})
    }
    async with server(answers) as port:
        found = {one.name: one for one in await doctor(data_dir, port=port).probe("bindings")}
    served = found["http:default"]
    assert served.level is level
    if level is Level.OK:
        assert served.detail == "served by echo"
    else:
        assert served.detail.startswith(f"the running server says echo is {status}: its last 4 runs have failed: boom")
        assert served.remedy


async def test_of_the_database_the_running_servers_word_is_told(data_dir: Path, owned: DataDirectory):
    full = "the disk is full: free some space. Until then nothing is accepted"
    disk = {"status": "unavailable", "detail": full}
    answers: dict[str, tuple[int, object]] = {"GET /healthz": (200, {"capabilities": {"disk": disk}})}
    async with server(answers) as port:
        [down] = await doctor(data_dir, port=port).probe("database")
        disk |= {"status": "available", "detail": "written and synced"}
        well, _ = await doctor(data_dir, port=port).probe("database")
    assert (down.name, down.level, down.detail) == (
        "database",
        Level.FAIL,
        f"the running server says unavailable: {full}",
    )
    assert well.level is Level.OK
    assert well.detail.startswith("sound, ")
    assert well.detail.endswith("; the running server says available: written and synced")


@pytest.mark.failure("C10")
async def test_of_a_database_that_is_gone_under_the_server_its_word_and_its_remedy_are_told(
    data_dir: Path, owned: DataDirectory
):
    gone = {"status": "unavailable", "detail": "rise.db was deleted while open", "remedy": "put the file back"}
    (data_dir / "rise.db").unlink()
    async with server({"GET /healthz": (200, {"capabilities": {"disk": gone}})}) as port:
        [finding] = await doctor(data_dir, port=port).probe("database")
    said = "the running server says unavailable: rise.db was deleted while open"
    assert (finding.level, finding.detail) == (Level.FAIL, said)
    assert finding.remedy.startswith("put the file back;")


async def test_a_server_that_runs_and_does_not_answer_is_said_so(data_dir: Path, owned: DataDirectory):
    async with server({}) as port:
        pass
    findings = await examined(doctor(data_dir, port=port))
    assert findings["serve"].level is Level.OK
    assert f"could not be asked at http://127.0.0.1:{port}" in findings["capabilities"].detail


async def test_of_a_server_that_is_silent_it_is_said_that_nothing_is_accepted(
    data_dir: Path, owned: DataDirectory, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("rise.runtime.doctor.ANSWER_SECONDS_MAX", 0.2)
    with hold_port() as silent:
        silent.listen()
        [finding] = await doctor(data_dir, port=silent.getsockname()[1]).probe("capabilities")
    assert finding.level is Level.FAIL
    assert "a server holds" in finding.detail
    assert "nothing is accepted" in finding.detail
    assert "RISE_PORT" not in finding.remedy
    assert "start `rise serve`" in finding.remedy


@pytest.mark.slow
async def test_a_server_that_was_stopped_is_named_with_what_lets_it_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("rise.runtime.doctor.ANSWER_SECONDS_MAX", 1.0)
    async with Installation(tmp_path / "data") as rise:
        pid = rise.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        [finding] = await doctor(tmp_path / "data", port=rise.port).probe("capabilities")
        os.kill(pid, signal.SIGCONT)
    assert finding.level is Level.FAIL
    assert "is stopped (SIGSTOP)" in finding.detail
    assert finding.remedy == f"kill -CONT {pid}"


async def test_a_capability_is_probed_by_the_server(data_dir: Path, owned: DataDirectory):
    state = {"name": "worker", "status": "available", "detail": "process 5"}
    async with server({"POST /internal/capabilities/worker/probe": (200, {"data": state})}) as port:
        examination = doctor(data_dir, port=port, admin_token="an-admin-token-of-tests")
        [known] = await examination.probe("worker")
        [unknown] = await examination.probe("coffee")
    assert (known.name, known.level, known.detail) == ("worker", Level.OK, "available: process 5")
    assert (unknown.level, unknown.detail) == (Level.FAIL, "no such check or capability")


@pytest.mark.req("SEC-1")
async def test_whoever_has_only_the_digest_of_the_token_is_told_that_nobody_can_be_asked_with_it(
    data_dir: Path, owned: DataDirectory
):
    [refused] = await doctor(data_dir, admin_token=digest_of("an-admin-token-of-tests")).probe("worker")
    assert (refused.level, refused.remedy) == (Level.FAIL, "set it to the token itself, here")


async def test_processes_of_the_directory_are_named(data_dir: Path):
    member = LocalBus(data_dir / "bus", SystemClock())
    await member.start()
    [finding] = await doctor(data_dir).probe("serve")
    await member.stop()
    assert f"(process {member.member.partition('-')[0]})" in finding.detail


async def test_a_process_of_another_container_is_not_taken_for_the_one_that_has_its_number_here(data_dir: Path):
    (data_dir / "bus").mkdir(exist_ok=True)
    lock = _locked_file(data_dir / "bus", f"{os.getppid()}-elsewher")  # as the kernel shows it: held, not by that one
    [finding] = await doctor(data_dir).probe("serve")
    os.close(lock)
    assert finding.detail.endswith("; running: a process that is not seen from here (in another container)")


# --- Telegram ---------------------------------------------------------------------------------------------


async def test_a_bot_that_answers_and_a_webhook_that_is_elsewhere(data_dir: Path):
    async with TelegramStandIn() as telegram:
        settings = {"telegram_token": telegram.token, "telegram_api_base": telegram.url}
        polling = {finding.name: finding for finding in await doctor(data_dir, **settings).probe("telegram")}
        assert {finding.level for finding in polling.values()} == {Level.OK}
        assert set(polling) == {"telegram", "telegram_polling"}
        examination = doctor(data_dir, **settings, public_url="https://bot.example")
        webhook = {finding.name: finding for finding in await examination.probe("telegram")}
    account = telegram.token.partition(":")[0]
    assert webhook["telegram_webhook"].level is Level.WARN
    assert f"not to https://bot.example/telegram/webhook/{account}" in webhook["telegram_webhook"].detail


async def test_of_a_webhook_that_somebody_else_took_away_nothing_is_said_to_be_well(
    data_dir: Path, owned: DataDirectory
):
    shown = {"telegram_webhook": {"status": "available", "detail": "delivering to https://bot.example"}}
    answers: dict[str, tuple[int, object]] = {"GET /healthz": (200, {"capabilities": shown})}
    async with TelegramStandIn() as telegram, server(answers) as port:
        settings = {"telegram_token": telegram.token, "telegram_api_base": telegram.url, "port": port}
        examination = doctor(data_dir, **settings, public_url="https://bot.example")
        said = [finding async for finding in examination.examine() if finding.name == "telegram_webhook"]
    assert [finding.level for finding in said] == [Level.WARN]
    assert said[0].detail.startswith("Telegram delivers to nobody")


async def test_a_bot_that_does_not_answer_is_a_failure_that_does_not_show_its_token(data_dir: Path):
    examination = doctor(data_dir, telegram_token=TOKEN, telegram_api_base="http://127.0.0.1:1")
    [finding] = await examination.probe("telegram")
    assert finding.level is Level.FAIL
    assert TOKEN not in finding.detail
    assert finding.remedy
