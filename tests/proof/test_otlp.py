"""Spans on their way to a collector: none of them costs another."""

from __future__ import annotations

from typing import Any

import pytest
from otlp_collector import Collector, Exported

from rise import tracing
from rise.connections.otlp import TEXT_CHARACTERS_MAX, OtlpTracing

pytestmark = pytest.mark.req("OPS-4")

HALF = "\ud83d"
"""A lone surrogate: JSON has it, and no encoding."""


async def exported_with(name: str, **said: Any) -> dict[str, Exported]:
    """All that came of a batch of two: `plain`, and one that is about something odd."""
    async with Collector() as collector:
        exporting = OtlpTracing(collector.url, ratio=1.0, process="test", version="1")
        await exporting.start()
        with tracing.span("plain"):
            pass
        with tracing.span(name, attributes=said) as span:
            span.note({"noted": said.get("given")})
            span.fail(str(said.get("given")))
        await exporting.stop()
        return {span.name: span for span in collector.spans}


async def test_a_name_that_no_encoding_has_costs_no_span() -> None:
    assert set(await exported_with(f"chat {HALF}")) == {"plain", "chat ?"}


async def test_an_attribute_that_no_encoding_has_is_shown_with_a_mark() -> None:
    exported = await exported_with("odd", given=f"a{HALF}b")
    assert exported["odd"].attributes == {"given": "a?b", "noted": "a?b", "error.type": "a?b"}


async def test_a_number_that_no_collector_can_read_costs_itself_alone() -> None:
    exported = await exported_with("odd", given=2**70, other=1)
    assert exported["odd"].attributes == {"other": 1, "error.type": str(2**70)}


async def test_a_text_without_end_is_cut_wherever_it_stands() -> None:
    endless, cut = "x" * 1_000_000, "x" * TEXT_CHARACTERS_MAX
    exported = await exported_with(endless, given=endless)
    assert exported[cut].attributes == {"given": cut, "noted": cut, "error.type": cut}
