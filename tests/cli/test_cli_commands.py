"""What holds for every command: help, JSON, how it ends, and that nobody who goes away is told a traceback."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from cli_directory import Directory, Rise
from structlog.testing import capture_logs

import rise as rise_package
from rise.capabilities import REMEDIES
from rise.cli import EXIT_CODES, EXIT_INTERRUPTED, EXIT_WORN_OUT, build_app
from rise.cli.printing import show_pairs
from rise.envelope import Reason
from rise.queue.port import Suspend
from rise.runtime import processes

pytestmark = pytest.mark.req("OPS-1")

RUNBOOK = Path(__file__).parents[2] / "docs/runbook.md"
TASK = f"t_{'a' * 26}"
RUN_UNTIL_STOPPED = {"demo", "serve", "worker", "telegram-standin", "model-standin"}
"""They tell nothing, they run."""
WITHOUT_DIRECTORY = {"doctor", "tokens new", "simulate", "drill", "bench"}
ON_A_DIRECTORY = {
    "tasks": (),
    "tasks show": (TASK,),
    "tasks drop": (TASK, "--why", "a test"),
    "suspended": (),
    "suspended resume": (TASK,),
    "follow-ups add": ("--chat", "1", "--text", "Hi", "--in", "60", "--account", "7"),
    "follow-ups": (),
    "follow-ups list": (),
    "follow-ups show": (TASK,),
    "follow-ups cancel": (TASK,),
    "follow-ups move": (TASK, "--in", "60"),
    "bindings": (),
    "bindings bind": ("wf_nothing", "--channel", "http"),
    "bindings unbind": ("wf_nothing", "--channel", "http"),
    "bindings kill": ("wf_nothing", "--channel", "http", "--why", "a test"),
    "bindings unkill": ("wf_nothing", "--channel", "http"),
    "workflows": (),
    "workflows list": (),
    "workflows show": ("wf_nothing",),
    "workflows publish": ("wf_nothing",),
    "workflows history": ("wf_nothing",),
    "workflows rollback": ("wf_nothing", "1"),
    "workflows disable": ("wf_nothing",),
    "workflows enable": ("wf_nothing",),
    "prompts": (),
    "prompts list": (),
    "prompts show": ("p_nothing",),
    "prompts set": ("greeting", "--template", "Hello"),
    "secrets list": (),
    "secrets set": ("SHOP", "--file", "key"),
    "secrets remove": ("NOTHING",),
    "secrets rotate": (),
    "replay": (TASK,),
    "audit": (),
    "backup": ("copy",),
    "restore": ("no-backup",),
    "forget": ("--chat", "1", "--account", "7"),
    "rehydrate": (),
}
"""The fewest words that are right."""
LISTS = [
    *("tasks", "suspended", "follow-ups list", "bindings", "workflows", "workflows list", "prompts", "prompts list"),
    *("secrets list", "audit"),
]
ASK_REDIS = ["tasks", "tasks show", "suspended", "follow-ups", "follow-ups show", "audit", "forget", "replay"]
CHANGE_IN_REDIS = ["tasks drop", "suspended resume", "follow-ups cancel"]
LOOK_ELSEWHERE = ["bindings", "workflows", "prompts", "secrets list", "backup"]
OF_SOMETHING_UNKNOWN = [
    name
    for name, words in ON_A_DIRECTORY.items()
    if words and words[0] in (TASK, "wf_nothing", "p_nothing", "NOTHING") and name not in ("suspended resume", "replay")
]


def commands() -> Iterator[tuple[str, Any]]:
    """All that can be called, by its words."""

    def below(group: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if not hasattr(command, "commands"):
                yield " ".join((*words, name)), command
                continue
            if command.invoke_without_command:
                yield " ".join((*words, name)), command
            yield from below(command, (*words, name))

    yield from below(typer.main.get_command(build_app()), ())


COMMANDS = dict(commands())


# --- what each has ----------------------------------------------------------------------------------------


def test_every_command_is_tried_here():
    assert set(COMMANDS) == RUN_UNTIL_STOPPED | WITHOUT_DIRECTORY | set(ON_A_DIRECTORY)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_each_of_its_words_has_help(name: str):
    command = COMMANDS[name]
    assert command.help
    without = [one.name for one in command.params if not getattr(one, "hidden", False) and not one.help]
    assert not without


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - RUN_UNTIL_STOPPED))
def test_every_command_that_tells_something_tells_it_to_programs(name: str):
    assert any("--json" in one.opts for one in COMMANDS[name].params)


def test_the_help_says_how_commands_end(rise: Rise):
    told = rise("--help")
    assert told.code == 0
    for code, meaning in EXIT_CODES.items():
        assert f"{code}  {meaning[:40]}" in told.out
    assert EXIT_WORN_OUT == processes.EXIT_WORN_OUT
    assert rise("--version").out == f"rise {rise_package.__version__}\n"


# --- how each ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ON_A_DIRECTORY)
def test_without_a_directory_each_says_so_in_a_line_with_the_remedy(rise: Rise, tmp_path: Path, name: str):
    (tmp_path / "key").write_text("a-key-of-the-tests")
    ended = rise(*name.split(), *ON_A_DIRECTORY[name])
    assert ended.code == 1
    assert ended.out == ""
    [line] = ended.err.splitlines()
    assert line.startswith("rise: ")
    assert "--data-dir" in line or name == "restore"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["key"] or name == "restore"


@pytest.mark.parametrize("name", OF_SOMETHING_UNKNOWN)
def test_what_is_not_there_is_said_in_a_line_with_the_remedy(rise: Rise, directory: Directory, name: str):
    directory.accept(1)
    ended = rise(*name.split(), *ON_A_DIRECTORY[name])
    assert ended.code == 1
    assert ended.out == ""
    line, remedy = ended.err.splitlines()
    assert line.startswith("rise: ")
    assert remedy.startswith("      → ")


@pytest.mark.req("CAP-6")
@pytest.mark.failure("C11")
@pytest.mark.parametrize("name", [*ASK_REDIS, *CHANGE_IN_REDIS])
def test_while_redis_is_away_each_that_asks_it_says_what_helps_and_nothing_is_logged_beside_it(
    rise: Rise, directory: Directory, monkeypatch: pytest.MonkeyPatch, name: str
):
    directory.accept(1)
    monkeypatch.setenv("RISE_REDIS_URL", "redis://127.0.0.1:1")
    with capture_logs() as logged:
        ended = rise(*name.split(), *ON_A_DIRECTORY[name])
    assert (ended.code, ended.out) == (1, "")
    line, remedy = ended.err.splitlines()
    assert line in ("rise: Redis cannot be reached", "rise: Redis does not answer in time")  # on a machine that is busy
    assert remedy == f"      → {REMEDIES['redis']}"
    assert shown_of(logged) == []


@pytest.mark.failure("C11")
@pytest.mark.parametrize("name", LOOK_ELSEWHERE)
def test_while_redis_is_away_each_that_does_not_ask_it_answers_as_ever(
    rise: Rise, directory: Directory, monkeypatch: pytest.MonkeyPatch, name: str
):
    directory.accept(1)
    monkeypatch.setenv("RISE_REDIS_URL", "redis://127.0.0.1:1")
    with capture_logs() as logged:
        ended = rise(*name.split(), *ON_A_DIRECTORY[name])
    assert (ended.code, ended.err, shown_of(logged)) == (0, "", [])


@pytest.mark.failure("C11")
@pytest.mark.parametrize("name", ["prompts set", "secrets set", "secrets rotate"])
def test_while_redis_is_away_what_is_changed_elsewhere_is_changed_and_others_hear_later(
    rise: Rise, directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    (tmp_path / "key").write_text("a-key-of-the-tests")
    directory.accept(1)
    monkeypatch.setenv("RISE_REDIS_URL", "redis://127.0.0.1:1")
    with capture_logs() as logged:
        ended = rise(*name.split(), *ON_A_DIRECTORY[name])
    assert (ended.code, ended.err) == (0, "")
    assert shown_of(logged) in ([], ["bus.event_queued"])


def test_the_runbook_says_which_answer_while_redis_is_away():
    chapter = RUNBOOK.read_text().split("\n## Redis is down\n")[1].split("\n## ")[0]
    parts = {part.split(":**")[0]: set(re.findall(r"`rise ([a-z -]+)`", part)) for part in chapter.split("- **")}
    assert parts["Answers meanwhile"] == {*LOOK_ELSEWHERE, "doctor"}
    assert parts["Cannot look without it"] == {*ASK_REDIS, "rehydrate"}


def shown_of(logged: list[Any]) -> list[str]:
    """What a command lets through of its log."""
    return [line["event"] for line in logged if line["log_level"] not in ("debug", "info")]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_word_that_there_is_not_is_wrong_usage(rise: Rise, tmp_path: Path, name: str):
    ended = rise(*name.split(), *ON_A_DIRECTORY.get(name, ()), "--no-such-word")
    assert ended.code == 2
    assert ended.out == ""
    assert "--no-such-word" in ended.err
    assert "Traceback" not in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", LISTS)
def test_json_is_one_document_and_nothing_beside_it(rise: Rise, directory: Directory, name: str):
    directory.accept(1)
    ended = rise(*name.split(), "--json")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.count("\n") == 1
    assert isinstance(ended.json, dict)


def test_the_drill_says_what_is_not_installed_before_it_makes_anything(
    rise: Rise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("rise.testing.servers.has_mongodb", lambda: False)
    ended = rise("drill", "--profile", "mongo", "--cycles", "1")
    assert ended.code == 2
    assert "`rise drill --profile mongo` needs a server that speaks MongoDB's protocol: pip install" in ended.err
    assert list(tmp_path.iterdir()) == []


# --- who goes away ----------------------------------------------------------------------------------------

RISE = (sys.executable, "-m", "rise")


def test_ctrl_c_while_something_is_waited_for_is_no_error(rise: Rise, monkeypatch: pytest.MonkeyPatch):
    class Interrupted:
        """Somebody who presses it instead of typing."""

        def isatty(self) -> bool:
            return False

        def readline(self) -> str:
            os.kill(os.getpid(), signal.SIGINT)
            return ""

    monkeypatch.setattr(sys, "stdin", Interrupted())
    ended = rise("secrets", "set", "SHOP")
    assert (ended.code, ended.out, ended.err) == (EXIT_INTERRUPTED, "", "")


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_work_is_no_error(directory: Directory, tmp_path: Path):
    directory.accept(1)
    (tmp_path / "bot.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = os.environ | {"RISE_APP": "bot.py"}
    ended = subprocess.run([*RISE, "doctor", "--probe", "app"], env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (EXIT_INTERRUPTED, "")


@pytest.mark.slow
@pytest.mark.req("TST-2")
def test_ctrl_c_ends_a_simulation_with_what_there_was_until_then(rise: Rise, monkeypatch: pytest.MonkeyPatch):
    from rise.testing.simulator import run

    played: list[int] = []
    simulate = run.simulate

    def interrupted_in_the_second(plan: Any) -> Any:
        played.append(plan.seed)
        if len(played) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return simulate(plan)

    monkeypatch.setattr(run, "simulate", interrupted_in_the_second)
    ended = rise("simulate", "--seeds", "1000", "--json")
    assert ended.code == EXIT_INTERRUPTED
    assert (ended.json["seeds"], ended.json["broken"]) == ("1 to 2", 0)
    assert played == [1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
@pytest.mark.parametrize("words", ["tasks", "tasks --json", "audit", "--help", "--version"])
def test_a_reader_who_has_seen_enough_is_told_nothing(directory: Directory, words: str):
    directory.accept(*range(1, 100))
    read, write = os.pipe()
    os.close(read)
    try:
        ended = subprocess.run([*RISE, *words.split()], stdout=write, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(write)
    assert (ended.returncode, ended.stderr) == (1, "")


# --- tables -----------------------------------------------------------------------------------------------


def shown_on_a_terminal(*words: str, columns: int) -> list[str]:
    """What somebody sees on one of that width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [*RISE, *words], stdout=theirs, stderr=subprocess.DEVNULL, env=environment | {"TERM": "xterm"}
    )
    os.close(theirs)
    seen = b""
    try:
        while some := os.read(ours, 65536):
            seen += some
    except OSError:
        pass  # the other side is closed
    finally:
        process.wait()
        os.close(ours)
    return [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip("\r") for line in seen.decode().split("\n")]


