"""How pages are made: templates that escape whatever they are given, and how times and numbers are written.

Refuses: a name that a template does not have, which would else be an empty place on a page.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any, Final, Protocol

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from rise.clock import iso
from rise.console.sessions import Session

TEXT_CHARS_MAX: Final = 160
"""Of a message in a list."""
RAW_BYTES_SHOWN: Final = 6 * 1024
"""On a page; all of them can be downloaded."""

_STEPS: Final = ((60, 1, "s"), (3600, 60, "min"), (86_400, 3600, "h"), (float("inf"), 86_400, "d"))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("rise.console", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "number": number,
        "rate": rate,
        "lasting": lasting,
        "took": took,
        "excerpt": excerpt,
        "cut": cut,
    }
    environment.globals |= {"when": when, "since": since, "at": at}
    return environment


class Page(Protocol):
    """Makes a page, with what all of them show."""

    def __call__(
        self, request: Request, template: str, session: Session | None, values: Mapping[str, Any], status: int = 200
    ) -> Response: ...


def render(template: str, values: Mapping[str, Any]) -> str:
    return _environment().get_template(template).render(values)


def number(count: float) -> str:
    """`1 234 567`, with spaces that do not break."""
    return f"{count:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def rate(per_second: float) -> str:
    return number(per_second) if per_second >= 100 else f"{per_second:.1f}"


def lasting(seconds: float) -> str:
    """`45 s`, `3 min`, `2.5 h`: the largest unit that fits."""
    seconds = max(0.0, seconds)
    for below, unit, name in _STEPS:
        if seconds < below:
            amount = seconds / unit
            return f"{amount:.1f} {name}" if unit >= 3600 and amount < 10 else f"{amount:.0f} {name}"
    raise AssertionError("the last step has no end")


def took(seconds: float) -> str:
    """The same for what is over, where parts of a second matter."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 10 else lasting(seconds)


def excerpt(text: str, chars_max: int = TEXT_CHARS_MAX) -> str:
    """The beginning, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= chars_max else f"{line[: chars_max - 1]}…"


def cut(text: str, chars_max: int) -> str:
    """The beginning, with its lines."""
    return text if len(text) <= chars_max else f"{text[: chars_max - 1]}…"


def when(moment: datetime, now: datetime) -> Markup:
    """How long ago, or until then; the moment itself for machines, and for whoever points at it."""
    seconds = (now - moment).total_seconds()
    words = "just now" if abs(seconds) < 1 else f"{lasting(seconds)} ago" if seconds > 0 else f"in {lasting(-seconds)}"
    return _time(moment, words)


def at(written: str, now: datetime) -> Markup:
    """The same of a moment as definitions have it; of none, nothing."""
    return when(datetime.fromisoformat(written), now) if written else Markup()


def since(moment: datetime, now: datetime) -> Markup:
    """For how long it has been so; a script lets it go on."""
    return _time(moment, f"for {lasting((now - moment).total_seconds())}", kind="since")


def _time(moment: datetime, words: str, kind: str = "ago") -> Markup:
    written = iso(moment)
    time = Markup('<time datetime="{}" title="{}" data-kind="{}">{}</time>')
    return time.format(written, written.replace("T", " "), kind, words)


def shown_bytes(raw: bytes) -> tuple[str, bool]:
    """Bytes as text, as far as one page can hold them, and whether that is all."""
    head = raw[:RAW_BYTES_SHOWN]
    return head.decode("utf-8", "replace"), len(head) == len(raw)
