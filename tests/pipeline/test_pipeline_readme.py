"""What the README prints can be copied and runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from rise.testing.installation import Installation

README = Path(__file__).parents[2] / "README.md"


def printed(language: str) -> str:
    """The blocks of that language, one after the other."""
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL))


@pytest.mark.slow
@pytest.mark.req("EMB-1")
async def test_the_readmes_bot_answers_as_it_is_printed(tmp_path: Path):
    bot = tmp_path / "my_bot.py"
    bot.write_text(printed("python"))
    async with (
        Installation(tmp_path / "data", app=bot) as rise,
        httpx.AsyncClient(base_url=rise.url, headers=rise.headers, timeout=60, trust_env=False) as caller,
    ):
        asked = {"userText": "How are you?", "waitForResult": True, "waitTimeoutSeconds": 30}
        answered = (await caller.post("/api/workflows/apply", json=asked)).json()
    assert answered["data"]["result"]["text"] == "Hello stranger, you said: How are you?", rise.log()[-3000:]


@pytest.mark.req("EMB-1")
def test_the_readmes_commands_are_there(tmp_path: Path):
    assert ". .venv/bin/activate" in printed("sh"), "they are found only when it says how"
    named = set(re.findall(r"^rise (\w+)", printed("sh"), re.MULTILINE))
    assert named >= {"serve", "doctor", "tasks", "audit"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RISE_")}
    words = [sys.executable, "-m", "rise", "--help"]
    offered = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, check=True, text=True).stdout
    assert not [command for command in named if not re.search(rf"\b{command}\b", offered)]
