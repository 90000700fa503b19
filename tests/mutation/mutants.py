"""Mutation testing of the protocol's core: small bugs are put in, one at a time, and some test must notice.

`make mutants` takes a sample (`--count 300` of `--seed 20260101`) and prints one line per mutant:

    killed     3.1 s  queue/sqlite.py:295:61 `<` -> `<=`  conformance: test_sqlite_queue.py::test_...
    survived  41.0 s  worker.py:322:12 the statement is removed

After *killed* stands the stage of tests that failed first, and which test, or `timeout` if it hung. After *survived*
come the lines that were changed: no stage told the two apart. Then either nobody can (say why in one line, and leave
it), or it is of no importance, or a test is missing. Last comes the table; the command fails below `--least` percent.

`--only queue/sqlite.py:295` runs only the mutants whose names begin so, sampled or not; `--list` runs none;
`--part 2/3` is the second of three runs that share the sample.

SQL counts as code. Not mutated: what is only logged, texts, annotations, and the layout of tables. Tests run on a copy,
on a memory disk where there is one; one at a time. Nothing in this checkout is changed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.pyc")
SIMULATE = """
from rise.testing.simulator.run import draw_plan, simulate
for seed in range(1, 13):
    violations = simulate(draw_plan(seed)).violations
    assert not violations, f"seed {seed}: {violations[0]}"
