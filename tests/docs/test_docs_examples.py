"""What the pages tell to type is typed, and shows what they say it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from doc_reader import NOT_RUN, ROOT, Reader, blocks_of

from rise.testing.model_server import ModelStandIn, Say

MODEL = "http://localhost:11434/v1"
TOKEN = "123456789:AAaaBBbbCCccDDddEEeeFFffGGggHHhhIIi"
NOBODY = "127.0.0.1:9"
"""Refuses whoever connects."""
TALKS = """
import rise


@rise.workflow("talks", channels=["telegram"])
async def talks(turn: rise.Turn) -> None:
    await turn.reply("Yes.")
"""


@pytest.mark.slow
@pytest.mark.req("OPS-5", "EMB-1")
async def test_the_quickstart_shows_what_it_says(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    try:
        for block in blocks_of(ROOT / "docs/quickstart.md"):
            await reader.follow(block)
    finally:
        await reader.leave()


@pytest.mark.slow
@pytest.mark.req("OPS-5", "WFL-1", "BND-4", "TMP-3")
async def test_the_tutorial_shows_what_it_says(tmp_path: Path) -> None:
    async with ModelStandIn() as model:
        model.then(Say("Yes, three kinds of it."))
        reader = Reader(tmp_path, means={MODEL: model.url})
        try:
            for block in blocks_of(ROOT / "docs/tutorial.md"):
                await reader.follow(block)
        finally:
            await reader.leave()
    assert model.asked == ["Do you have green tea?"]


@pytest.mark.slow
@pytest.mark.req("OPS-5", "EMB-1")
async def test_the_bot_of_the_readme_answers_and_its_commands_end_well(tmp_path: Path) -> None:
    blocks = blocks_of(ROOT / "README.md", chapter="Your bot")
    assert ". .venv/bin/activate" in blocks[1].text, "commands are found only when it says how"
    reader = Reader(tmp_path)
    try:
        for block in blocks:
            await reader.follow(block)
        answered = json.loads(reader.shown)
    finally:
        await reader.leave()
    assert answered["data"]["result"]["text"] == "Hello stranger, you said: How are you?", reader.rise.log()[-3000:]


@pytest.mark.slow
@pytest.mark.req("OPS-5", "TMP-1")
async def test_a_workflow_is_bound_to_temporal_and_back_as_the_page_says(tmp_path: Path) -> None:
    settings = tmp_path / ".env"
    settings.write_text(f"RISE_APP=my_bot.py\nRISE_TELEGRAM_TOKEN={TOKEN}\nRISE_TELEGRAM_API_BASE=http://{NOBODY}\n")
    (tmp_path / "my_bot.py").write_text(TALKS)
    # Nothing waits for Temporal but what is bound to it, and binding does not ask it.
    reader = Reader(tmp_path, means={"127.0.0.1:7233": NOBODY})
    serving, binding = blocks_of(ROOT / "docs/conversations.md")
    first, _ = re.findall(r"^rise (bindings bind .*?) +#", binding.text, re.M)
    unset = settings.read_text()
    try:
        await reader.follow(serving)
        as_the_page_says = settings.read_text()
        settings.write_text(unset)
        code, refusal = await reader.rise.command(*first.split())
        settings.write_text(as_the_page_says)
        await reader.follow(binding)
        _, shown = await reader.rise.command("bindings", "--json")
    finally:
        await reader.leave()
    assert code and "RISE_TEMPORAL_ADDRESS" in refusal
    [bound] = [one for one in json.loads(shown)["bindings"] if one["channel"] == "telegram"]
    assert (bound["config"]["engine"], bound["bindingVersion"]) == ("native", 3), "there and back"


@pytest.mark.req("OPS-5")
def test_whoever_types_what_the_page_says_of_compose_has_set_all_that_its_files_ask_for() -> None:
    [block] = [one for one in blocks_of(ROOT / "docs/deploy.md") if "docker compose" in one.text]
    files = set(re.findall(r"-f (deploy/compose[.\w]*\.yml)", block.text))
    asked = {name for file in files for name in re.findall(r"\$\{(\w+)", (ROOT / file).read_text())}
    assert len(files) == 3 and asked
    assert asked <= set(re.findall(r"\b([A-Z_]+)=", block.text))


@pytest.mark.req("OPS-5")
@pytest.mark.parametrize("name", ["quickstart.md", "tutorial.md"])
def test_most_of_a_page_is_run_and_what_is_not_says_why(name: str) -> None:
    page = ROOT / "docs" / name
    blocks = blocks_of(page)
    assert len(blocks) == page.read_text().count("\n```") / 2, "and each block of the page is seen"
    left_out = [block.mark.removeprefix(NOT_RUN) for block in blocks if block.mark.startswith(NOT_RUN)]
    assert all(len(why.split()) > 4 for why in left_out)
    assert len(left_out) < len(blocks) / 3
