"""What a form brings, or the address of a search: few fields, of bearable size.

Refuses: another content type than forms have, and more than a page of ours could send.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qs

from starlette.requests import Request

from rise.api.reading import read_body
from rise.envelope import is_in_digits
from rise.errors import ContentTypeUnsupported, PayloadInvalid

FORM_BYTES_MAX: Final = 64 * 1024
TEXTS_BYTES_MAX: Final = 512 * 1024
"""Of a form with texts in it: forms spell a character with up to twelve."""
FIELDS_MAX: Final = 1_000
SEARCHED_CHARS_MAX: Final = 200
_FORM: Final = "application/x-www-form-urlencoded"


class Form:
    def __init__(self, fields: dict[str, list[str]]) -> None:
        self._fields = fields

    def one(self, name: str) -> str:
        """The field's first value, or nothing."""
        return self._fields.get(name, [""])[0].strip()

    def text(self, name: str) -> str:
        """The same as it was written, with the lines that it was written in: browsers send others."""
        return self._fields.get(name, [""])[0].replace("\r\n", "\n").replace("\r", "\n")

    def has(self, name: str) -> bool:
        return name in self._fields

    def number(self, name: str) -> int | None:
        """A whole number that stands there; None for anything else."""
        digits = self.one(name)
        return int(digits) if is_in_digits(digits) and len(digits) < 10 else None

    def all(self, name: str) -> list[str]:
        return self._fields.get(name, [])


async def read_form(request: Request, bytes_max: int = FORM_BYTES_MAX) -> Form:
    """Raises `ContentTypeUnsupported`, `PayloadInvalid` or `PayloadTooLarge`."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != _FORM:
        raise ContentTypeUnsupported(f"the Content-Type must be {_FORM}", field="Content-Type")
    body = await read_body(request.scope, request.receive, bytes_max=bytes_max)
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=FIELDS_MAX)
    except ValueError as error:
        raise PayloadInvalid("this is not what a form of the console sends", field="body") from error
    return Form(fields)


def searched(request: Request, name: str) -> str:
    """What a search asks for in this field, or nothing."""
    return request.query_params.get(name, "").strip()[:SEARCHED_CHARS_MAX]
