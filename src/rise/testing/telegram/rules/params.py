"""What a caller passed, read as leniently as the real server reads it.

The same parameter arrives as a JSON value, as text of a form, or as JSON inside that text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rise.testing.telegram.rules.refusals import bad_request

ChatId = int | str
"""A number, or the `@name` of a public chat."""


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """A file that came with the call."""

    file_name: str
    content: bytes
    content_type: str


class CallParams:
    """The parameters of one call."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def raw(self, name: str) -> Any:
        return self._values.get(name)

    def text(self, name: str) -> str:
        """The text, or "" if it was left out."""
        value = self._values.get(name)
        if value is None:
            return ""
        return value if isinstance(value, str) else json.dumps(value)

    def integer(self, name: str, default: int = 0) -> int:
        """The number, or the default for anything that is none."""
        value = self._values.get(name)
        try:
            return default if value is None else int(value)
        except (TypeError, ValueError):
            return default

    def boolean(self, name: str) -> bool:
        value = self._values.get(name)
        if isinstance(value, str):
            return value.lower() in {"true", "yes", "1"}
        return bool(value)

    def structure(self, name: str) -> Any:
        """An object or array, given as such or as JSON text; None if it was left out."""
        value = self._values.get(name)
        if not isinstance(value, str):
            return value
        if not value:
            return None
        try:
            return json.loads(value)
        except ValueError as error:
            raise bad_request(f"can't parse {name} JSON object") from error

    def chat_id(self) -> ChatId | None:
        """The chat that the call is about, if it names one."""
        value = self._values.get("chat_id")
        if isinstance(value, str) and value.lstrip("-").isdigit():
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            return None
        return value

    def file(self, name: str) -> UploadedFile | str | None:
        """A file given as such, by the name of another part, or by an id or URL."""
        return self.attached(self._values.get(name))

    def attached(self, given: Any) -> UploadedFile | str | None:
        """What `attach://<part>` stands for; anything else as it is."""
        if isinstance(given, str) and given.startswith("attach://"):
            given = self._values.get(given.removeprefix("attach://"))
        return given if isinstance(given, UploadedFile | str) else None

    def shown(self) -> dict[str, Any]:
        """The parameters as a record keeps them: files by name and size only."""
        return {
            name: {"file_name": value.file_name, "size_bytes": len(value.content)}
            if isinstance(value, UploadedFile)
            else value
            for name, value in self._values.items()
        }
