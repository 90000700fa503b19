"""`rise audit`, `rise doctor`, `rise backup`, `rise restore` and the stand-ins, as commands."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from cli_directory import Directory, Rise

from rise.runtime.directory import DataDirectory


@pytest.mark.req("OPS-2")
def test_a_deleted_task_is_named_and_the_exit_code_is_1(rise: Rise, directory: Directory):
    lost, _ = directory.accept(1, 2)
    assert rise("audit").code == 0
    directory.write("DELETE FROM tasks WHERE task_id = ?", lost)
    for_people = rise("audit")
    assert for_people.code == 1
    assert lost in for_people.out
    assert "tg:7:u:1001" in for_people.out
    for_programs = rise("audit", "--json")
    assert for_programs.code == 1
    assert for_programs.json["unaccounted"] == 1
    assert [entry["taskId"] for entry in for_programs.json["unaccountedTasks"]] == [lost]
    assert not for_programs.json["clean"]


@pytest.mark.req("OPS-2")
def test_a_token_that_leads_nowhere_does_not_keep_the_audit_from_its_work(
    rise: Rise, directory: Directory, monkeypatch: pytest.MonkeyPatch
):
    directory.accept(1)
    monkeypatch.setenv("RISE_TELEGRAM_TOKEN", "7:AAaaBBbbCCccDDddEEeeFFffGGggHHhhIIi")
    monkeypatch.setenv("RISE_TELEGRAM_API_BASE", "http://127.0.0.1:1")
    ended = rise("audit", "--json")
    assert ended.code == 0
    assert [notice["kind"] for notice in ended.json["notices"]] == ["telegram_silent"]


@pytest.mark.req("CPY-7", "OPS-1")
def test_there_and_back_again(rise: Rise, directory: Directory, tmp_path: Path):
    accepted = directory.accept(*range(1, 11))
    assert rise("backup", "copy.tar.gz").code == 0
    assert rise("backup", "copy.tar.gz").code == 1, "it overwrites nothing"
    directory.write("DELETE FROM tasks")
    assert rise("audit").code == 1

    refused = rise("restore", "copy.tar.gz")
    assert refused.code == 1
    assert "--force" in refused.err
    restored = rise("restore", "copy.tar.gz", "--force", "--json")
    assert restored.code == 0
    assert restored.json["contents"]["tasksOpen"] == 10
    assert Path(restored.json["movedAside"]).name == "before-restore-1"
    assert set(directory.statuses()) == set(accepted)
    assert rise("audit").code == 0


def test_nothing_is_restored_while_serve_runs(rise: Rise, directory: Directory):
    directory.accept(1)
    rise("backup", "copy")
    serve = DataDirectory(directory.path)
    serve.own()
    ended = rise("restore", "copy", "--force")
    serve.disown()
    assert ended.code == 2
    assert "stop it first" in ended.err


@pytest.mark.req("OPS-1")
@pytest.mark.failure("M3")
def test_a_restore_that_was_cut_off_is_said_by_every_command_until_it_is_run_again(rise: Rise, directory: Directory):
    directory.accept(1)
    rise("backup", "copy")
    former = directory.path / "restore-unfinished" / "former"
    former.mkdir(parents=True)
    (directory.path / "rise.db").rename(former / "rise.db")
    for command in (("serve",), ("audit",), ("tasks",), ("backup", "another")):
        ended = rise(*command)
        assert ended.code == 2, command
        assert "was cut off: run it again" in ended.err
    doctor = rise("doctor")
    assert doctor.code == 1
    assert "→ `rise restore` the same backup again" in doctor.out
    assert rise("restore", "copy").code == 0
    assert rise("audit").code == 0
    assert len(directory.statuses()) == 1


def test_the_doctor_ends_with_1_on_a_failure_and_0_on_warnings(rise: Rise, directory: Directory):
    directory.accept(1)
    well = rise("doctor")
    assert well.code == 0
    assert "warn serve" in well.out
    assert "→ start `rise serve`" in well.out
    assert rise("doctor", "--probe", "disk", "--json").json == {
        "findings": [{"name": "disk", "level": "ok", "detail": "written and synced", "remedy": ""}],
        "ok": True,
    }
    (directory.path / "rise.db").write_bytes(b"not a database at all" * 1000)
    ill = rise("doctor")
    assert ill.code == 1
    assert "fail database" in ill.out


# --- as processes of their own ----------------------------------------------------------------------------


async def command(*words: str) -> tuple[int, bytes, bytes]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rise", *words), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    return process.returncode or 0, out, err


async def test_commands_run_as_processes_and_print_json_alone_whatever_they_log(
    directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RISE_LOG_LEVEL", "debug")
    (tmp_path / "updates.jsonl").write_text('{"update_id": 1}\n')
    code, out, err = await command(
        *("replay", "updates.jsonl", "--channel", "telegram", "--account", "7", "--yes", "--json")
    )
    assert (code, json.loads(out)["new"]) == (0, 1), err
    code, out, err = await command("audit", "--json")
    assert (code, json.loads(out)["suspended"]) == (0, 1), err
    code, out, err = await command("tasks", "show", "t_nothing")
    assert (code, out) == (1, b"")
    assert b"Traceback" not in err


async def test_help_does_not_import_what_it_does_not_need():
    slow = ["fastapi", "aiohttp", "apsw", "pydantic", "uvloop", "httpx", "prometheus_client", "structlog"]
    script = f"import sys, rise.cli; rise.cli.build_app();print([name for name in {slow!r} if name in sys.modules])"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert out.decode().strip() == "[]"


@pytest.mark.req("TST-1")
async def test_the_telegram_standin_serves_until_it_is_stopped():
    words = ("telegram-standin", "--token", "9:of-a-test")
    async with standin(*words, says="RISE_TELEGRAM_API_BASE=") as url, httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"{url}/bot9:of-a-test/getMe")).json()["ok"]
        update = await client.post(f"{url}/_standin/updates", content=b'{"text": "Hello", "chat_id": 42}')
    assert update.json()[0]["is_kept"], "as curl -d sends it, which every version of curl can"


@pytest.mark.req("TST-1")
async def test_the_model_standin_answers_whatever_model_is_asked_for_with_what_it_was_asked():
    asked = {"model": "llama3.2", "messages": [{"role": "user", "content": "Do you have green tea?"}]}
    words = ("model-standin",)
    async with standin(*words, says="RISE_LLM_BASE_URL=") as url, httpx.AsyncClient(trust_env=False) as client:
        answer = (await client.post(f"{url}/chat/completions", json=asked)).json()
    assert answer["choices"][0]["message"]["content"] == "Do you have green tea?"


@asynccontextmanager
async def standin(*words: str, says: str) -> AsyncIterator[str]:
    """Its address, as it says it; afterwards it is stopped, and must have ended well."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", "-m", "rise", *words, "--port", "0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    url = ""
    async with asyncio.timeout(30):
        while not url:
            line = (await process.stdout.readline()).decode()
            assert line, "it ended before it said where it listens"
            url = line.partition(says)[2].strip()
    yield url
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(10):
        _, err = await process.communicate()
    assert process.returncode == 0
    assert b"Traceback" not in err
