"""Sending and editing messages: the checks before, the commit, and the message that comes back.

Promises: a message is in `bot.sent` if and only if it was committed; a refused one left no trace and did
not count against the send limits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from rise.testing.telegram.rules.chats import ChatMessage, SentMessage, chat_shown
from rise.testing.telegram.rules.markup import FormattedText, parse, utf16_units
from rise.testing.telegram.rules.params import CallParams, ChatId, UploadedFile
from rise.testing.telegram.rules.refusals import bad_request

if TYPE_CHECKING:
    from rise.testing.telegram.rules.bot import Bot

TEXT_UNITS_MAX: Final = 4096
CAPTION_UNITS_MAX: Final = 1024
ALBUM_COUNT_MAX: Final = 10

_FILE_SHAPES: Final[dict[str, dict[str, Any]]] = {
    "photo": {"width": 640, "height": 480},
    "document": {},
    "audio": {"duration": 1},
    "voice": {"duration": 1},
    "video": {"width": 640, "height": 480, "duration": 1},
    "animation": {"width": 640, "height": 480, "duration": 1},
    "video_note": {"length": 240, "duration": 1},
    "sticker": {"type": "regular", "width": 512, "height": 512, "is_animated": False, "is_video": False},
}


@dataclass(frozen=True, slots=True)
class _Draft:
    """A message that passed every check and only has to be committed."""

    content: dict[str, Any]
    text: str = ""


@dataclass(frozen=True, slots=True)
class _Sending:
    """What a call says about a message besides its content."""

    chat_id: ChatId
    params: CallParams
    method: str
    now: float
    surroundings: dict[str, Any] = field(default_factory=dict)


def send_message(bot: Bot, params: CallParams, now: float) -> Any:
    return _send(bot, params, now, "sendMessage", lambda: [_text_draft(params)])[0]


def send_file(method: str, kind: str) -> Callable[[Bot, CallParams, float], Any]:
    """A method that sends one file."""

    def send(bot: Bot, params: CallParams, now: float) -> Any:
        return _send(bot, params, now, method, lambda: [_file_draft(bot, params, kind, params.file(kind))])[0]

    return send


def send_content(method: str, read: Callable[[CallParams], dict[str, Any]]) -> Callable[..., Any]:
    """A method that sends something made of its parameters alone."""

    def send(bot: Bot, params: CallParams, now: float) -> Any:
        return _send(bot, params, now, method, lambda: [_Draft(read(params))])[0]

    return send


def send_media_group(bot: Bot, params: CallParams, now: float) -> Any:
    return _send(bot, params, now, "sendMediaGroup", lambda: _album_drafts(bot, params))


def forward_message(bot: Bot, params: CallParams, now: float) -> Any:
    return _send(bot, params, now, "forwardMessage", lambda: [_repeated_draft(bot, params)])[0]


def copy_message(bot: Bot, params: CallParams, now: float) -> Any:
    [message] = _send(bot, params, now, "copyMessage", lambda: [_repeated_draft(bot, params)])
    return {"message_id": message["message_id"]}


def edit_message_text(bot: Bot, params: CallParams, now: float) -> Any:
    if "inline_message_id" in params:
        return True
    message = _editable(bot, params)
    return _edit(message, params, _text_draft(params), now)


def edit_message_caption(bot: Bot, params: CallParams, now: float) -> Any:
    if "inline_message_id" in params:
        return True
    message = _editable(bot, params)
    return _edit(message, params, _caption_draft(params, {}), now)


def edit_message_reply_markup(bot: Bot, params: CallParams, now: float) -> Any:
    if "inline_message_id" in params:
        return True
    message = _editable(bot, params)
    return _edit(message, params, _Draft({}, message.text), now)


# --- the one commit ---------------------------------------------------------------------------------------


def _send(
    bot: Bot, params: CallParams, now: float, method: str, read: Callable[[], list[_Draft]]
) -> list[dict[str, Any]]:
    """Check everything, count it against the limits, then commit."""
    chat_id = bot.chats.writable(params)
    drafts = read()
    surroundings = _surroundings(bot, params, chat_id)
    bot.limits.take(chat_id, now, message_count=len(drafts))
    sending = _Sending(chat_id, params, method, now, surroundings)
    return [_commit(bot, draft, sending) for draft in drafts]


def _commit(bot: Bot, draft: _Draft, sending: _Sending) -> dict[str, Any]:
    message_id = bot.chats.next_message_id(sending.chat_id)
    message = {
        "message_id": message_id,
        "from": bot.user,
        "chat": chat_shown(sending.chat_id),
        "date": int(sending.now),
        **sending.surroundings,
        **draft.content,
    }
    bot.chats.put(ChatMessage(message_id, sending.chat_id, draft.text, message, is_from_bot=True))
    bot.sent.append(
        SentMessage(
            bot_id=bot.bot_id,
            chat_id=sending.chat_id,
            message_id=message_id,
            method=sending.method,
            text=draft.text,
            params=sending.params.shown(),
            at=sending.now,
        )
    )
    return message


def _surroundings(bot: Bot, params: CallParams, chat_id: ChatId) -> dict[str, Any]:
    """What a message has whatever its content: thread, quoted message, buttons."""
    surroundings: dict[str, Any] = {}
    if thread_id := params.integer("message_thread_id"):
        surroundings |= {"message_thread_id": thread_id, "is_topic_message": True}
    replied_to = bot.chats.replied_to(params, chat_id)
    if replied_to is not None:
        surroundings["reply_to_message"] = {
            name: value for name, value in replied_to.content.items() if name != "reply_to_message"
        }
    return surroundings | _inline_keyboard(params)


def _inline_keyboard(params: CallParams) -> dict[str, Any]:
    markup = params.structure("reply_markup")
    if markup is not None and not isinstance(markup, dict):
        raise bad_request("object expected as reply markup")
    return {"reply_markup": markup} if markup and "inline_keyboard" in markup else {}


# --- drafts -----------------------------------------------------------------------------------------------


def _text_draft(params: CallParams) -> _Draft:
    formatted = _formatted(params.text("text"), params, "entities")
    if not formatted.text.strip():
        raise bad_request("message text is empty")
    if utf16_units(formatted.text) > TEXT_UNITS_MAX:
        raise bad_request("message is too long")
    return _Draft(_with_entities("text", formatted, "entities"), formatted.text)


def _caption_draft(params: CallParams, content: dict[str, Any]) -> _Draft:
    formatted = _formatted(params.text("caption"), params, "caption_entities")
    if utf16_units(formatted.text) > CAPTION_UNITS_MAX:
        raise bad_request("message caption is too long")
    if formatted.text:
        content = {**content, **_with_entities("caption", formatted, "caption_entities")}
    return _Draft(content, formatted.text)


def _formatted(text: str, params: CallParams, entities_name: str) -> FormattedText:
    formatted = parse(text, params.text("parse_mode"))
    given = params.structure(entities_name)
    if given and not params.text("parse_mode"):
        return FormattedText(text, tuple(given))
    return formatted


def _with_entities(name: str, formatted: FormattedText, entities_name: str) -> dict[str, Any]:
    content: dict[str, Any] = {name: formatted.text}
    if formatted.entities:
        content[entities_name] = list(formatted.entities)
    return content


def _file_draft(bot: Bot, params: CallParams, kind: str, given: UploadedFile | str | None) -> _Draft:
    # The caption is checked before the file is kept, so that a refused call keeps nothing.
    draft = _caption_draft(params, {})
    return _Draft({kind: _file_content(bot, kind, given), **draft.content}, draft.text)


def _file_content(bot: Bot, kind: str, given: UploadedFile | str | None) -> Any:
    shape = _FILE_SHAPES.get(kind, {})
    if isinstance(given, UploadedFile):
        stored = bot.files.put(given, folder=f"{kind}s")
        described = {**stored.described(), **shape}
        if kind in {"document", "audio", "video", "animation"}:
            described |= {"file_name": stored.file_name, "mime_type": stored.content_type}
    elif given:
        described = {**bot.files.described(given), **shape}
    else:
        raise bad_request(f"there is no {kind.replace('_', ' ')} in the request")
    return [described] if kind == "photo" else described


def _album_drafts(bot: Bot, params: CallParams) -> list[_Draft]:
    items = params.structure("media")
    if not isinstance(items, list) or not 1 <= len(items) <= ALBUM_COUNT_MAX:
        raise bad_request("wrong number of items in the album: 1 to 10 are possible")
    group_id = str(bot.dice.randint(10**16, 10**17))
    drafts = []
    for item in items:
        given = params.attached(item.get("media"))
        draft = _file_draft(bot, CallParams(item), str(item.get("type", "document")), given)
        drafts.append(_Draft({"media_group_id": group_id, **draft.content}, draft.text))
    return drafts


def _repeated_draft(bot: Bot, params: CallParams) -> _Draft:
    source = CallParams({"chat_id": params.raw("from_chat_id")}).chat_id()
    message = bot.chats.find(source, params.integer("message_id")) if source is not None else None
    if message is None:
        raise bad_request("message to copy not found")
    not_content = {"message_id", "from", "chat", "date", "edit_date", "reply_to_message", "reply_markup"}
    content = {name: value for name, value in message.content.items() if name not in not_content}
    return _Draft(content, message.text)


# --- editing ----------------------------------------------------------------------------------------------


def _editable(bot: Bot, params: CallParams) -> ChatMessage:
    chat_id = bot.chats.writable(params)
    message = bot.chats.find(chat_id, params.integer("message_id"))
    if message is None:
        raise bad_request("message to edit not found")
    if not message.is_from_bot:
        raise bad_request("message can't be edited")
    return message


def _edit(message: ChatMessage, params: CallParams, draft: _Draft, now: float) -> dict[str, Any]:
    kept = {
        name: value
        for name, value in message.content.items()
        if name not in {"reply_markup", "edit_date"}
        and not (draft.content and name in {"entities", "caption_entities"})
    }
    edited = {**kept, **draft.content, **_inline_keyboard(params)}
    if edited == {name: value for name, value in message.content.items() if name != "edit_date"}:
        raise bad_request(
            "message is not modified: specified new message content and reply markup are exactly the same as "
            "a current content and reply markup of the message"
        )
    message.content = {**edited, "edit_date": int(now)}
    message.text = draft.text
    return message.content


# --- what things look like --------------------------------------------------------------------------------


def _location(params: CallParams) -> dict[str, Any]:
    return {
        "location": {
            "latitude": float(params.text("latitude") or 0),
            "longitude": float(params.text("longitude") or 0),
        }
    }


def _venue(params: CallParams) -> dict[str, Any]:
    place = _location(params)
    return {**place, "venue": {**place, "title": params.text("title"), "address": params.text("address")}}


def _contact(params: CallParams) -> dict[str, Any]:
    return {
        "contact": {
            "phone_number": params.text("phone_number"),
            "first_name": params.text("first_name"),
        }
    }


def _dice(params: CallParams) -> dict[str, Any]:
    return {"dice": {"emoji": params.text("emoji") or "🎲", "value": 4}}


SENDS: Final[dict[str, Callable[..., Any]]] = {
    "sendMessage": send_message,
    "sendPhoto": send_file("sendPhoto", "photo"),
    "sendDocument": send_file("sendDocument", "document"),
    "sendAudio": send_file("sendAudio", "audio"),
    "sendVoice": send_file("sendVoice", "voice"),
    "sendVideo": send_file("sendVideo", "video"),
    "sendAnimation": send_file("sendAnimation", "animation"),
    "sendVideoNote": send_file("sendVideoNote", "video_note"),
    "sendSticker": send_file("sendSticker", "sticker"),
    "sendMediaGroup": send_media_group,
    "sendLocation": send_content("sendLocation", _location),
    "sendVenue": send_content("sendVenue", _venue),
    "sendContact": send_content("sendContact", _contact),
    "sendDice": send_content("sendDice", _dice),
    "forwardMessage": forward_message,
    "copyMessage": copy_message,
}
EDITS: Final[dict[str, Callable[..., Any]]] = {
    "editMessageText": edit_message_text,
    "editMessageCaption": edit_message_caption,
    "editMessageReplyMarkup": edit_message_reply_markup,
}
