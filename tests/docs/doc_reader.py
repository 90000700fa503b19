"""Somebody who reads a page and does what it says: saves its files, types its commands, looks whether it was shown so.

A block is what stands between fences, by its language:

- `python` whose first line is `# NAME.py`, and `json` under a mark `save as NAME`, are saved.
- `sh` is typed into one shell, whose environment goes on from block to block. `rise serve` starts the installation,
  whose address stands for the one of the page.
- `text` is what the commands before it showed; `…` in it is anything.

A mark is a comment of the page above the block: `<!-- docs: … -->`. One that begins with `not run: ` leaves the block
out, and says why. Refuses: a block that it can do nothing with.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rise.testing.installation import Installation

ROOT: Final = Path(__file__).parents[2]
CURL: Final = Path(__file__).with_name("curl.py")
ADDRESS: Final = "http://localhost:8080"
NOT_RUN: Final = "not run: "
SAVE_AS: Final = "save as "
AFTER_A_KILL: Final = "after a kill -9"
BLOCK_SECONDS_MAX: Final = 120.0

_BLOCK: Final = re.compile(r"(?:^<!-- docs: ([^\n]+) -->\n)?^```(\w+)\n(.*?)^```$", re.M | re.S)
_SERVE: Final = re.compile(r"^rise serve\b.*$", re.M)


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    mark: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}, line {self.line}"


def blocks_of(path: Path, *, chapter: str | None = None) -> list[Block]:
    """All of a page, or those of the chapter with that heading."""
    text = path.read_text()
    begins, ends = 0, len(text)
    if chapter is not None:
        begins = text.index(f"\n## {chapter}\n")
        ends = text.index("\n## ", begins + 1)
    return [
        Block(path.name, text.count("\n", 0, found.start(2)) + 1, found[1] or "", found[2], found[3])
        for found in _BLOCK.finditer(text, begins, ends)
    ]


class Reader:
    """In a directory of their own, with what an installation puts on the PATH."""

    def __init__(self, directory: Path, *, means: Mapping[str, str] | None = None) -> None:
        """`means`: what the page says → what it is here, such as the address of a model."""
        # As where nothing is configured: the token is made by the start, as for whoever follows the page.
        self.rise = Installation(directory / ".rise", admin_token=None)
        self._directory = directory
        self._means = {ADDRESS: self.rise.url} | dict(means or {})
        self._environment = self.rise.environment | _commands(directory)
        self._shown = ""

    async def follow(self, block: Block) -> None:
        if block.mark.startswith(NOT_RUN):
            return
        match block.language:
            case "sh":
                await self._type(block)
            case "text":
                self._compare(block)
            case "python" if named := re.match(r"# (\w+\.py)\n", block.text):
                (self._directory / named[1]).write_text(block.text)
            case "json" if block.mark.startswith(SAVE_AS):
                (self._directory / block.mark.removeprefix(SAVE_AS)).write_text(block.text)
            case _:
                raise AssertionError(f"{block}: nobody knows what to do with it; mark it `{NOT_RUN}why`")

    @property
    def shown(self) -> str:
        """By the last block that was typed."""
        return self._shown

    async def leave(self) -> None:
        await self.rise.kill(added=True)

    async def _type(self, block: Block) -> None:
        assert block.mark in ("", AFTER_A_KILL), f"{block}: {block.mark} is no mark of a command"
        before, serve, after = _around_serve(block.text)
        self._shown = await self._run(block, before)
        if serve:
            if block.mark == AFTER_A_KILL:
                await self.rise.kill()
            self.rise.surroundings = {
                name: value for name, value in self._environment.items() if name.startswith("RISE_")
            }
            await self.rise.start()
            self._shown += await self._run(block, after)

    async def _run(self, block: Block, text: str) -> str:
        for said, meant in self._means.items():
            text = text.replace(said, meant)
        kept = self._directory / ".environment"
        shell = await asyncio.create_subprocess_exec(
            *("bash", "-eu", "-c", f"{text}\nenv -0 > {kept}"),
            env=self._environment,
            cwd=self._directory,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(BLOCK_SECONDS_MAX):
                printed, _ = await shell.communicate()
        except TimeoutError:
            shell.kill()
            await shell.wait()
            raise
        assert shell.returncode == 0, f"{block} ended with {shell.returncode}:\n{printed.decode()}"
        lines = kept.read_bytes().decode().split("\0")
        self._environment = dict(line.split("=", 1) for line in lines if line)
        return printed.decode()

    def _compare(self, block: Block) -> None:
        told = [re.escape(" ".join(part.split())) for part in block.text.split("…")]
        shown = " ".join(self._shown.split())
        assert re.search(".*?".join(told), shown), f"{block} tells:\n{block.text}\nand what was shown is:\n{shown}"


def _around_serve(text: str) -> tuple[str, str, str]:
    found = _SERVE.search(text)
    return (text, "", "") if found is None else (text[: found.start()], found[0], text[found.end() :])


def _commands(directory: Path) -> dict[str, str]:
    """What is on the PATH of whoever has installed Rise, and the `activate` that puts it there."""
    commands = directory / ".venv" / "bin"
    commands.mkdir(parents=True)
    for name, words in {"rise": f"{sys.executable} -m rise", "curl": f"{sys.executable} {CURL}"}.items():
        (commands / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (commands / name).chmod(0o755)
    path = f"{commands}:{os.environ['PATH']}"
    (commands / "activate").write_text(f"export PATH={path}\n")
    return {"PATH": path}
