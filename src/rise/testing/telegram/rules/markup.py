"""Texts: how long they are, and what their markup means.

Promises: lengths and offsets count UTF-16 units, as clients do; markup that the real server would refuse is
refused here with its words. Rare corners (custom emoji, dates, expandable quotes) are read as plain spans.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from typing import Any, Final

from rise.testing.telegram.rules.refusals import CallRefused, bad_request

_HTML_TAGS: Final[dict[str, str]] = {
    "b": "bold",
    "strong": "bold",
    "i": "italic",
    "em": "italic",
    "u": "underline",
    "ins": "underline",
    "s": "strikethrough",
    "strike": "strikethrough",
    "del": "strikethrough",
    "span": "spoiler",
    "tg-spoiler": "spoiler",
    "tg-emoji": "custom_emoji",
    "a": "text_link",
    "code": "code",
    "pre": "pre",
    "blockquote": "blockquote",
}
_HTML_TAG: Final = re.compile(r"""<(/?)([a-zA-Z0-9-]*)((?:[^>"']|"[^"]*"|'[^']*')*)>""")
_HTML_ENTITY: Final = re.compile(r"&(?:lt|gt|amp|quot|#\d+|#[xX][0-9a-fA-F]+);")
_HREF: Final = re.compile(r"""href\s*=\s*["']?([^"'\s>]*)""")

_LEGACY_DELIMITERS: Final[dict[str, str]] = {"_": "italic", "*": "bold", "`": "code", "```": "pre"}
_V2_DELIMITERS: Final[dict[str, str]] = {
    "```": "pre",
    "__": "underline",
    "||": "spoiler",
    "_": "italic",
    "*": "bold",
    "~": "strikethrough",
    "`": "code",
}
_V2_RESERVED: Final = frozenset("_*[]()~`>#+-=|{}.!")
_V2_NAMES: Final[dict[str, str]] = {"pre": "PreCode", "text_link": "TextUrl"}
_LINK_TARGET: Final = re.compile(r"\((?:\\.|[^()\\])*\)")


@dataclass(frozen=True, slots=True)
class FormattedText:
    """A text as people see it, and where its formatting is."""

    text: str
    entities: tuple[dict[str, Any], ...] = ()


@dataclass(slots=True)
class _Builder:
    """The visible text while it is being read from markup."""

    parts: list[str] = field(default_factory=list)
    units: int = 0
    entities: list[dict[str, Any]] = field(default_factory=list)
    open: list[_Open] = field(default_factory=list)

    def write(self, text: str) -> None:
        self.parts.append(text)
        self.units += utf16_units(text)

    def start(self, kind: str, name: str, source_at: int, url: str = "") -> None:
        self.open.append(_Open(kind, name, source_at, self.units, url))

    def end(self) -> _Open:
        opened = self.open.pop()
        if self.units > opened.units:
            entity = {"type": opened.kind, "offset": opened.units, "length": self.units - opened.units}
            if opened.url:
                entity["url"] = opened.url
            self.entities.append(entity)
        return opened

    def result(self) -> FormattedText:
        self.entities.sort(key=lambda entity: (entity["offset"], -entity["length"]))
        return FormattedText("".join(self.parts), tuple(self.entities))


@dataclass(frozen=True, slots=True)
class _Open:
    kind: str
    name: str
    source_at: int
    units: int
    url: str


def utf16_units(text: str) -> int:
    return len(text) + sum(1 for character in text if ord(character) > 0xFFFF)


def parse(text: str, parse_mode: str) -> FormattedText:
    """Read markup as the mode says; refuse what cannot be read."""
    match parse_mode.lower():
        case "":
            return FormattedText(text)
        case "html":
            return _parse_html(text)
        case "markdown":
            return _parse_legacy_markdown(text)
        case "markdownv2":
            return _MarkdownV2(text).parse()
    raise bad_request("unsupported parse_mode")


def _unreadable(why: str) -> CallRefused:
    return bad_request(f"can't parse entities: {why}")


def _byte_offset(text: str, index: int) -> int:
    return len(text[:index].encode("utf-8", "surrogatepass"))


def _parse_html(text: str) -> FormattedText:
    builder = _Builder()
    at = 0
    while at < len(text):
        if text[at] == "<":
            tag = _HTML_TAG.match(text, at)
            if tag is None:
                raise _unreadable(f"Unclosed start tag at byte offset {_byte_offset(text, at)}")
            _read_html_tag(builder, tag, _byte_offset(text, at))
            at = tag.end()
        elif entity := _HTML_ENTITY.match(text, at):
            builder.write(html.unescape(entity[0]))
            at = entity.end()
        else:
            builder.write(text[at])
            at += 1
    if builder.open:
        raise _unreadable(f'Can\'t find end tag corresponding to start tag "{builder.open[-1].name}"')
    return builder.result()


def _read_html_tag(builder: _Builder, tag: re.Match[str], offset: int) -> None:
    is_end, name = bool(tag[1]), tag[2].lower()
    if not is_end:
        if name not in _HTML_TAGS:
            raise _unreadable(f'Unsupported start tag "{name}" at byte offset {offset}')
        if name == "span" and "tg-spoiler" not in tag[3]:
            raise _unreadable(f'Tag "span" must have class "tg-spoiler" at byte offset {offset}')
        link = _HREF.search(tag[3]) if name == "a" else None
        builder.start(_HTML_TAGS[name], name, offset, html.unescape(link[1]) if link else "")
        return
    if not builder.open:
        raise _unreadable(f"Unexpected end tag at byte offset {offset}")
    expected = builder.open[-1].name
    if name not in ("", expected):
        raise _unreadable(f'Unmatched end tag at byte offset {offset}, expected "</{expected}>", found "</{name}>"')
    builder.end()


def _parse_legacy_markdown(text: str) -> FormattedText:
    """The older Markdown: entities do not nest, and a backslash protects only the four delimiters."""
    builder = _Builder()
    at = 0
    while at < len(text):
        character = text[at]
        if character == "\\" and text[at + 1 : at + 2] and text[at + 1] in "_*`[":
            builder.write(text[at + 1])
            at += 2
        elif character in "_*`[":
            at = _read_legacy_entity(builder, text, at)
        else:
            builder.write(character)
            at += 1
    return builder.result()


def _read_legacy_entity(builder: _Builder, text: str, at: int) -> int:
    delimiter = "```" if text.startswith("```", at) else text[at]
    closing = "]" if delimiter == "[" else delimiter
    start = at + len(delimiter)
    end = text.find(closing, start)
    if end < 0:
        offset = _byte_offset(text, at)
        raise _unreadable(f"Can't find end of the entity starting at byte offset {offset}")
    after = end + len(closing)
    if delimiter != "[":
        builder.start(_LEGACY_DELIMITERS[delimiter], delimiter, at)
    elif (target_end := text.find(")", after)) > 0 and text.startswith("(", after):
        builder.start("text_link", delimiter, at, text[after + 1 : target_end])
        after = target_end + 1
    else:
        builder.write(text[start:end])
        return after
    builder.write(text[start:end])
    builder.end()
    return after


@dataclass(slots=True)
class _MarkdownV2:
    """The newer Markdown: entities nest, and every special character that means itself is escaped."""

    source: str
    at: int = 0
    builder: _Builder = field(default_factory=_Builder)

    def parse(self) -> FormattedText:
        while self.at < len(self.source):
            self._read_next()
        if self.builder.open and self.builder.open[-1].kind == "blockquote":
            self.builder.end()
        if self.builder.open:
            opened = self.builder.open[-1]
            name = _V2_NAMES.get(opened.kind, opened.kind.capitalize())
            offset = _byte_offset(self.source, opened.source_at)
            raise _unreadable(f"Can't find end of {name} entity at byte offset {offset}")
        return self.builder.result()

    def _read_next(self) -> None:
        character = self.source[self.at]
        following = self.source[self.at + 1 : self.at + 2]
        inside = self.builder.open[-1].kind if self.builder.open else ""
        if character == "\\" and following and 1 <= ord(following) <= 126:
            self._take(following, 2)
        elif inside in {"code", "pre"}:
            self._read_within_code(self.builder.open[-1].name)
        elif character == "\n" and inside == "blockquote" and following != ">":
            self.builder.end()
            self._take(character)
        elif character not in _V2_RESERVED:
            self._take(character)
        elif character == ">" and (self.at == 0 or self.source[self.at - 1] == "\n"):
            self._start_quoted_line(inside)
        elif character == "[" or (character == "!" and following == "["):
            self.builder.start("text_link", "[", self.at)
            self.at += 1 if character == "[" else 2
        elif character == "]" and inside == "text_link":
            self._end_link()
        else:
            self._toggle(character)

    def _take(self, text: str, length: int = 1) -> None:
        self.builder.write(text)
        self.at += length

    def _read_within_code(self, delimiter: str) -> None:
        if self.source.startswith(delimiter, self.at):
            self.builder.end()
            self.at += len(delimiter)
        else:
            self._take(self.source[self.at])

    def _start_quoted_line(self, inside: str) -> None:
        if inside != "blockquote":
            self.builder.start("blockquote", ">", self.at)
        self.at += 1

    def _end_link(self) -> None:
        self.at += 1
        target = _LINK_TARGET.match(self.source, self.at)
        opened = self.builder.open.pop()
        url = re.sub(r"\\(.)", r"\1", target[0][1:-1]) if target else ""
        self.builder.open.append(_Open(opened.kind, opened.name, opened.source_at, opened.units, url))
        self.builder.end()
        self.at = target.end() if target else self.at

    def _toggle(self, character: str) -> None:
        for delimiter, kind in _V2_DELIMITERS.items():
            if not self.source.startswith(delimiter, self.at):
                continue
            if self.builder.open and self.builder.open[-1].kind == kind:
                self.builder.end()
            else:
                self.builder.start(kind, delimiter, self.at)
            self.at += len(delimiter)
            return
        raise _unreadable(f"Character '{character}' is reserved and must be escaped with the preceding '\\'")
