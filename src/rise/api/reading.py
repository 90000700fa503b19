"""Reading a request's body: bounded in size and time, whatever its headers claim.

Refuses: more bytes than the cap (413), a body that does not arrive in time (408), and encodings (415), because
a small body could then become a large one. What was refused is said on a connection that is then closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from rise.envelope import RAW_BYTES_MAX
from rise.errors import ContentTypeUnsupported, PayloadMalformed, PayloadTooLarge, PayloadTooSlow

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_SECONDS: Final = 10.0
LENGTH_DIGITS_MAX: Final = 20
"""Of a Content-Length, which may be anything: so many say that it is too large, and `int` refuses thousands."""
DISCARD_BYTES_MAX: Final = 16 * RAW_BYTES_MAX
DISCARD_SECONDS: Final = 2.0
"""How much of an oversized body is still taken off the wire: a client that writes before it reads would
otherwise see a broken connection instead of its 413."""


BODY_HAS_ARRIVED: Final = "rise.body_has_arrived"
"""Set in the scope by our server when a body came with its headers, as nearly all do: such a one needs no
deadline, which costs more than all other reading of it."""


async def read_body(scope: Scope, receive: Receive, *, bytes_max: int = RAW_BYTES_MAX) -> bytes:
    """The whole body. Raises `PayloadTooLarge`, `PayloadTooSlow`, or `PayloadMalformed` if it breaks off."""
    if BODY_HAS_ARRIVED in scope:
        return await _read(receive, bytes_max)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read(receive, bytes_max)
    except TimeoutError as error:
        raise PayloadTooSlow(f"the body did not arrive within {BODY_SECONDS:g} s", field="body") from error


async def _read(receive: Receive, bytes_max: int) -> bytes:
    message = await receive()
    whole: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body") and len(whole) <= bytes_max:
        return whole
    body = bytearray()
    while True:
        if message["type"] != "http.request":
            raise PayloadMalformed("the connection was closed before the body was complete", field="body")
        body += message.get("body", b"")
        if len(body) > bytes_max:
            await discard(receive, message)
            raise too_large(bytes_max)
        if not message.get("more_body"):
            return bytes(body)
        message = await receive()


async def discard(receive: Receive, message: Message | None = None) -> None:
    """Take what still comes of an unwanted body off the wire, within reason."""
    try:
        async with asyncio.timeout(DISCARD_SECONDS):
            discarded = 0
            while message is None or (message["type"] == "http.request" and message.get("more_body")):
                if discarded > DISCARD_BYTES_MAX:
                    return
                message = await receive()
                discarded += len(message.get("body", b""))
    except TimeoutError:
        return


async def read_json_body(scope: Scope, receive: Receive, *, bytes_max: int = RAW_BYTES_MAX) -> bytes:
    """The body of a request that says it is JSON. Whether it is, its reader finds out."""
    content_type, encoding, length, expects = _described(scope["headers"])
    if encoding not in ("", "identity"):
        raise ContentTypeUnsupported(f"a body with Content-Encoding {encoding[:40]!r} is not read; send it plain",
                                     field="Content-Encoding")  # fmt: skip
    if content_type != "application/json":
        raise ContentTypeUnsupported("the Content-Type must be application/json", field="Content-Type")
    if length is not None and length > bytes_max:
        if not expects:
            await discard(receive)
        raise too_large(bytes_max)
    return await read_body(scope, receive, bytes_max=bytes_max)


def too_large(bytes_max: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body has more than {bytes_max} bytes", field="body")


def _described(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, str, int | None, bool]:
    content_type, encoding, length, expects = "", "", None, False
    for name, value in headers:
        if name == b"content-type":
            content_type = value.decode("latin-1").partition(";")[0].strip().lower()
        elif name == b"content-encoding":
            encoding = value.decode("latin-1").strip().lower()
        elif name == b"content-length" and value.isdigit():
            length = int(value[:LENGTH_DIGITS_MAX])
        elif name == b"expect":
            expects = True  # the client waits to hear whether it should send at all
    return content_type, encoding, length, expects
