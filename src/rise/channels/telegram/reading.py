"""Reading: JSON as Telegram writes it.

Promises: half a surrogate pair, which JSON allows as an escape though no encoding can hold it, is read as `?`;
everything else is read strictly. The bytes stay as they came, and so do the parts of them that are handed out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

import msgspec

T = TypeVar("T")

# Every escape is looked at, from the left: only so is it known which backslash begins one.
_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


def read_json(body: bytes, as_type: type[T]) -> T:
    """Raises `msgspec.MsgspecError`, `UnicodeDecodeError` or `RecursionError` if it is no JSON, or none of the type."""
    try:
        return msgspec.json.decode(body, type=as_type)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        whole = without_halves(body)
        if whole == body:
            raise
        return msgspec.json.decode(whole, type=as_type)


def without_halves(body: bytes) -> bytes:
    """As long as before, and everything in its place."""
    return _ESCAPE.sub(lambda found: rb"\u003f" if found["half"] else found[0], body)


def parts_of(body: bytes, parts: Sequence[msgspec.Raw]) -> Iterator[bytes]:
    """What was read from the body as `msgspec.Raw`, one after the other, as it stands in the body itself."""
    whole, at = without_halves(body), 0
    for part in parts:
        start = whole.index(without_halves(bytes(part)), at)
        at = start + len(bytes(part))
        yield body[start:at]