@pytest.fixture
def full(directory: Directory) -> Directory:
    """Some of everything that is listed."""
    accepted = directory.accept(*range(1, 6), text="A long message with many words, none of which may be cut off. " * 3)
    directory.suspend(Suspend(Reason.RETRIES_EXHAUSTED, "the shop did not answer: " + "again " * 20), *accepted[:2])
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("words", [("tasks",), ("suspended",), ("tasks", "show", "TASK"), ("audit",), ("bindings",)])
def test_on_a_terminal_of_eighty_columns_nothing_is_wider_and_ids_are_whole(full: Directory, words: tuple[str, ...]):
    task_id = sorted(full.statuses())[0]
    lines = shown_on_a_terminal(*(task_id if word == "TASK" else word for word in words), columns=80)
    assert max(map(len, lines)) <= 80
    assert words[0] not in ("tasks", "suspended") or any(task_id in line for line in lines)


def test_elsewhere_a_row_is_a_line(rise: Rise, full: Directory):
    lines = rise("tasks").out.splitlines()
    assert len(lines) == 2 + 5, "a title, names, and five rows"
    assert all(line.count("t_") == 1 for line in lines[2:])


def test_elsewhere_no_line_ends_in_blanks(rise: Rise, full: Directory, capfd: pytest.CaptureFixture[str]):
    show_pairs([("seeds", 3), ("bound", "fewer than 1 in 10 seeds breaks a promise (95 %)"), ("struck", "none ")])
    assert capfd.readouterr().out == (
        "seeds   3\nbound   fewer than 1 in 10 seeds breaks a promise (95 %)\nstruck  none\n"
    )
    printed = rise("tasks").out.splitlines()
    assert len(printed) > 2 and [line for line in printed if line != line.rstrip()] == []


