"""The chats of one bot: what stands in them, and which of them it cannot write to.

Promises: every chat exists unless said otherwise; message ids count up within a chat, people's and the bot's
together; what the bot sent can be edited and deleted, and what is gone cannot be replied to.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rise.testing.telegram.rules.params import CallParams, ChatId
from rise.testing.telegram.rules.refusals import bad_request, blocked_by_user, forbidden, migrated


@dataclass(slots=True)
class ChatMessage:
    """A message as it stands in its chat now."""

    message_id: int
    chat_id: ChatId
    text: str
    content: dict[str, Any]
    is_from_bot: bool


@dataclass(frozen=True, slots=True)
class SentMessage:
    """A message that the server committed: from then on a person could see it."""

    bot_id: int
    chat_id: ChatId
    message_id: int
    method: str
    text: str
    params: dict[str, Any]
    at: float


@dataclass(slots=True)
class ChatConditions:
    """What is wrong with which chat, until it is taken back."""

    blocked: set[ChatId] = field(default_factory=set)
    deactivated: set[ChatId] = field(default_factory=set)
    missing: set[ChatId] = field(default_factory=set)
    migrated: dict[ChatId, int] = field(default_factory=dict)


@dataclass(slots=True)
class Chats:
    conditions: ChatConditions = field(default_factory=ChatConditions)
    _messages: dict[ChatId, dict[int, ChatMessage]] = field(default_factory=dict)
    _next_message_id: dict[ChatId, int] = field(default_factory=dict)

    def writable(self, params: CallParams) -> ChatId:
        """The chat that the call names, if the bot may write there."""
        chat_id = params.chat_id()
        if chat_id is None:
            raise bad_request("chat_id is empty")
        if isinstance(chat_id, str) and not chat_id.startswith("@"):
            raise bad_request("chat not found")
        if chat_id in self.conditions.missing:
            raise bad_request("chat not found")
        if chat_id in self.conditions.migrated:
            raise migrated(self.conditions.migrated[chat_id])
        if chat_id in self.conditions.blocked:
            raise blocked_by_user()
        if chat_id in self.conditions.deactivated:
            raise forbidden("user is deactivated")
        return chat_id

    def next_message_id(self, chat_id: ChatId) -> int:
        return self._next_message_id.get(chat_id, 1)

    def put(self, message: ChatMessage) -> None:
        self._messages.setdefault(message.chat_id, {})[message.message_id] = message
        following = max(self.next_message_id(message.chat_id), message.message_id + 1)
        self._next_message_id[message.chat_id] = following

    def put_received(self, content: Mapping[str, Any]) -> None:
        """Remember a message that people wrote, so that it can be replied to."""
        chat = content.get("chat")
        message_id = content.get("message_id")
        if isinstance(chat, Mapping) and isinstance(message_id, int):
            text = str(content.get("text", ""))
            self.put(ChatMessage(message_id, chat["id"], text, dict(content), is_from_bot=False))

    def find(self, chat_id: ChatId, message_id: int) -> ChatMessage | None:
        return self._messages.get(chat_id, {}).get(message_id)

    def delete(self, chat_id: ChatId, message_id: int) -> bool:
        return self._messages.get(chat_id, {}).pop(message_id, None) is not None

    def visible(self, chat_id: ChatId) -> list[ChatMessage]:
        """What stands in the chat, oldest first, with edits done and deletions gone."""
        return [message for _, message in sorted(self._messages.get(chat_id, {}).items())]

    def replied_to(self, params: CallParams, chat_id: ChatId) -> ChatMessage | None:
        """The message that a call replies to; refuses one that is gone unless the call allows that."""
        reply = params.structure("reply_parameters") or {}
        message_id = reply.get("message_id") or params.integer("reply_to_message_id")
        if not message_id:
            return None
        message = self.find(reply.get("chat_id") or chat_id, int(message_id))
        options = CallParams(reply) if "reply_parameters" in params else params
        if message is None and not options.boolean("allow_sending_without_reply"):
            raise bad_request("message to be replied not found")
        return message


def chat_shown(chat_id: ChatId) -> dict[str, Any]:
    """A chat as messages show it. Numbers say the kind, as the real ones do."""
    if isinstance(chat_id, str):
        number = -1_000_000_000_000 - zlib.crc32(chat_id.encode())
        return {"id": number, "type": "channel", "title": chat_id, "username": chat_id.removeprefix("@")}
    if chat_id > 0:
        return {"id": chat_id, "type": "private", "first_name": "Person"}
    kind = "supergroup" if chat_id <= -1_000_000_000_000 else "group"
    return {"id": chat_id, "type": kind, "title": f"Group {chat_id}"}
