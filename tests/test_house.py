"""The house keeps its own rules: names, borders, and documents that say what is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "rise").rglob("*.py"))
BANNED = re.compile(
    r"(^|_)(manager|helper|helpers|util|utils|common|processor|data|info|base)($|_)"
    r"|Manager|Helper|Util|Processor$|Data$|Info$|Base$"
)
NAMED_BY_OTHERS = {"data_received", "info", "webhook_info", "get_webhook_info", "WebhookInfo"}
"""By asyncio, Redis and Telegram: calling them otherwise would hide what they are."""

LOOP_TIME_ALLOWED = {"workflows/runner.py"}
"""It waits for what it measures: a wait of asyncio ends by the loop's time, whatever our clock says."""
BORDER = re.compile(r"# (noqa: BLE001 - )?border: \S")
"""Ruff asks for the `noqa` only where the error is not passed on."""
LINE_CHARS_MAX = 200
"""Of a document, outside its tables."""
LINES_LONG = 60
LONG_SHARE_MAX = 0.025
"""In the best of the field, at most 2.5 % of functions are longer than 60 lines."""


def functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def test_no_name_says_manager_helper_util_or_data() -> None:
    named = {f"{path.name}:{node.name}" for path, node in functions() if is_banned(node.name)}
    named |= {path.name for path in SOURCES if is_banned(path.stem)}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and is_banned(node.name):
                named.add(f"{path.name}:{node.name}")
    assert not named


def is_banned(name: str) -> bool:
    return name not in NAMED_BY_OTHERS and bool(BANNED.search(name))


def test_time_does_not_come_from_the_loop() -> None:
    """Ruff's ban ends at the name of a module: what a call returns it cannot follow."""
    asked = {
        str(path.relative_to(ROOT / "src" / "rise"))
        for path in SOURCES
        if re.search(r"loop(\(\))?\.time\(\)", path.read_text())
    }
    assert asked == LOOP_TIME_ALLOWED


def test_every_catch_all_is_a_border_that_says_what_happens_next() -> None:
    silent = []
    for path in SOURCES:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if re.search(r"except .*\b(Base)?Exception\b", line) and not re.search(BORDER, line):
                silent.append(f"{path.relative_to(ROOT)}:{number}")
    assert not silent


def test_few_functions_are_long() -> None:
    lengths = [(node.end_lineno or 0) - node.lineno + 1 for _, node in functions()]
    long = sum(length > LINES_LONG for length in lengths)
    assert long / len(lengths) <= LONG_SHARE_MAX


def test_every_module_says_what_it_promises() -> None:
    silent = [path.relative_to(ROOT) for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


@pytest.mark.parametrize("document", ["docs/guarantees.md"])
def test_every_test_a_document_names_exists(document: str) -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    tests += "\n".join(path.read_text() for path in (ROOT / "src/rise/testing/conformance").rglob("*.py"))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / document).read_text()))
    assert named
    assert not {name for name in named if f"def {name}(" not in tests}


def test_from_webhook_to_reply_one_opens_at_most_seven_files_on_either_profile() -> None:
    way = (ROOT / "ARCHITECTURE.md").read_text().split("\n## One message's way\n")[1].split("\n## ")[0]
    _, _, *rows = [line.strip("|").split("|") for line in way.splitlines() if line.startswith("|")]
    assert [number.strip() for number, _, _ in rows] == [str(number) for number in range(1, len(rows) + 1)]
    assert not [told for _, _, told in rows if ".py" in told], "a file that has to be opened is counted"
    embedded, with_servers = [], []
    for _, named, _ in rows:
        here, _, there = named.partition("; with servers ")
        embedded += _files(here)
        with_servers += _files(there or here)
    assert embedded != with_servers
    for files in (embedded, with_servers):
        assert files[0] == "api/webhooks.py" and files[-1] == "channels/telegram/channel.py"
        assert len(rows) <= len(files) <= 7, files
        assert not [name for name in files if not (ROOT / "src/rise" / name).exists()]


def _files(text: str) -> list[str]:
    return re.findall(r"[\w/]+\.py\b", text)


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "docs/decisions.md"])
def test_every_file_the_architecture_names_exists(document: str) -> None:
    named = _files((ROOT / document).read_text())
    there = [f"/{path.relative_to(ROOT / 'src' / 'rise')}" for path in SOURCES]
    assert len(named) > 10
    assert not [name for name in named if not any(path.endswith(f"/{name}") for path in there)]


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "docs/decisions.md"])
def test_no_line_is_too_long_to_be_read_beside_the_code(document: str) -> None:
    text = [line for line in (ROOT / document).read_text().splitlines() if not line.startswith("|")]
    assert max(map(len, text)) <= LINE_CHARS_MAX


def test_every_word_of_the_glossary_says_where_it_is_defined() -> None:
    table = (ROOT / "ARCHITECTURE.md").read_text().split("\n## Words\n")[1].split("\n## ")[0]
    _, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    words = [word.strip("*") for word, _, _ in rows]
    assert len(words) > 40
    assert words == sorted(set(words), key=str.casefold), "one row for a word, where it is looked for"
    for word, _, where in rows:
        for place in where.split("; "):
            named = re.fullmatch(r"`([\w/]+\.py)`(?:: (`\w+`(?:, `\w+`)*))?", place)
            assert named, f"{word}: {place}"
            path = ROOT / "src/rise" / named[1]
            assert path.exists(), f"{word}: there is no {named[1]}"
            missing = set(re.findall(r"\w+", named[2] or "")) - _defined_in(path)
            assert not missing, f"{word}: not defined in {named[1]}"


def _defined_in(path: Path) -> set[str]:
    """The names that a module gives to what it makes itself."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return names


def test_every_command_the_documents_name_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    named: set[str] = set()
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "guarantees.md"):
        named |= set(re.findall(r"(?:^|`)(?:make|\./run) ([a-z]+)", document.read_text(), re.MULTILINE))
    assert named
    assert named <= targets


def test_every_test_run_of_the_makefile_finds_tests() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for words in re.findall(r"-m pytest (tests/\S+) -k (\w+)", makefile):
        path, name = words
        assert name in (ROOT / path).read_text()