# --- completions ------------------------------------------------------------------------------------------


@pytest.fixture
def completed(rise: Rise, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a shell is offered after these words, the last of which is being typed."""

    def offered(shell: str, *words: str) -> str:
        with monkeypatch.context() as patch:
            patch.setenv("_RISE_COMPLETE", f"complete_{shell}")
            patch.setenv("COMP_WORDS", " ".join(("rise", *words)))
            patch.setenv("COMP_CWORD", str(len(words)))
            patch.setenv("_TYPER_COMPLETE_ARGS", " ".join(("rise", *words)))
            patch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
            return rise().out

    return offered


def test_each_shell_is_offered_commands_and_words(completed: Any):
    assert completed("bash", "au").split() == ["audit"]
    assert '"audit"' in completed("zsh", "au")
    assert completed("fish", "au").startswith("audit\t")
    assert "--json" in completed("bash", "tasks", "--js").split()
    assert completed("bash", "tasks", "--channel", "t").split() == ["telegram"]


def test_ids_that_are_there_are_offered_with_nothing_that_people_wrote(completed: Any, directory: Directory):
    waiting, suspended = directory.accept(1, 2, text="$(touch /tmp/owned)")
    directory.suspend(Suspend(Reason.RETRIES_EXHAUSTED, "`touch /tmp/owned`"), suspended)
    assert completed("bash", "tasks", "show", "t_").split() == sorted([waiting, suspended])
    assert completed("bash", "tasks", "show", waiting[:12]).split() == [waiting]
    assert completed("bash", "suspended", "resume", "t_").split() == [suspended]
    for shell in ("bash", "zsh", "fish"):
        assert "touch" not in completed(shell, "tasks", "show", "t_")


def test_workflows_prompts_and_secrets_are_offered(completed: Any, rise: Rise, directory: Directory, tmp_path: Path):
    directory.accept(1)
    (tmp_path / "key").write_text("a-key-of-the-tests")
    assert rise("secrets", "set", "SHOP", "--file", "key").code == 0
    prompt_id = rise("prompts", "set", "greeting", "--template", "Hello", "--json").json["promptId"]
    assert completed("bash", "secrets", "remove", "S").split() == ["SHOP"]
    assert completed("bash", "prompts", "show", prompt_id[:2]).split() == [prompt_id]


def test_where_nothing_can_be_looked_up_nothing_is_offered_said_or_made(
    completed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert completed("bash", "tasks", "show", "t_").strip() == ""
    monkeypatch.setenv("RISE_TELEGRAM_TOKEN", "12:")
    assert completed("bash", "tasks", "show", "t_").strip() == ""
    assert list(tmp_path.iterdir()) == []


def test_of_what_a_server_holds_nothing_is_asked(completed: Any, directory: Directory, monkeypatch: pytest.MonkeyPatch):
    directory.accept(1)
    monkeypatch.setenv("RISE_REDIS_URL", "redis://127.0.0.1:1")
    assert completed("bash", "tasks", "show", "t_").strip() == ""


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_are_installed_where_the_shell_looks(tmp_path: Path, shell: str):
    environment = os.environ | {"HOME": str(tmp_path / "home"), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    (tmp_path / "home").mkdir()
    ended = subprocess.run([*RISE, "--install-completion", shell], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    written = [path.read_text() for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert any("_RISE_COMPLETE" in text for text in written)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_itself_completes(tmp_path: Path):
    program = tmp_path / "rise"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m rise "$@"\n')
    program.chmod(0o755)
    script = (
        'eval "$(rise --show-completion bash)"; complete -p rise; COMP_WORDS=(rise follow-ups mo); COMP_CWORD=2; '
        '_rise_completion rise; echo "${COMPREPLY[@]}"'
    )
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    ended = subprocess.run(["bash", "--norc", "-c", script], env=environment, capture_output=True, text=True)
    assert ended.stdout.splitlines()[-1] == "move", ended.stderr
    assert "_rise_completion" in ended.stdout
