"""What a chat is called here, and how Telegram is told of it.

Promises: one name for one chat. A chat that the bot answers in a business's name is not the bot's own chat with
the same person, though Telegram gives both the same number; so their histories, lanes and replies stay apart.

Refuses: to say anything in one of the two that was meant for the other.
"""

from __future__ import annotations

import re
from typing import Any, Final

from rise.envelope import is_in_digits


def chat_id_of(chat: str, business_connection_id: str | None) -> str:
    """The name of a chat, made from Telegram's number for it."""
    return chat if business_connection_id is None else f"b{business_connection_id}:{chat}"


def address_of(chat_id: str) -> dict[str, Any]:
    """The chat as parameters of a call. What is no name from here (`@news`) goes as it is."""
    named = _IN_A_BUSINESS.fullmatch(chat_id)
    if named is None:
        return {"chat_id": chat_id}
    return {"chat_id": named["chat"], "business_connection_id": named["connection"]}


def is_in_a_business(chat_id: str) -> bool:
    return _IN_A_BUSINESS.fullmatch(chat_id) is not None


def is_private(chat_id: str) -> bool:
    """Whether it is a chat with one person. Groups and channels have negative numbers, or names."""
    return is_in_digits(str(address_of(chat_id)["chat_id"]))


_IN_A_BUSINESS: Final = re.compile(r"b(?P<connection>.+):(?P<chat>-?[0-9]+)", re.DOTALL)
