"""Calls: what a workflow wants becomes calls of the Bot API.

Promises: the same effects give the same calls, each small enough for Telegram. A call to the task's own chat
does not name it: where it goes is filled in when it is sent, because a group may have moved by then. A call
that is made again can be marked so that a person sees it.

Refuses what Telegram would refuse, by the name of the field; to upload files; to split text inside markup; and
in a business's chat, whatever can only be said in the bot's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from rise.channels.telegram.addresses import address_of, is_in_a_business
from rise.channels.telegram.texts import (
    CAPTION_CHUNK_UNITS,
    CAPTION_UNITS_MAX,
    MARK,
    TEXT_UNITS_MAX,
    split_text,
    utf16_units,
)
from rise.envelope import Call, Effect, Head, clean_text
from rise.errors import PayloadInvalid

MEDIA_METHODS: Final = {
    "photo": "sendPhoto",
    "document": "sendDocument",
    "video": "sendVideo",
    "audio": "sendAudio",
    "voice": "sendVoice",
    "animation": "sendAnimation",
}
CALLBACK_DATA_BYTES_MAX: Final = 64
CALLBACK_ANSWER_UNITS_MAX: Final = 200


def compose(head: Head, effects: Sequence[Effect]) -> list[Call]:
    """The effects as Bot API calls. A call to the task's own chat leaves `chat_id` out: it is filled in when
    it is sent, because a group may have moved by then."""
    calls: list[Call] = []
    for effect in effects:
        match effect.kind:
            case "reply":
                calls += _reply(head, effect)
            case "edit":
                calls += _edit(head, effect)
            case "answer_callback":
                calls.append(_callback_answer(head, effect))
            case "call":
                calls.append(_call(head, effect))
            case _:
                raise PayloadInvalid(f"Telegram has no effect {effect.kind!r}", field="kind")
    return calls


def notice(head: Head, text: str) -> Call | None:
    """A silent message for the task's chat, of one chunk."""
    chunks = split_text(text)
    if head.chat_id is None or not chunks:
        return None
    return Call("sendMessage", {"text": chunks[0], "disable_notification": True} | _where(head), chunks[0])


def acknowledgement(head: Head) -> Call | None:
    """An empty answer to a tap: it ends the client's spinner."""
    callback_query_id = head.metadata.get("callback_query_id")
    if head.kind != "callback_query" or not callback_query_id:
        return None
    return Call("answerCallbackQuery", {"callback_query_id": callback_query_id}, is_urgent=True)


def marked(call: Call) -> Call:
    """With `↻ ` before its text or caption; a text that leaves no room for it stays as it is."""
    if "text" in call.params and call.method.lower() != "answercallbackquery":
        return _marked_in(call, "text", "entities", TEXT_UNITS_MAX)
    if "caption" in call.params or call.method in _CAPTIONED:
        return _marked_in(call, "caption", "caption_entities", CAPTION_UNITS_MAX)
    return call


def addressed(call: Call, chat_id: str) -> Mapping[str, Any]:
    """The parameters with their chat as Telegram knows it: the one that is named, else the task's own."""
    target = _target(call.method, call.params, chat_id)
    return call.params if target is None else call.params | address_of(target)


def is_repeatable(call: Call) -> bool:
    """Whether twice is the same as once."""
    return call.method.lower().startswith(_REPEATABLE)


def is_composed(method: str) -> bool:
    """Whether effects become calls of this method, and so its name is spelt right."""
    return method in _COMPOSED


_CAPTIONED: Final = frozenset(MEDIA_METHODS.values())
_COMPOSED: Final = _CAPTIONED | {"sendMessage", "editMessageText", "editMessageReplyMarkup", "answerCallbackQuery"}

_PARSE_MODES: Final = frozenset({"html", "markdownv2", "markdown"})
_METHOD_NAME: Final = re.compile(r"[A-Za-z]{1,64}")

_TO_A_CHAT: Final = ("send", "edit", "forward", "copy")
_NOT_TO_THE_TASKS_CHAT: Final = frozenset({"chat_id", "inline_message_id", "user_id"})

# Methods that take a `business_connection_id`. Without it, Telegram takes the chat's number for the bot's own chat.
_IN_A_BUSINESS: Final = ("send", "editmessage", "pinchatmessage", "unpinchatmessage", "stop", "readbusinessmessage")
_NOT_IN_A_BUSINESS: Final = ("sendgift", "sendinvoice", "sendmessagedraft", "sendrichmessagedraft")

_ANSWERS: Final = "answer"
"""Methods that answer a query begin so."""

_REPEATABLE: Final = (
    "edit",
    _ANSWERS,
    "set",
    "delete",
    "get",
    "pin",
    "unpin",
    "ban",
    "unban",
    "restrict",
    "promote",
    "approve",
    "decline",
    "sendchataction",
)


