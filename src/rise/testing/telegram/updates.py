"""Updates as Telegram writes them.

Promises: each function returns `{kind: content}`, ready for `add_update`. Message ids, query ids and dates
may be left out; the stand-in fills them in when the update is added. `extra` goes into the content as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

Update = dict[str, Any]

PRIVATE_CHAT: Final = 42
GROUP_CHAT: Final = -100_200_300
CHANNEL_CHAT: Final = -1_001_000_000_001


def user(user_id: int, *, first_name: str = "Ada") -> dict[str, Any]:
    return {"id": user_id, "is_bot": False, "first_name": first_name, "language_code": "en"}


def chat(chat_id: int, *, kind: str | None = None) -> dict[str, Any]:
    """A private chat for a positive id; a group, or a supergroup for the long ones, for a negative one."""
    if chat_id > 0:
        return {"id": chat_id, "type": kind or "private", "first_name": "Ada"}
    usual = "supergroup" if chat_id <= -1_000_000_000_000 else "group"
    return {"id": chat_id, "type": kind or usual, "title": f"Group {chat_id}"}


def message(
    text: str | None = "Hello",
    *,
    chat_id: int = PRIVATE_CHAT,
    user_id: int | None = None,
    message_id: int | None = None,
    date: int | None = None,
    message_thread_id: int | None = None,
    reply_to_message: dict[str, Any] | None = None,
    **extra: Any,
) -> Update:
    """Somebody writes. In a group the sender is user 42 unless said otherwise."""
    sender_id = user_id if user_id is not None else max(chat_id, 0) or PRIVATE_CHAT
    content = _present(
        message_id=message_id,
        **{"from": user(sender_id)},
        chat=chat(chat_id),
        date=date,
        message_thread_id=message_thread_id,
        is_topic_message=True if message_thread_id else None,
        reply_to_message=reply_to_message,
        text=text,
    )
    if text is not None and text.startswith("/"):
        command = text.split()[0]
        content["entities"] = [{"type": "bot_command", "offset": 0, "length": len(command)}]
    return {"message": content | extra}


def edited_message(
    text: str, *, message_id: int, chat_id: int = PRIVATE_CHAT, edit_date: int | None = None, **fields: Any
) -> Update:
    """Somebody changes what they wrote."""
    content = message(text, chat_id=chat_id, message_id=message_id, **fields)["message"]
    return {"edited_message": content | _present(edit_date=edit_date)}


def channel_post(text: str, *, chat_id: int = CHANNEL_CHAT, **extra: Any) -> Update:
    shown = {"id": chat_id, "type": "channel", "title": f"Channel {chat_id}"}
    return {"channel_post": {"chat": shown, "sender_chat": shown, "text": text} | extra}


def edited_channel_post(text: str, *, message_id: int, chat_id: int = CHANNEL_CHAT, **extra: Any) -> Update:
    content = channel_post(text, chat_id=chat_id, message_id=message_id, **extra)["channel_post"]
    return {"edited_channel_post": content}


def album(
    captions: Sequence[str | None] = ("Look", None, None),
    *,
    chat_id: int = PRIVATE_CHAT,
    media_group_id: str = "13579",
    **fields: Any,
) -> list[Update]:
    """Several photos sent at once: as many messages, one group id."""
    return [
        message(
            None,
            chat_id=chat_id,
            media_group_id=media_group_id,
            photo=[{"file_id": f"photo-{at}", "file_unique_id": f"p{at}", "width": 640, "height": 480}],
            **_present(caption=caption),
            **fields,
        )
        for at, caption in enumerate(captions)
    ]


def callback_query(
    data: str = "yes",
    *,
    chat_id: int = PRIVATE_CHAT,
    user_id: int | None = None,
    message_id: int = 1,
    callback_id: str | None = None,
    **extra: Any,
) -> Update:
    """Somebody presses a button under message `message_id`."""
    sender_id = user_id if user_id is not None else max(chat_id, 0) or PRIVATE_CHAT
    content = _present(
        id=callback_id,
        **{"from": user(sender_id)},
        message={"message_id": message_id, "chat": chat(chat_id), "text": "Yes or no?"},
        chat_instance=str(chat_id),
        data=data,
    )
    return {"callback_query": content | extra}


def inline_query(query: str, *, user_id: int = PRIVATE_CHAT, **extra: Any) -> Update:
    return {"inline_query": {"from": user(user_id), "query": query, "offset": ""} | extra}


def shipping_query(*, user_id: int = PRIVATE_CHAT, **extra: Any) -> Update:
    address = {
        "country_code": "IS",
        "state": "",
        "city": "Reykjavík",
        "street_line1": "Laugavegur 1",
        "street_line2": "",
        "post_code": "101",
    }
    content = {"from": user(user_id), "invoice_payload": "order-1", "shipping_address": address}
    return {"shipping_query": content | extra}


def pre_checkout_query(*, user_id: int = PRIVATE_CHAT, **extra: Any) -> Update:
    content = {
        "from": user(user_id),
        "currency": "ISK",
        "total_amount": 1500,
        "invoice_payload": "order-1",
    }
    return {"pre_checkout_query": content | extra}


def my_chat_member(
    status: str = "kicked", *, chat_id: int = PRIVATE_CHAT, bot_id: int = 7_000_000_001, **extra: Any
) -> Update:
    """The bot's own standing changes; `kicked` in a private chat means that the user blocked it."""
    bot = {"id": bot_id, "is_bot": True, "first_name": "Stand-in"}
    new: dict[str, Any] = {"user": bot, "status": status}
    if status == "kicked":
        new["until_date"] = 0
    content = {
        "chat": chat(chat_id),
        "from": user(max(chat_id, 0) or PRIVATE_CHAT),
        "old_chat_member": {"user": bot, "status": "member"},
        "new_chat_member": new,
    }
    return {"my_chat_member": content | extra}


def message_reaction(
    emoji: str = "👍",
    *,
    message_id: int,
    chat_id: int = PRIVATE_CHAT,
    user_id: int = PRIVATE_CHAT,
    **extra: Any,
) -> Update:
    content = {
        "chat": chat(chat_id),
        "message_id": message_id,
        "user": user(user_id),
        "old_reaction": [],
        "new_reaction": [{"type": "emoji", "emoji": emoji}],
    }
    return {"message_reaction": content | extra}


def group_migration(*, chat_id: int = GROUP_CHAT, new_chat_id: int, **fields: Any) -> list[Update]:
    """What both chats see when a group becomes a supergroup."""
    return [
        message(None, chat_id=chat_id, migrate_to_chat_id=new_chat_id, **fields),
        message(None, chat_id=new_chat_id, migrate_from_chat_id=chat_id, **fields),
    ]


def unknown(kind: str = "hologram", **content: Any) -> Update:
    """A kind that no client knows yet."""
    return {kind: content or {"shape": "cube"}}


def _present(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


BUILDERS: Final[dict[str, Callable[..., Update | list[Update]]]] = {
    "message": message,
    "edited_message": edited_message,
    "channel_post": channel_post,
    "edited_channel_post": edited_channel_post,
    "album": album,
    "callback_query": callback_query,
    "inline_query": inline_query,
    "shipping_query": shipping_query,
    "pre_checkout_query": pre_checkout_query,
    "my_chat_member": my_chat_member,
    "message_reaction": message_reaction,
    "group_migration": group_migration,
    "unknown": unknown,
}
"""By the name that the control surface uses."""
