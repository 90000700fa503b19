"""Texts: how long Telegram takes one to be, and where to cut one that is too long.

Promises: chunks fit, none is blank, and only whitespace at the cuts is lost. What is seen as one character is
not cut in two.

Refuses: to know markup. Whoever cuts a text with markup drops the markup.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from rise.envelope import clean_text

TEXT_UNITS_MAX: Final = 4096
CAPTION_UNITS_MAX: Final = 1024
MARK: Final = "↻ "

# Chunks leave room for the mark, so that saying them again never means splitting them again.
TEXT_CHUNK_UNITS: Final = TEXT_UNITS_MAX - len(MARK)
CAPTION_CHUNK_UNITS: Final = CAPTION_UNITS_MAX - len(MARK)


def split_text(text: str, *, units_max: int = TEXT_CHUNK_UNITS, first_units_max: int | None = None) -> list[str]:
    """The text as chunks that each fit: cut at a paragraph, line, sentence or word where the chunk's second
    half has one, else between two characters as people see them.

    Only whitespace at the cuts is lost. No chunk is blank; of a blank text nothing is left.
    """
    chunks = []
    rest = clean_text(text)
    limit = units_max if first_units_max is None else first_units_max
    while rest.strip():
        end = _fitting(rest, limit)
        if end == len(rest):
            chunks.append(rest)
            break
        cut = _best_cut(rest, end)
        if chunk := rest[:cut].rstrip():
            chunks.append(chunk)
            limit = units_max
        # A line that starts the next chunk keeps its indentation.
        rest = rest[cut:].lstrip("\n") if rest[cut - 1] == "\n" else rest[cut:].lstrip()
    return chunks


def utf16_units(text: str) -> int:
    """How long Telegram takes a text to be."""
    return len(text) + sum(character > "\uffff" for character in text) if not text.isascii() else len(text)


def _fitting(text: str, units_max: int) -> int:
    """How many characters from the start fit."""
    if len(text) <= units_max and utf16_units(text) <= units_max:
        return len(text)
    units = 0
    for at, character in enumerate(text):
        units += 2 if character > "\uffff" else 1
        if units > units_max:
            return at
    return len(text)


_SENTENCE_END: Final = re.compile(r"[.!?…]['\"»”’)\]]*\s|[。！？]")
_SPACE: Final = re.compile(r"\s")


def _best_cut(text: str, end: int) -> int:
    half = end // 2
    for boundary in ("\n\n", "\n"):
        at = text.rfind(boundary, half, end)
        if at >= 0:
            return at + len(boundary)
    for pattern in (_SENTENCE_END, _SPACE):
        # One character more: a word may end exactly where the chunk does.
        found = [match.end() for match in pattern.finditer(text, half, end + 1)]
        ends = [at for at in found if at <= end or text[end].isspace()]
        if ends and not _is_joined(text, at := min(ends[-1], end)):
            return at
    return _between_characters(text, end)


_JOINED_SEARCH_MAX: Final = 64


def _between_characters(text: str, end: int) -> int:
    """The last place up to `end` where nothing that is seen as one is cut in two.

    Good for accents, flags, skin tones and families of emoji. Something longer than any of them is cut.
    """
    for at in range(end, max(end - _JOINED_SEARCH_MAX, 0), -1):
        if not _is_joined(text, at):
            return at
    return max(end, 1)


def _is_joined(text: str, at: int) -> bool:
    before, after = text[at - 1], text[at]
    if (
        before == _JOINER
        or after == _JOINER
        or "\U0001f3fb" <= after <= "\U0001f3ff"
        or "\U000e0020" <= after <= "\U000e007f"
    ):
        return True
    if _is_regional(before) and _is_regional(after):
        start = at
        while start > 0 and _is_regional(text[start - 1]):
            start -= 1
        return (at - start) % 2 == 1
    return unicodedata.category(after) in _COMBINING


_JOINER: Final = "\u200d"
_COMBINING: Final = frozenset({"Mn", "Mc", "Me"})


def _is_regional(character: str) -> bool:
    """Half a flag."""
    return "\U0001f1e6" <= character <= "\U0001f1ff"
