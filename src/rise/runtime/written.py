"""Stages as a person writes them into a page: JSON, as the API takes it, read and laid out for people.

Promises: what is written out is read back as it was. Characters that turn the direction of text, or cannot be seen,
are written as JSON spells them, so that nothing stands elsewhere than it seems to.

Refuses: what is no JSON, with the line where it goes wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from rise.channels.http import read_json
from rise.envelope import encode_json, json_name
from rise.errors import PayloadInvalid, PayloadMalformed

FIELD: Final = "stages"
_UNSEEN: Final = re.compile(r"[\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
"""Beside what JSON itself spells. Not what joins letters and emoji: that is part of how they are written."""
_STAGE: Final = re.compile(r"stages\[(\d+)\]")
_BLANK: Final = " \t\r\n,"


def stages_written(text: str) -> list[Any]:
    """Raises `PayloadInvalid`."""
    value = json_written(text, FIELD)
    if type(value) is not list:
        raise PayloadInvalid(f"this is {json_name(value)}; stages are a list, [ … ]", field=FIELD)
    return value


def json_written(text: str, field: str) -> Any:
    """Raises `PayloadInvalid` with the field, and the line where it is no JSON."""
    try:
        return read_json(text.encode("utf-8", "replace"))
    except PayloadMalformed as error:
        raise PayloadInvalid(f"this is no JSON{_where(error.__cause__)}", field=field) from error
    except PayloadInvalid as error:
        raise PayloadInvalid(error.public_message.replace("the body", "it"), field=field) from error


def stages_laid_out(stages: Any) -> str:
    """For reading and writing, one field on each line."""
    # Once through our own encoding: old versions may hold halves of characters.
    return unseen_spelled(json.dumps(json.loads(encode_json(stages)), indent=2, ensure_ascii=False))


def unseen_spelled(text: str) -> str:
    """With those characters as JSON spells them that nobody sees."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def line_of(text: str, field: str | None) -> int | None:
    """Where the stage begins that a field such as `stages[2].url` is of, from 1. None: that cannot be said."""
    found = _STAGE.match(field or "")
    if found is None:
        return None
    wanted = int(found[1])
    starts = (start for at, start in enumerate(_starts(text)) if at == wanted)
    start = next(starts, None)
    return None if start is None else text.count("\n", 0, start) + 1


def unseen_in(text: str) -> list[str]:
    """The characters in it that nobody sees, each with its line, such as `U+202E in line 3`; the first ten."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        found += [f"U+{ord(one):04X} in line {number}" for one in _UNSEEN.findall(line)]
    return list(dict.fromkeys(found))[:10]


def _where(cause: BaseException | None) -> str:
    if isinstance(cause, json.JSONDecodeError):
        return f": {cause.msg} in line {cause.lineno}, column {cause.colno}"
    return ""


def _starts(text: str) -> Iterator[int]:
    """Where each entry of the list begins, as far as it is one."""
    decoder, at = json.JSONDecoder(), text.find("[") + 1
    while 0 < at < len(text):
        while at < len(text) and text[at] in _BLANK:
            at += 1
        if at == len(text) or text[at] == "]":
            return
        yield at
        try:
            _, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return