def _reply(head: Head, effect: Effect) -> list[Call]:
    _require_chat(head)
    calls = list(_media(effect.media, effect) if effect.media is not None else _texts(effect.text, effect))
    if not calls:
        raise PayloadInvalid("the reply has no text", field="text")
    where = _where(head)
    calls = [_with(call, **where) for call in calls]
    if effect.reply_to is not None:
        # Without it, a message that was deleted meanwhile would take its answer with it.
        reply_to = {"message_id": _number(effect.reply_to, "reply_to"), "allow_sending_without_reply": True}
        calls[0] = _with(calls[0], reply_parameters=reply_to)
    return _with_buttons(calls, effect.buttons)


def _texts(text: str, effect: Effect) -> Iterator[Call]:
    """Markup is kept only in a text that is one message: a cut through an entity would refuse the whole."""
    chunks = split_text(text)
    for number, chunk in enumerate(chunks):
        yield Call("sendMessage", {"text": chunk} | _parse_mode(effect, chunks), chunk, continues=number > 0)


def _media(media: Mapping[str, Any], effect: Effect) -> Iterator[Call]:
    """A file; what its caption cannot hold, and text beside a caption, follow as messages."""
    kind, file, given = media.get("kind"), media.get("file"), media.get("caption")
    if kind not in MEDIA_METHODS:
        raise PayloadInvalid(f"media.kind is one of {', '.join(MEDIA_METHODS)}", field="media.kind")
    if not isinstance(file, str) or not file:
        raise PayloadInvalid("media.file is a URL or a file_id", field="media.file")
    if given is not None and not isinstance(given, str):
        raise PayloadInvalid("media.caption is a text", field="media.caption")
    chunks = split_text(given or effect.text, first_units_max=CAPTION_CHUNK_UNITS)
    caption, following = chunks[:1], chunks[1:]
    params: dict[str, Any] = {kind: file}
    if caption:
        params |= {"caption": caption[0]} | _parse_mode(effect, chunks)
    yield Call(MEDIA_METHODS[kind], params, caption[0] if caption else f"[{kind}]")
    for chunk in following:
        yield Call("sendMessage", {"text": chunk}, chunk, continues=True)
    if given:
        yield from _texts(effect.text, effect)


def _parse_mode(effect: Effect, chunks: Sequence[str]) -> dict[str, Any]:
    if effect.parse_mode and effect.parse_mode.lower() not in _PARSE_MODES:
        raise PayloadInvalid("parse_mode is HTML, MarkdownV2 or Markdown on Telegram", field="parse_mode")
    return {"parse_mode": effect.parse_mode} if effect.parse_mode and len(chunks) == 1 else {}


def _edit(head: Head, effect: Effect) -> list[Call]:
    """Change a message: the one named, or the one whose button was pressed."""
    target = _edit_target(head, effect)
    if business := head.metadata.get("business_connection_id"):
        target["business_connection_id"] = business
    if not effect.text.strip():
        if effect.buttons is None:
            raise PayloadInvalid("the edit has no text", field="text")
        return _with_buttons([Call("editMessageReplyMarkup", target)], effect.buttons)
    first, *following = _texts(effect.text, effect)
    if following:
        _require_chat(head)
    where = _where(head)
    calls = [msgspec.structs.replace(first, method="editMessageText", params=target | first.params)]
    calls += [_with(call, **where) for call in following]
    return _with_buttons(calls, effect.buttons)


def _edit_target(head: Head, effect: Effect) -> dict[str, Any]:
    if effect.message_id is not None:
        _require_chat(head)
        return {"message_id": _number(effect.message_id, "message_id")}
    if head.kind == "callback_query":
        if inline := head.metadata.get("inline_message_id"):
            return {"inline_message_id": inline}
        if (message_id := head.metadata.get("message_id")) and head.chat_id is not None:
            return {"message_id": _number(message_id, "message_id")}
    raise PayloadInvalid("the edit does not say which message", field="message_id")


def _callback_answer(head: Head, effect: Effect) -> Call:
    callback_query_id = head.metadata.get("callback_query_id")
    if not callback_query_id:
        raise PayloadInvalid(f"a task of kind {head.kind} has no callback to answer", field="kind")
    if utf16_units(effect.text) > CALLBACK_ANSWER_UNITS_MAX:
        raise PayloadInvalid(f"a callback is answered in at most {CALLBACK_ANSWER_UNITS_MAX} characters", field="text")
    params = effect.params | {"callback_query_id": callback_query_id}
    if effect.text:
        params["text"] = clean_text(effect.text)
    return Call("answerCallbackQuery", params, effect.text, is_urgent=True)


