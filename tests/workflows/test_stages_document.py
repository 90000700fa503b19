"""The page about stages says what is there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rise.workflows.stages import read_stages
from rise.workflows.templates import _FILTERS

PAGE = (Path(__file__).parents[2] / "docs" / "stages.md").read_text()


@pytest.mark.req("WFL-2")
def test_its_example_is_a_workflow():
    [example] = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert [stage.name for stage in read_stages(json.loads(example))] == ["look", "route", "ask", "say", "end", "help"]


@pytest.mark.req("SEC-3")
def test_it_names_every_filter():
    listed = re.split(r"Filters:\s", PAGE)[1].partition(".\n")[0]
    assert sorted(re.findall(r"`(\w+)`", listed)) == sorted(_FILTERS)
