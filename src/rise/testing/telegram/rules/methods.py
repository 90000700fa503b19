"""The methods of the Bot API: what each one checks, changes and answers.

Promises: a method either raises `CallRefused` and has changed nothing, or has committed. Methods that no
bot's behaviour hangs on answer `true`; a name that is in none of the tables does not exist.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from rise.testing.telegram.rules.chats import chat_shown
from rise.testing.telegram.rules.params import CallParams
from rise.testing.telegram.rules.refusals import bad_request, too_many_requests
from rise.testing.telegram.rules.sending import EDITS, SENDS
from rise.testing.telegram.rules.webhook import WebhookDelivery, WebhookSettings

if TYPE_CHECKING:
    from rise.testing.telegram.rules.bot import Bot

Method = Callable[["Bot", CallParams, float], Any]

_SECRET_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,256}")

_ANSWERED_TRUE: Final = re.findall(
    r"\w+",
    """
    answerInlineQuery answerShippingQuery answerPreCheckoutQuery answerWebAppQuery approveChatJoinRequest
    banChatMember banChatSenderChat close closeForumTopic closeGeneralForumTopic declineChatJoinRequest
    deleteChatPhoto deleteChatStickerSet deleteForumTopic deleteMyCommands editForumTopic
    editGeneralForumTopic hideGeneralForumTopic leaveChat pinChatMessage promoteChatMember
    reopenForumTopic reopenGeneralForumTopic restrictChatMember sendMessageDraft
    setChatAdministratorCustomTitle setChatDescription setChatMenuButton setChatPermissions setChatPhoto
    setChatStickerSet setChatTitle setMessageReaction setMyDefaultAdministratorRights setMyDescription
    setMyName setMyShortDescription unbanChatMember unbanChatSenderChat unhideGeneralForumTopic
    unpinAllChatMessages unpinAllForumTopicMessages unpinChatMessage
    """,
)


@dataclass(frozen=True, slots=True)
class Described:
    """A result with a sentence beside it."""

    result: Any
    description: str


# --- the webhook ------------------------------------------------------------------------------------------


def set_webhook(bot: Bot, params: CallParams, now: float) -> Any:
    if not params.text("url"):
        return delete_webhook(bot, params, now)
    if now - bot.webhook_set_at < 1:
        raise too_many_requests(1)
    settings = _webhook_settings(params)
    bot.webhook_set_at = now
    bot.change_allowed_updates(params)
    if params.boolean("drop_pending_updates"):
        bot.queue.drop_all(now)
    if bot.webhook is not None and bot.webhook.settings == settings:
        return Described(True, "Webhook is already set")
    bot.close_webhook()
    bot.polling.end("setWebhook request")
    bot.webhook = WebhookDelivery(settings, bot.queue, bot.dice)
    return Described(True, "Webhook was set")


def _webhook_settings(params: CallParams) -> WebhookSettings:
    url = params.text("url")
    # Plain http is refused by the public server; a local one allows it, and tests need it.
    if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname:
        raise bad_request("bad webhook: An HTTPS URL must be provided for webhook")
    secret_token = params.text("secret_token")
    if len(secret_token) > 256:
        raise bad_request("secret token is too long")
    if secret_token and not _SECRET_TOKEN.fullmatch(secret_token):
        raise bad_request("secret token contains unallowed characters")
    return WebhookSettings(
        url=url,
        secret_token=secret_token,
        max_connections=max(1, min(params.integer("max_connections", 40), 100)),
        ip_address=params.text("ip_address"),
        has_custom_certificate="certificate" in params,
    )


def delete_webhook(bot: Bot, params: CallParams, now: float) -> Any:
    if params.boolean("drop_pending_updates"):
        bot.queue.drop_all(now)
    if bot.webhook is None:
        return Described(True, "Webhook is already deleted")
    bot.close_webhook()
    return Described(True, "Webhook was deleted")


def get_webhook_info(bot: Bot, params: CallParams, now: float) -> Any:
    bot.queue.expire(now)
    webhook = bot.webhook
    shown: dict[str, Any] = {
        "url": webhook.settings.url if webhook else "",
        "has_custom_certificate": bool(webhook and webhook.settings.has_custom_certificate),
        "pending_update_count": len(bot.queue),
    }
    if bot.allowed_updates:
        shown["allowed_updates"] = list(bot.allowed_updates)
    if bot.last_synchronization_error_at is not None:
        shown["last_synchronization_error_date"] = int(bot.last_synchronization_error_at)
    if webhook is not None:
        shown["max_connections"] = webhook.settings.max_connections
        if webhook.settings.ip_address:
            shown["ip_address"] = webhook.settings.ip_address
        if webhook.last_error_at is not None:
            shown["last_error_date"] = int(webhook.last_error_at)
            shown["last_error_message"] = webhook.last_error
    return shown


# --- the bot itself ---------------------------------------------------------------------------------------


def get_me(bot: Bot, params: CallParams, now: float) -> Any:
    return {
        **bot.user,
        "can_join_groups": True,
        "can_read_all_group_messages": False,
        "supports_inline_queries": True,
        "can_connect_to_business": False,
        "has_main_web_app": False,
    }


def log_out(bot: Bot, params: CallParams, now: float) -> Any:
    bot.close_webhook()
    bot.queue.restart_numbering()
    return True


def set_my_commands(bot: Bot, params: CallParams, now: float) -> Any:
    commands = params.structure("commands")
    if not isinstance(commands, list):
        raise bad_request("can't parse commands list")
    bot.commands = commands
    return True


def get_my_commands(bot: Bot, params: CallParams, now: float) -> Any:
    return bot.commands


# --- chats, queries, files --------------------------------------------------------------------------------


def send_chat_action(bot: Bot, params: CallParams, now: float) -> Any:
    bot.chats.writable(params)
    if not params.text("action"):
        raise bad_request("wrong parameter action in request")
    return True


def get_chat(bot: Bot, params: CallParams, now: float) -> Any:
    return {
        **chat_shown(bot.chats.writable(params)),
        "accent_color_id": 0,
        "max_reaction_count": 11,
        "accepted_gift_types": {
            "unlimited_gifts": False,
            "limited_gifts": False,
            "unique_gifts": False,
            "premium_subscription": False,
            "gifts_from_channels": False,
        },
    }


def get_chat_member(bot: Bot, params: CallParams, now: float) -> Any:
    bot.chats.writable(params)
    user = {"id": params.integer("user_id"), "is_bot": False, "first_name": "Person"}
    return {"status": "member", "user": user}


def answer_callback_query(bot: Bot, params: CallParams, now: float) -> Any:
    issued_at = bot.callbacks_issued_at.get(params.text("callback_query_id"))
    if issued_at is None or now - issued_at > bot.settings.callback_answer_seconds_max:
        raise bad_request("query is too old and response timeout expired or query ID is invalid")
    return True


def delete_message(bot: Bot, params: CallParams, now: float) -> Any:
    chat_id = bot.chats.writable(params)
    if not bot.chats.delete(chat_id, params.integer("message_id")):
        raise bad_request("message to delete not found")
    return True


def delete_messages(bot: Bot, params: CallParams, now: float) -> Any:
    chat_id = bot.chats.writable(params)
    for message_id in params.structure("message_ids") or []:
        bot.chats.delete(chat_id, int(message_id))
    return True


def get_file(bot: Bot, params: CallParams, now: float) -> Any:
    return bot.files.get_file(params.text("file_id"))


def _always(result: Any) -> Method:
    return lambda bot, params, now: result


_NAMED: Final[dict[str, Method]] = {
    "getMe": get_me,
    "logOut": log_out,
    "setWebhook": set_webhook,
    "deleteWebhook": delete_webhook,
    "getWebhookInfo": get_webhook_info,
    "setMyCommands": set_my_commands,
    "getMyCommands": get_my_commands,
    "getMyName": _always({"name": "Stand-in"}),
    "getMyDescription": _always({"description": ""}),
    "getMyShortDescription": _always({"short_description": ""}),
    "sendChatAction": send_chat_action,
    "getChat": get_chat,
    "getChatMember": get_chat_member,
    "getChatAdministrators": _always([]),
    "getChatMemberCount": _always(2),
    "getUserProfilePhotos": _always({"total_count": 0, "photos": []}),
    "answerCallbackQuery": answer_callback_query,
    "deleteMessage": delete_message,
    "deleteMessages": delete_messages,
    "getFile": get_file,
    **SENDS,
    **EDITS,
    **{name: _always(True) for name in _ANSWERED_TRUE},
}
METHODS: Final[dict[str, Method]] = {name.lower(): method for name, method in _NAMED.items()}
"""By name in lower case: the real server does not care about case."""