"""
SIMULATED = ("simulator", ["-c", SIMULATE])  # `rise simulate` would look for the shortest schedule of faults first


def tests(stage: str, *paths: str, marked: str = "not slow") -> tuple[str, list[str]]:
    options = ["-q", "-x", "-m", marked, "-p", "no:cacheprovider"]
    return stage, ["-m", "pytest", *options, *(f"tests/{path}" for path in paths)]


def pipeline(*names: str) -> tuple[str, list[str]]:
    return tests("pipeline", *(f"pipeline/test_pipeline_{name}.py" for name in names))


CORE = {
    "queue/sqlite.py": (
        80, tests("conformance", "queue"), SIMULATED, tests("agreement", "fakes/test_queue_agreement.py"),
        pipeline("working", "workers"),
    ),
    "ledger/sqlite.py": (
        45, tests("conformance", "ledger"), SIMULATED, tests("agreement", "fakes/test_ledger_agreement.py"),
        pipeline("sending", "working"),
    ),
    "ledger/sqlite_outbox.py": (
        35, tests("conformance", "ledger"), SIMULATED, tests("agreement", "fakes/test_ledger_agreement.py"),
        pipeline("sending", "working"),
    ),
    "worker.py": (30, SIMULATED, pipeline("follow_ups", "working", "workers")),
    "claims.py": (15, SIMULATED, pipeline("working", "workers")),
    "delivery.py": (30, SIMULATED, pipeline("sending", "crash_points", "working")),
    "pace.py": (15, tests("unit", "properties/test_limiting.py", marked=""), pipeline("sending")),
    "runtime/supervisor.py": (25, SIMULATED, pipeline("workers", "working", "crash_points", "keys", "supervision")),
    "retries.py": (15, tests("unit", "test_retries.py"), SIMULATED, pipeline("working")),
    "intake.py": (10, SIMULATED, pipeline("working"), tests("doors", "api/test_api_tasks.py")),
}  # fmt: skip
"""How many of 300, and what is to notice, quickest first."""

SWAPS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
    ast.And: "or", ast.Or: "and", ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*",
}  # fmt: skip
CRASHES_WHEN_SWAPPED = ("execute", "executemany", "_rows", "isinstance")
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}  # what is swapped in them changes nothing
IS_SQL = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE|FROM|WHERE|AND|VALUES|ORDER BY|CASE|ELSE)\b|\w [=<>]+ \?")
SQL_CHANGES = {
    r"(?<= )<(?= )": "<=", r"(?<= )<=(?= )": "<", r"(?<= )>=(?= )": ">", r"(?<= )>(?= )": ">=", r"<>": "=",
    r"\bAND\b": "OR", r"\bOR\b(?! (IGNORE|REPLACE))": "AND", r"OR IGNORE": "OR REPLACE", r"OR REPLACE": "OR IGNORE",
    r"\bIS NULL": "IS NOT NULL", r"\bIS NOT NULL": "IS NULL", r"\bNOT (?=IN|EX)": "", r"(?<= = )NULL\b": "0",
    r" DESC\b": "", r"(?<=ORDER BY )[\w, ()]+?(?= LIMIT|\"|$)": r"1 + 0 * (\g<0>)", r"DISTINCT ": "",
    r"\bmin\(": "max(", r"\bmax\(": "min(", r"coalesce\((\w+|\?), (\w+|\?)\)": r"coalesce(\2, \1)",
    r"(?<= \+ )1\b": "2", r"(?<= = )[01]\b": "2", r"\s\+\s": " - ", r"(\w+) = \w+ \+ \?": r"\1 = \1 + 0 * ?",
    r"(?<=WHERE |. AND )\w+ (=|<|>|<=|>=|<>) (\?\d?|'\w+')": r"(\g<0> OR 1)",
    r"(?<=SET |.., )(\w+) = \?(?=,| WHERE|\"|$)": r"\1 = iif(0, ?, \1)",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    file: str
    start: int
    end: int
    new: bytes
    what: str
    line: int
    column: int

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line}:{self.column} {self.what}"

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.new + source[self.end :]

    def diff(self, source: bytes) -> str:
        first = source.rfind(b"\n", 0, self.start) + 1
        last = source.find(b"\n", self.end)
        before = source[first:last].decode().splitlines()
        after = (source[first : self.start] + self.new + source[self.end : last]).decode().splitlines()
        return "\n".join([f"    - {line}" for line in before] + [f"    + {line}" for line in after])


class Finder(ast.NodeVisitor):
    """Everything that can be changed in one file."""

    def __init__(self, file: str, source: bytes) -> None:
        self.file, self.source, self.found = file, source, dict[tuple[int, int, bytes], Mutant]()
        self.lines = [0]
        for line in source.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))
        self.visit(ast.parse(source))
        if file.endswith("sqlite.py"):
            self.find_sql()

    def add(self, start: int, end: int, new: str, what: str = "") -> None:
        old, into = (" ".join(text.split())[:50] for text in (self.source[start:end].decode(), new))
        line = self.source.count(b"\n", 0, start) + 1
        column = start - self.lines[line - 1]
        mutant = Mutant(self.file, start, end, new.encode(), what or f"`{old}` -> `{into}`", line, column)
        if mutant.apply(self.source) == self.source:
            return
        try:
            ast.parse(mutant.apply(self.source))
        except SyntaxError:
            return
        self.found.setdefault((start, end, mutant.new), mutant)

    def span(self, node: ast.AST) -> tuple[int, int]:
        return self.lines[node.lineno - 1] + node.col_offset, self.lines[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.AST) -> str:
        return self.source[slice(*self.span(node))].decode()

    def swap_between(self, left: ast.AST, right: ast.AST, operator: ast.AST) -> None:
        start, end = self.span(left)[1], self.span(right)[0]
        if new := SWAPS.get(type(operator)):
            old = re.search(r"is not|not in|\w+|[<>=!+*/-]+", self.source[start:end].decode())
            self.add(start + old.start(), start + old.end(), new)

    def generic_visit(self, node: ast.AST) -> None:
        for name, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and name not in ("annotation", "returns", "decorator_list"):
                    self.visit(child)

    def visit(self, node: ast.AST) -> None:
        is_logged = isinstance(node, ast.Call) and self.text(node.func).startswith(("log.", "_report"))
        is_form = isinstance(node, ast.keyword) and node.arg in ("frozen", "slots", "strict")
        if isinstance(node, ast.JoinedStr) or is_logged or is_form:
            return
        match node:
            case ast.Compare(left, operators, others):
                for before, operator, after in zip([left, *others], operators, others, strict=False):
                    self.swap_between(before, after, operator)
            case ast.BoolOp(operator, values):
                for before, after in pairwise(values):
                    self.swap_between(before, after, operator)
            case ast.BinOp(left, operator, right) if not isinstance(left, ast.Constant | ast.JoinedStr):
                self.swap_between(left, right, operator)
            case ast.UnaryOp(ast.Not(), operand):
                self.add(*self.span(node), self.text(operand))
            case ast.Constant(bool() as value):
                self.add(*self.span(node), str(not value))
            case ast.Constant(int() | float() as value):
                for other in (value + 1, value - 1) if value < 100 else (value * 2, value / 2):
                    self.add(*self.span(node), repr(other))
            case ast.If(test) | ast.IfExp(test):
                for other in ("False", "True"):
                    self.add(*self.span(test), other)
            case ast.match_case(pattern, None):
                self.add(*self.span(pattern), f"{self.text(pattern)} if False")
            case ast.Return(value) if value is not None and self.text(value) != "None":
                self.add(*self.span(value), "None")
            case ast.Name(name) if name in NAMES:
                self.add(*self.span(node), NAMES[name])
            case ast.Call(function, [one, two, *_]) if not self.text(function).endswith(
                (*CRASHES_WHEN_SWAPPED, *NAMES)
            ):
                between = self.source[self.span(one)[1] : self.span(two)[0]].decode()
                self.add(self.span(one)[0], self.span(two)[1], self.text(two) + between + self.text(one))
        if self.is_removable(node):
            self.add(*self.span(node), "pass", "the statement is removed")
        self.generic_visit(node)

    def is_removable(self, node: ast.AST) -> bool:
        match node:
            case ast.Expr(ast.Constant()):
                return False
            case ast.Expr(value):
                return not self.text(value).startswith("log.")
            case ast.Assign([ast.Attribute(_, name) | ast.Subscript(ast.Attribute(_, name))], value):
                return name.removeprefix("_") != self.text(value)  # not what a constructor is given
        return isinstance(node, ast.AugAssign | ast.Delete | ast.Raise | ast.Continue | ast.Break)

    def find_sql(self) -> None:
        for token in tokenize.tokenize(io.BytesIO(self.source).readline):
            if token.type not in (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)):
                continue
            if '"""' in token.string or not IS_SQL.search(token.string):
                continue
            start = self.lines[token.start[0] - 1] + token.start[1]  # these lines are ASCII
            for pattern, change in SQL_CHANGES.items():
                for old in re.finditer(pattern, token.string):
                    self.add(start + old.start(), start + old.end(), old.expand(change))


