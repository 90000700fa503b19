"""How often a property is tried, on what, and how the work it costs is measured."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES_DEFAULT = 100

_scale = 1.0


def scale_with(examples: int) -> None:
    """`--examples 10000` tries everything a hundred times as often as it is tried without."""
    global _scale
    _scale = examples / EXAMPLES_DEFAULT


def tried(examples: int) -> settings:
    """So many examples: what fits in some seconds, and the same ones in every run, so that nothing is luck.

    With `--examples` they are more, and others in every run; one that fails is printed so that it can be kept.
    """
    return settings(
        max_examples=max(1, round(examples * _scale)),
        derandomize=_scale == 1.0,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )


# --- on what --------------------------------------------------------------------------------------------------

ANY_TEXT = st.text(st.characters(codec=None), max_size=40)
"""Halves of surrogate pairs and control characters included."""

NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from([1 << 31, (1 << 63) - 1, 1 << 63, -(1 << 63) - 1, 1 << 64, 10**30, 1e300, -1e300, 5e-324]),
    st.floats(allow_nan=False, allow_infinity=False),
)

JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)

# What no generator of JSON writes, and every reader of it meets some day.
ODD_TOKENS = st.sampled_from(
    [
        b"NaN", b"-Infinity", b"1e999", b"-0", b"01", b"1.", b"9" * 400, b"9" * 5000, b"null", b"tru", b"'", b"//",
        b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\ud83d\\ude00"', b'"\\u0000"', b'"\x00"', b'"\xff"', b'"\xed\xa0\x80"',
        b"\xef\xbb\xbf", b"[" * 70, b"]" * 70, b'{"a":' * 70, b"{" * 5000, b"[" * 50_000, b'{"a":1,"a":2}', b"\\", b'"',
    ]
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Real bytes, one to four times cut, doubled, overwritten or added to."""
    body = draw(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(body)))
        until = draw(st.integers(at, min(len(body), at + 20)))
        put = draw(ODD_TOKENS | st.binary(max_size=8) | st.sampled_from([b"", body[at:until] * 2, body[:at]]))
        body = body[:at] + put + body[until:]
    return body


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, outermost first."""
    found = [path]
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            found += places(item, (*path, name))
    return found


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], by)
    return copy


@st.composite
def changed(draw: st.DrawFn, whole: st.SearchStrategy[Any], *, by: st.SearchStrategy[Any] = JSON) -> Any:
    """A real value, with something else in one to three of its places."""
    value = draw(whole)
    for _ in range(draw(st.integers(1, 3))):
        value = replaced(value, draw(st.sampled_from(places(value))), draw(by))
    return value


# --- at what cost -----------------------------------------------------------------------------------------------


def lines_run(work: Callable[[], Any]) -> int:
    """How many lines of ours it takes: the same on every machine, unlike its time."""
    count = 0

    def in_frame(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return in_frame

    def on_call(frame: FrameType, event: str, arg: Any) -> Any:
        return in_frame if "/rise/" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def bytes_held(work: Callable[[], Any]) -> int:
    """How much memory it takes at its highest: what is copied again and again shows here."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
