"""The message that every contender is sent: a Telegram update of about 1.6 KB, each with a number of its own."""

from __future__ import annotations

import json
from typing import Final

from rise.clock import SystemClock

TOKEN: Final = "110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw0"  # noqa: S105 - of a bot that does not exist
SECRET: Final = "a-secret-of-the-benchmark-only"  # noqa: S105
PATH: Final = "/telegram/webhook"
CHATS: Final = 1000
_FIRST_NUMBER: Final = 1_000_000_000  # so that all have the same length
_NUMBER_MARKS: Final = (b"7770000001", b"7770000002", b"7770000003")


class Updates:
    """Makes bodies and whole requests; only the numbers change, so making one costs next to nothing."""

    def __init__(self, *, chats: int = CHATS) -> None:
        self._chats = chats
        self._template = _template()
        self.body_bytes = len(self.body(0))
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"X-Telegram-Bot-Api-Secret-Token: {SECRET}\r\nContent-Length: {self.body_bytes}\r\n\r\n"
        )
        self._request_template = head.encode() + self._template

    def body(self, number: int) -> bytes:
        return self._template % self._numbers(number)

    def request(self, number: int) -> bytes:
        return self._request_template % self._numbers(number)

    def chat(self, number: int) -> str:
        return str(self._numbers(number)[-1])

    def _numbers(self, number: int) -> tuple[int, int, int, int]:
        person = chat = _FIRST_NUMBER + number % self._chats
        return _FIRST_NUMBER + number, _FIRST_NUMBER + number, person, chat


def _template() -> bytes:
    sentence = "The quick brown fox jumps over the lazy dog and asks the bot what it thinks of that. "
    person = {"id": 7770000003, "is_bot": False, "first_name": "Ada", "username": "ada_l", "language_code": "en"}
    update = {
        "update_id": 7770000001,
        "message": {
            "message_id": 7770000002,
            "from": person,
            "chat": {"id": 7770000003, "first_name": "Ada", "username": "ada_l", "type": "private"},
            "date": int(SystemClock().now().timestamp()),
            "text": (sentence * 12)[:1000],
            "entities": [{"offset": 10 * at, "length": 5, "type": "bold"} for at in range(5)],
        },
    }
    template = json.dumps(update, separators=(",", ":")).encode().replace(b"%", b"%%")
    for mark in _NUMBER_MARKS:  # in the order of `_numbers`; the person's is the chat's, so it is there twice
        template = template.replace(mark, b"%d")
    return template
