"""What Telegram, or whoever stands before it, answers: anything at all, and never taken for more than it says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties_trying import ANY_TEXT, JSON, NUMBERS, bytes_held, changed, damaged, lines_run, tried

from rise.channels.port import (
    AccountDown,
    Incoming,
    Moved,
    NotSent,
    Paused,
    Refused,
    SendOutcome,
    Succeeded,
    Uncertain,
    Unreadable,
)
from rise.channels.telegram import Answer, TelegramChannel, TelegramPolling, Unanswered
from rise.channels.telegram.outcomes import judged, result_of
from rise.clock import Clock
from rise.envelope import Call, encode_json
from rise.errors import ChannelUnavailable, PayloadInvalid, Rejected, RiseError
from rise.testing.clock import ManualClock

pytestmark = [pytest.mark.req("OUT-1", "OUT-2"), pytest.mark.failure("G6", "G15")]

Back = Answer | Unanswered
"""What comes back for a call, or does not."""

CALLS = st.sampled_from(
    [
        Call("sendMessage", {"text": "Hello"}, "Hello"),
        Call("sendMessage", {"text": "<b>x", "parse_mode": "HTML"}, "x"),
        Call("sendMediaGroup", {"media": []}),
        Call("sendChatAction", {"action": "typing"}),
        Call("editMessageText", {"message_id": 9, "text": "Done"}, "Done"),
        Call("editMessageText", {"message_id": "9", "text": ["not", "a", "text"]}),
        Call("editMessageReplyMarkup", {"inline_message_id": "i"}),
        Call("answerCallbackQuery", {"callback_query_id": "c"}, is_urgent=True),
        Call("getMe", {}),
    ]
)
STATUSES = st.sampled_from([200, 201, 302, 400, 401, 403, 404, 409, 413, 429, 500, 502, 504]) | st.integers(100, 599)
WORDS = st.sampled_from(
    ["Bad Request: message is not modified", "Bad Request: can't parse entities", "Bad Request: chat not found",
     "Bad Request: message to edit not found", "Forbidden: bot was blocked by the user", "Unauthorized", ""]
)  # fmt: skip
REAL: list[dict[str, Any]] = [
    {"ok": True, "result": {"message_id": 7, "date": 1, "chat": {"id": 5, "type": "private"}, "text": "Hello"}},
    {"ok": True, "result": [{"message_id": 7}, {"message_id": 8}]},
    {"ok": True, "result": True},
    {"ok": True, "result": {"url": "", "pending_update_count": 3, "allowed_updates": ["message"]}},
    {"ok": True, "result": {"file_id": "f", "file_path": "photos/1.jpg"}},
    {"ok": False, "error_code": 429, "description": "Too Many Requests", "parameters": {"retry_after": 5}},
    {"ok": False, "error_code": 400, "description": "group upgraded", "parameters": {"migrate_to_chat_id": -1001}},
    {"ok": False, "error_code": 401, "description": "Unauthorized"},
    {"ok": True, "result": [{"update_id": 7, "message": {"chat": {"id": 5}, "text": "Hello"}}, {"update_id": 8}]},
]
REFUSALS = st.builds(
    lambda code, words, parameters: {"ok": False, "error_code": code, "description": words, "parameters": parameters},
    STATUSES | NUMBERS,
    WORDS | ANY_TEXT,
    st.none() | st.fixed_dictionaries({}, optional={"retry_after": NUMBERS, "migrate_to_chat_id": NUMBERS}) | JSON,
)
BODIES = st.one_of(
    st.sampled_from(REAL).map(json.dumps).map(str.encode),
    REFUSALS.map(json.dumps).map(str.encode),
    changed(st.sampled_from(REAL)).map(json.dumps).map(str.encode),
    damaged(st.sampled_from(REAL).map(json.dumps).map(str.encode)),
    st.binary(max_size=60) | st.just(b"<html>502 Bad Gateway</html>"),
)
ANSWERS = st.builds(Answer, STATUSES, BODIES) | st.builds(Unanswered, ANY_TEXT, st.booleans())


def said_by_the_bot_api(answer: Back) -> dict[str, Any] | None:
    """The answer, if it has the form that the Bot API gives its answers."""
    if isinstance(answer, Unanswered):
        return None
    with suppress(ValueError, RecursionError):
        said = json.loads(answer.body.decode("utf-8", "replace"))
        if isinstance(said, dict) and type(said.get("ok")) is bool:
            return said
    return None


@given(CALLS, ANSWERS)
@tried(3000)
def test_every_answer_has_its_meaning_and_none_means_more_than_it_says(call: Call, answer: Back):
    outcome = judged(call, answer)
    encode_json(outcome)
    said = said_by_the_bot_api(answer)
    match outcome:
        case Succeeded(ref):
            assert isinstance(answer, Answer)
            assert answer.status == 200 or "message is not modified" in str(said)
            assert ref is None or all(part.lstrip("-").isdigit() for part in ref.split(","))
            assert ref is not None or call.method not in ("sendMessage", "sendMediaGroup")
        case Refused() | AccountDown() | Moved() | Unreadable():
            assert said is not None, "a proxy's words are not the Bot API's"
            assert not said["ok"]
            assert 400 <= said["error_code"] < 600
        case Paused(seconds):
            assert 0 < seconds <= 86_400
        case NotSent():
            assert isinstance(answer, Answer) or not answer.body_went_out
            assert not isinstance(answer, Answer) or 300 <= answer.status < 500 or said is not None
        case Uncertain():
            pass


@given(CALLS, BODIES)
@tried(1000)
def test_what_was_judged_a_success_can_be_read(call: Call, body: bytes):
    answer = Answer(200, body)
    if isinstance(judged(call, answer), Succeeded) and json.loads(body)["ok"]:
        assert encode_json(result_of(answer)) is not None


COSTLY = {
    "brackets": lambda n: b"[" * n,
    "an envelope of brackets": lambda n: b'{"ok":true,"result":' + b"[" * n,
    "many messages": lambda n: b'{"ok":true,"result":[%b]}' % b",".join([b'{"message_id":1}'] * (n // 20)),
    "halves": lambda n: b'{"ok":true,"result":{"message_id":1,"text":"%b"}}' % (b"\\ud800" * (n // 6)),
    "a long description": lambda n: b'{"ok":false,"error_code":400,"description":"%b"}' % (b"chat not " * (n // 9)),
}


@pytest.mark.failure("B3", "B16")
@pytest.mark.parametrize("shape", COSTLY)
def test_no_answer_costs_more_than_in_proportion_to_its_size(shape: str):
    call = Call("sendMessage", {"text": "x"}, "x")
    large, small = (Answer(200, COSTLY[shape](size)) for size in (1 << 20, 1 << 18))
    judged(call, small)
    assert lines_run(lambda: judged(call, large)) <= 6 * lines_run(lambda: judged(call, small)) + 500
    assert bytes_held(lambda: judged(call, large)) <= 100 * len(large.body)


# --- the channel, asked for more than sending -------------------------------------------------------------------


class Scripted(TelegramChannel):
    """Says what came back instead of going out for it."""

    def __init__(self, clock: Clock, *answers: Back) -> None:
        super().__init__(["7:token"], clock=clock)
        self._answers = list(answers)

    async def exchange(
        self, account: str, method: str, params: Mapping[str, Any], *, timeout_seconds: float | None = None
    ) -> Answer | Unanswered:
        return self._answers[0] if len(self._answers) == 1 else self._answers.pop(0)

    async def _get_file(self, account: str, path: str) -> Answer | Unanswered:
        return self._answers[0]


@given(ANSWERS, ANSWERS, CALLS)
@tried(1000)
async def test_sending_never_raises_whatever_comes_back(first: Back, then: Back, call: Call):
    outcome = await Scripted(ManualClock(), first, then).send("7", "42", call)
    assert isinstance(outcome, SendOutcome)


@given(ANSWERS, ANSWERS)
@tried(1000)
async def test_asking_raises_only_that_it_was_refused_or_nothing_came(first: Back, then: Answer | Unanswered):
    for asking in (
        lambda bot: bot.get_me("7"),
        lambda bot: bot.webhook_info("7"),
        lambda bot: bot.set_webhook("7", "https://bot.example", "secret"),
        lambda bot: bot.download("7", "f"),
    ):
        with suppress(Rejected, ChannelUnavailable, PayloadInvalid):
            await asking(Scripted(ManualClock(), first, then))


# --- polling ----------------------------------------------------------------------------------------------------

POLLED = st.builds(
    lambda updates: json.dumps({"ok": True, "result": updates}).encode(),
    st.lists(
        st.builds(
            lambda number, rest: {"update_id": number} | rest, st.integers(1, 1 << 40), st.dictionaries(ANY_TEXT, JSON)
        )
        | st.fixed_dictionaries({"update_id": st.integers(1, 99), "message": st.just({"chat": {"id": 5}})}),
        max_size=4,
    ),
)


class Hasty(ManualClock):
    """Does not sleep."""

    async def sleep(self, seconds: float) -> None:
        assert 0 <= seconds <= 86_400


@pytest.mark.req("TGM-1")
@pytest.mark.failure("A21", "B2")
@given(st.builds(Answer, STATUSES, BODIES | POLLED | damaged(POLLED)) | ANSWERS, st.none() | st.integers(0, 3))
@tried(1500)
async def test_only_what_was_accepted_is_confirmed_whatever_is_answered(answer: Back, refused: int | None):
    accepted: list[Incoming] = []

    async def accept(incoming: Incoming) -> None:
        if len(accepted) == refused:
            raise ChannelUnavailable("no disk")
        accepted.append(incoming)

    clock = Hasty()
    polling = TelegramPolling(
        Scripted(clock, answer), "7", accept=accept, clock=clock, on_state=lambda is_receiving, detail: None
    )
    # The loop around it goes on after these; nothing was confirmed then.
    with suppress(RiseError, msgspec.MsgspecError, UnicodeDecodeError):
        await polling._poll()
    if polling._offset is not None:
        assert any(incoming.metadata.get("update_id") == str(polling._offset - 1) for incoming in accepted)
    assert all(incoming.raw in answer.body for incoming in accepted if isinstance(answer, Answer))