def _call(head: Head, effect: Effect) -> Call:
    if _METHOD_NAME.fullmatch(effect.method) is None:
        raise PayloadInvalid("the method is a name of the Bot API such as sendDice", field="method")
    params = dict(effect.params)
    if _is_to_a_chat(effect.method) and head.chat_id is not None and str(params.get("chat_id")) == head.chat_id:
        del params["chat_id"]
    target = _target(effect.method, params, head.chat_id)
    if target is not None and is_in_a_business(target) and not _works_in_a_business(effect.method):
        raise PayloadInvalid(f"{effect.method} cannot be done in a business's chat", field="method")
    text = params.get("text", params.get("caption", ""))
    is_urgent = effect.method.lower().startswith(_ANSWERS)
    return Call(effect.method, params, text if isinstance(text, str) else "", is_urgent)


def _require_chat(head: Head) -> None:
    if head.chat_id is None:
        raise PayloadInvalid(f"a task of kind {head.kind} has no chat to write to", field="chat_id")


def _where(head: Head) -> dict[str, Any]:
    """The part of the chat that the task came from."""
    where: dict[str, Any] = {}
    if (thread_id := head.metadata.get("thread_id")) is not None:
        where["message_thread_id"] = _number(thread_id, "metadata.thread_id")
    if (topic_id := head.metadata.get("direct_messages_topic_id")) is not None:
        where["direct_messages_topic_id"] = _number(topic_id, "metadata.direct_messages_topic_id")
    if business := head.metadata.get("business_connection_id"):
        where["business_connection_id"] = business
    return where


def _number(value: object, field: str) -> int:
    try:
        return int(str(value))
    except ValueError as error:
        raise PayloadInvalid(f"{field} is a number on Telegram", field=field) from error


def _with(call: Call, **params: Any) -> Call:
    return msgspec.structs.replace(call, params=call.params | params)


def _with_buttons(calls: list[Call], rows: Sequence[Sequence[Mapping[str, str]]] | None) -> list[Call]:
    """Below the last: that is where people look when they have read."""
    if rows is None:
        return calls
    keyboard = [[_button(button) for button in row] for row in rows]
    return [*calls[:-1], _with(calls[-1], reply_markup={"inline_keyboard": keyboard})]


def _button(button: Mapping[str, str]) -> dict[str, str]:
    text, data, url = button.get("text"), button.get("data"), button.get("url")
    if not text or (data is None) == (url is None):
        raise PayloadInvalid("a button has a text, and either data or a url", field="buttons")
    if url is not None:
        return {"text": clean_text(text), "url": url}
    if data is None or not 1 <= len(data.encode("utf-8", "replace")) <= CALLBACK_DATA_BYTES_MAX:
        raise PayloadInvalid(f"a button's data is 1 to {CALLBACK_DATA_BYTES_MAX} bytes", field="buttons")
    return {"text": clean_text(text), "callback_data": data}


def _is_to_a_chat(method: str) -> bool:
    return method.lower().startswith(_TO_A_CHAT)


def _target(method: str, params: Mapping[str, Any], own_chat_id: str | None) -> str | None:
    """The chat a call goes to, by its name here; None if it goes to none, or to a number as given."""
    if isinstance(named := params.get("chat_id"), str):
        return named
    return own_chat_id if _is_to_a_chat(method) and _NOT_TO_THE_TASKS_CHAT.isdisjoint(params) else None


def _works_in_a_business(method: str) -> bool:
    name = method.lower()
    return name.startswith(_IN_A_BUSINESS) and not name.startswith(_NOT_IN_A_BUSINESS)


def _marked_in(call: Call, field: str, entities_field: str, units_max: int) -> Call:
    text = call.params.get(field, "")
    if not isinstance(text, str) or text.startswith(_MARKS) or utf16_units(text) + len(MARK) > units_max:
        return call
    # A quote is one only at the start of a line; elsewhere its sign would have to be escaped.
    is_quote = str(call.params.get("parse_mode", "")).lower() == "markdownv2" and text.startswith((">", "**>"))
    mark = _MARK_ABOVE if is_quote else MARK
    params = call.params | {field: mark + text}
    if isinstance(entities := params.get(entities_field), list):
        params[entities_field] = [_shifted(entity, len(mark)) for entity in entities]
    return msgspec.structs.replace(call, params=params, text=mark + call.text)


_MARK_ABOVE: Final = MARK[0] + "\n"
_MARKS: Final = (MARK, _MARK_ABOVE)


def _shifted(entity: Any, units: int) -> Any:
    if isinstance(entity, Mapping) and isinstance(offset := entity.get("offset"), int):
        return {**entity, "offset": offset + units}
    return entity
