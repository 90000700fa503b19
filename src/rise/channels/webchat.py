"""Web chat: people in a browser page, known by nothing but a signed session.

The session is issued by the server and names the chat; a page that keeps its token keeps its conversation,
and nobody can read or write another's. Answers wait in the ledger until the page fetches them.

Refuses: a session that was not issued here, and in a message whatever `http.py` refuses or is too long.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Any, Final

from rise.channels.http import identifier, optional, read_object, refuse_unknown, required, said
from rise.channels.port import Incoming
from rise.envelope import Call, DeliveryKey, Effect, Head, LaneKey, new_key
from rise.errors import PayloadInvalid, SignatureMismatch

CHANNEL: Final = "webchat"
ACCOUNT: Final = "default"
RAW_VERSION: Final = "web.v1"
TEXT_CHARS_MAX: Final = 8000
DATA_CHARS_MAX: Final = 256
MESSAGE_ID_CHARS_MAX: Final = 64

_TOKEN: Final = re.compile(r"(w_[A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{43})", re.ASCII)


class WebChatChannel:
    """The page fetches what is said; nothing is pushed to a platform."""

    name = CHANNEL

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def new_session(self) -> str:
        """A token for a chat that nobody has used yet. Nothing is stored for it."""
        session = f"w_{new_key()}"
        return f"{session}.{self._signature(session)}"

    def session_of(self, token: str) -> str:
        """The chat that the token opens. Raises `SignatureMismatch` if it was not issued here."""
        found = _TOKEN.fullmatch(token)
        if found is None or not hmac.compare_digest(self._signature(found[1]), found[2]):
            raise SignatureMismatch("this is not a session of this chat; open a new one")
        return found[1]

    def read_message(
        self, body: bytes, session: str, *, request_id: str | None = None, trace_id: str | None = None
    ) -> Incoming:
        """What the page sent. Raises `PayloadMalformed` or `PayloadInvalid` with the field.

        `data`: a button was tapped, and this is what it stands for; `text` is what the person saw on it.
        """
        fields = read_object(body)
        refuse_unknown(fields, ("clientMessageId", "text", "data"))
        message_id = identifier(
            required(fields, "clientMessageId", str), "clientMessageId", chars_max=MESSAGE_ID_CHARS_MAX
        )
        text = _text(fields)
        data = optional(fields, "data", str)
        if data is not None:
            _refuse_length(data, "data")
        return Incoming(
            channel=CHANNEL,
            account=ACCOUNT,
            source="webchat",
            delivery_key=DeliveryKey(f"web:{session}:{message_id}"),
            lane=LaneKey(f"web:{ACCOUNT}:{session}"),
            raw=body,
            raw_version=RAW_VERSION,
            kind="message" if data is None else "button",
            chat_id=session,
            message_label=f"{session}:{message_id}",
            user_text=text if data is None else data,
            user={"chat_id": session, "message_id": message_id, "user_id": session},
            metadata=_metadata(session, message_id, None if data is None else text),
            notifiable=True,
            request_id=request_id,
            trace_id=trace_id,
        )

    def compose(self, head: Head, effects: Sequence[Effect]) -> list[Call]:
        for effect in effects:
            _refuse_untappable(effect)
        return [said(effect, channel="web chat") for effect in effects]

    def notice(self, head: Head, text: str) -> Call | None:
        return Call("notice", {"text": text}, text) if head.chat_id is not None and text.strip() else None

    def _signature(self, session: str) -> str:
        digest = hmac.new(self._secret, b"webchat-session|" + session.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _text(fields: dict[str, Any]) -> str:
    text: str = required(fields, "text", str)
    _refuse_text(text, "text")
    return text


def _refuse_text(text: str, field: str) -> None:
    if not text.strip():
        raise PayloadInvalid(f"{field} is empty", field=field)
    if len(text) > TEXT_CHARS_MAX:
        raise PayloadInvalid(f"{field} has more than {TEXT_CHARS_MAX} characters", field=field)


def _refuse_length(data: str, field: str) -> None:
    if not 0 < len(data) <= DATA_CHARS_MAX:
        raise PayloadInvalid(f"{field} is 1 to {DATA_CHARS_MAX} characters", field=field)


def _refuse_untappable(effect: Effect) -> None:
    """A button's tap comes back as a message of its text and data, and has to be taken then."""
    for row in effect.buttons or ():
        for button in row:
            if (data := button.get("data")) is not None:
                _refuse_text(button.get("text", ""), "buttons.text")
                _refuse_length(data, "buttons.data")


def _metadata(session: str, message_id: str, label: str | None) -> dict[str, Any]:
    metadata = {"chat_id": session, "convo_id": f"{session}:{session}", "message_id": message_id}
    return metadata if label is None else metadata | {"button_label": label}