def sampled(count: int, seed: int, only: str) -> Iterator[Mutant]:
    chosen = []
    for file, (share, *_) in CORE.items():
        dice = random.Random(f"{seed} {file}")
        every = sorted(
            Finder(file, (ROOT / "src/rise" / file).read_bytes()).found.values(), key=lambda m: (m.start, m.end, m.new)
        )
        print(f"{len(every):5} possible in {file}", flush=True)
        if only:
            chosen += [mutant for mutant in every if mutant.name.startswith(only)]
        else:
            chosen += dice.sample(every, min(len(every), round(share * count / 300)))
    random.Random(seed).shuffle(chosen)
    yield from chosen


def failure(command: list[str], copy: Path, within: float | None = None) -> str:
    """What failed: a test, `timeout`, or nothing."""
    shutil.rmtree(copy / ".hypothesis", ignore_errors=True)
    options = ["--basetemp", str(copy / "tmp")] if "pytest" in command else []
    environment = os.environ | {"PYTHONPATH": str(copy / "src")}
    with (copy / "log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, *command, *options],
            cwd=copy,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            process.wait(within)
        except subprocess.TimeoutExpired:
            return "timeout"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        found = re.findall(r"^(?:(?:FAILED|ERROR) \S*/|AssertionError: )(.*)", log.read(), re.MULTILINE)
    return "" if process.returncode == 0 else found[-1][:100] if found else "it does not run"


def killer(mutant: Mutant, copy: Path, limits: dict[str, float]) -> str:
    for stage, command in CORE[mutant.file][1:]:
        limit = limits[" ".join(command)]
        # Under load a test that waits for other tasks fails now and then; only twice in a row is a kill.
        tries = 2 if stage == "pipeline" else 1
        if all(found := failure(command, copy, limit) for _ in range(tries)):
            return f"{stage}: {found}"
    return ""


def run(mutants: list[Mutant], copy: Path) -> Counter[tuple[str, str]]:
    limits = {}
    for command in {" ".join(command): command for m in mutants for _, command in CORE[m.file][1:]}.values():
        began = time.monotonic()
        failed = failure(command, copy)
        if failed:
            print(*(copy / "log").read_text().splitlines()[-80:], sep="\n")
            raise SystemExit(f"without any mutant, {failed} fails in {' '.join(command)}")
        limits[" ".join(command)] = 15 + 4 * (time.monotonic() - began)
    results = Counter[tuple[str, str]]()
    for number, mutant in enumerate(mutants):
        path, began = copy / "src/rise" / mutant.file, time.monotonic()
        source = path.read_bytes()
        path.write_bytes(mutant.apply(source))
        os.utime(path, (number + 1, number + 1))  # bytecode of the mutant before must not be taken for this one's
        killed_by = killer(mutant, copy, limits)
        path.write_bytes(source)
        results[mutant.file, killed_by.partition(":")[0]] += 1
        verdict = "killed" if killed_by else "survived"
        print(f"{verdict:8} {time.monotonic() - began:5.1f} s  {mutant.name}  {killed_by}", flush=True)
        if not killed_by:
            print(mutant.diff(source), flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="Mutation testing of the protocol's core.")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=20260101)
    parser.add_argument("--only", default="")
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--least", type=float, default=85.0)
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    part, parts = map(int, given.part.split("/"))
    mutants = list(sampled(given.count, given.seed, given.only))[part - 1 :: parts]
    if given.list:
        print("\n".join(sorted(mutant.name for mutant in mutants)))
        return
    with tempfile.TemporaryDirectory(
        prefix="mutants-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None
    ) as directory:
        copy = Path(directory) / "rise"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        imported = ["-c", f"import rise; assert rise.__file__.startswith({str(copy)!r})"]
        assert not failure(imported, copy), "what would be tested is not the copy"
        results = run(mutants, copy)
    for file in CORE:
        print(f"{file:24}", ", ".join(f"{by or 'survived'} {n}" for (f, by), n in sorted(results.items()) if f == file))
    killed = sum(n for (_, by), n in results.items() if by)
    print(f"{killed} of {results.total()} killed: {100 * killed / max(1, results.total()):.1f} %")
    if killed < results.total() * given.least / 100:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
