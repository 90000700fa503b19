"""A text that is too long for one message: what is lost at its cuts, and where it is never cut."""

from __future__ import annotations

import re
from itertools import accumulate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from properties_trying import lines_run, tried

from rise.channels.telegram import split_text, utf16_units
from rise.channels.telegram.texts import CAPTION_CHUNK_UNITS, TEXT_CHUNK_UNITS
from rise.envelope import clean_text

pytestmark = [pytest.mark.req("OUT-3")]

SEEN_AS_ONE = [
    "e\u0301", "o\u0302\u0323",                                     # accents, one above the other
    "\U0001f1ee\U0001f1f8", "\U0001f1e9\U0001f1ea",                 # flags
    "\U0001f44d\U0001f3fd",                                         # a tone of skin
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",   # a family
    "\U0001f469\U0001f3fd\u200d\u2764\ufe0f\u200d\U0001f468\U0001f3fb",
    "1\ufe0f\u20e3", "\u2764\ufe0f", "\u3002\ufe00",                # what a variation selector changes
    "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",  # a flag of letters nobody sees
    "\u0915\u093f",                                                 # a vowel sign
]  # fmt: skip
"""No longer than what the chunker looks at to find where a character ends."""

WORDS = st.text(alphabet="ab .!?\n\t\r\u3002\u00a0\u2028", max_size=40)
TEXTS = st.lists(WORDS | st.sampled_from(SEEN_AS_ONE) | st.text(max_size=6), max_size=60).map("".join)
LIMITS = st.integers(30, 120)


def gaps(text: str, chunks: list[str]) -> list[str]:
    """What stands in the text before, between and after its chunks, if they are in it in this order."""
    found, at = [], 0
    for chunk in chunks:
        start = text.index(chunk, at)
        found.append(text[at:start])
        at = start + len(chunk)
    return [*found, text[at:]]


@given(TEXTS, LIMITS)
@tried(1500)
def test_between_the_chunks_there_is_nothing_but_whitespace(text: str, limit: int):
    assert not "".join(gaps(clean_text(text), split_text(text, units_max=limit))).strip()


@given(st.text(st.characters(codec=None), max_size=200), LIMITS, st.none() | LIMITS)
@tried(1000)
def test_no_chunk_is_too_long_blank_or_not_a_text(text: str, limit: int, first: int | None):
    chunks = split_text(text, units_max=limit, first_units_max=first)
    for chunk, units_max in zip(chunks, [first or limit] + [limit] * len(chunks), strict=False):
        assert len(chunk.encode("utf-16-le")) == 2 * utf16_units(chunk) <= 2 * units_max
        assert chunk.strip()


@given(st.lists(st.sampled_from([*SEEN_AS_ONE, "x", " ", ". ", "\n", "\u3002"]), max_size=60), LIMITS)
@example(["x"] * 29 + ["\u3002\ufe00"], 30)
@tried(1500)
def test_what_is_seen_as_one_is_in_one_chunk(pieces: list[str], limit: int):
    """Where nothing is lost between two chunks, there is the border of two of the pieces it was made of."""
    text = "".join(pieces)
    borders = set(accumulate(map(len, pieces)))
    chunks = split_text(text, units_max=limit)
    before, *between, _ = gaps(text, chunks) if chunks else ["", ""]
    at = len(before)
    for chunk, gap in zip(chunks, between, strict=False):
        at += len(chunk)
        assert gap or at in borders
        at += len(gap)


@given(TEXTS, LIMITS)
@tried(500)
def test_a_chunk_is_never_cut_again(text: str, limit: int):
    for chunk in split_text(text, units_max=limit):
        assert split_text(chunk, units_max=limit) == [chunk]


@pytest.mark.parametrize("limit", [TEXT_CHUNK_UNITS, CAPTION_CHUNK_UNITS])
@pytest.mark.parametrize(
    "piece",
    [" ", "x", "\n", "\u3002", "\U0001f1ee", "\u0301", "\U0001f468\u200d", "\U0001f600", ". ", "x\n\n"],
    ids=ascii,
)
def test_twice_the_text_is_at_most_about_twice_the_work(piece: str, limit: int):
    once, twice = (
        lines_run(lambda text=piece * count: split_text(text, units_max=limit)) for count in (20_000, 40_000)
    )
    assert twice <= 3 * once, "four times would be the square"


def test_only_whitespace_is_lost_of_a_text_of_many_messages():
    text = "\n\n".join(f"{'word ' * 500}{n}." for n in range(200))
    assert re.sub(r"\s", "", "".join(split_text(text))) == re.sub(r"\s", "", text)
