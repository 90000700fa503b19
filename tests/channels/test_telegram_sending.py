"""How a call ends: every way it can, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from rise.channels.port import (
    AccountDown,
    Moved,
    NotSent,
    Paused,
    Refused,
    SendOutcome,
    Succeeded,
    Uncertain,
    Unreadable,
)
from rise.channels.telegram import KINDS, TelegramChannel
from rise.clock import SystemClock
from rise.envelope import Call
from rise.errors import ChannelUnavailable, Rejected
from rise.testing.telegram import Fault, SendRates, TelegramStandIn
from rise.testing.telegram.rules import CallRefused

SECRET = "AAAA-very-secret_token"
TOKEN = f"7000000001:{SECRET}"
ACCOUNT = "7000000001"
CHAT = "42"
HELLO = Call("sendMessage", {"text": "Hello"}, "Hello")
NAMELESS, NAMELESS_NOW = "its name is not known", "nobody can say now which address it has"
"""The second where no server of names can be asked."""


@pytest.fixture
async def telegram() -> AsyncIterator[TelegramStandIn]:
    async with TelegramStandIn(TOKEN) as telegram:
        telegram.change_send_rates(SendRates.unlimited())
        yield telegram


@pytest.fixture
async def channel(telegram) -> AsyncIterator[TelegramChannel]:
    async with open_channel(telegram.url) as channel:
        yield channel


@contextlib.asynccontextmanager
async def open_channel(api_base: str, *, timeout_seconds: float = 5.0) -> AsyncIterator[TelegramChannel]:
    channel = TelegramChannel([TOKEN], clock=SystemClock(), api_base=api_base, timeout_seconds=timeout_seconds)
    try:
        yield channel
    finally:
        await channel.close()


async def send_to(api_base: str, call: Call = HELLO, *, timeout_seconds: float = 5.0) -> SendOutcome:
    async with open_channel(api_base, timeout_seconds=timeout_seconds) as channel:
        outcome = await channel.send(ACCOUNT, CHAT, call)
    assert SECRET not in repr(outcome)
    return outcome


# --- sent -------------------------------------------------------------------------------------------------


@pytest.mark.req("OUT-1")
async def test_a_sent_message_brings_its_number(telegram, channel):
    outcome = await channel.send(ACCOUNT, CHAT, HELLO)
    [sent] = telegram.sent
    assert outcome == Succeeded(str(sent.message_id))
    assert (sent.chat_id, sent.text) == (42, "Hello")


async def test_an_album_brings_all_of_its_numbers(channel):
    album = [{"type": "photo", "media": "https://example.org/1.jpg"}] * 2
    outcome = await channel.send(ACCOUNT, CHAT, Call("sendMediaGroup", {"media": album}))
    assert outcome == Succeeded("1,2")


async def test_what_is_answered_with_true_has_succeeded(channel):
    assert await channel.send(ACCOUNT, CHAT, Call("setMyName", {"name": "Ada"})) == Succeeded(None)
    assert await channel.send(ACCOUNT, CHAT, Call("sendChatAction", {"action": "typing"})) == Succeeded(None)


async def test_a_call_to_another_chat_goes_there(telegram, channel):
    await channel.send(ACCOUNT, CHAT, Call("sendMessage", {"chat_id": 43, "text": "Hello"}))
    assert telegram.sent[0].chat_id == 43


async def test_an_edit_that_was_made_already_has_succeeded(telegram, channel):
    await channel.send(ACCOUNT, CHAT, HELLO)
    edit = Call("editMessageText", {"message_id": 1, "text": "Done"})
    assert await channel.send(ACCOUNT, CHAT, edit) == Succeeded("1")
    assert await channel.send(ACCOUNT, CHAT, edit) == Succeeded("1")
    assert telegram.texts(42) == ["Done"]


# --- refused ----------------------------------------------------------------------------------------------


@pytest.mark.req("OUT-2")
@pytest.mark.failure("G5", "G17")
async def test_429_pauses_the_chat_for_as_long_as_telegram_says(telegram, channel):
    telegram.fault(Fault.too_many_requests(3600))
    outcome = await channel.send(ACCOUNT, CHAT, HELLO)
    assert isinstance(outcome, Paused)
    assert (outcome.seconds, outcome.whole_account) == (3600, False)


@pytest.mark.failure("G5")
async def test_429_in_several_chats_at_once_is_taken_as_the_bots_own(telegram, channel):
    telegram.fault(Fault.too_many_requests(5), times=None)
    outcomes = [await channel.send(ACCOUNT, chat, HELLO) for chat in ("1", "1", "2", "3", "4")]
    assert [outcome.whole_account for outcome in outcomes] == [False, False, False, True, False]


@pytest.mark.req("OUT-2")
@pytest.mark.failure("G5")
async def test_429_in_several_chats_between_which_others_are_served_is_each_chats_own(telegram, channel):
    outcomes = []
    for chat in (1, 2, 3, 4):
        telegram.fault(Fault.too_many_requests(40), chat_id=chat)
        outcomes.append(await channel.send(ACCOUNT, str(chat), HELLO))
        assert isinstance(await channel.send(ACCOUNT, str(chat + 100), HELLO), Succeeded)
    assert [outcome.whole_account for outcome in outcomes] == [False] * 4


@pytest.mark.req("OUT-3")
@pytest.mark.failure("E8")
async def test_markup_that_cannot_be_read_is_offered_as_plain_text(telegram, channel):
    outcome = await channel.send(ACCOUNT, CHAT, Call("sendMessage", {"text": "<b>x", "parse_mode": "HTML"}, "x"))
    assert isinstance(outcome, Unreadable)
    assert outcome.plain == Call("sendMessage", {"text": "<b>x"}, "x")
    assert isinstance(await channel.send(ACCOUNT, CHAT, outcome.plain), Succeeded)


async def test_without_markup_an_unreadable_text_is_refused_once(telegram, channel):
    telegram.fault(Fault.bad_request("can't parse entities: whatever"))
    assert isinstance(await channel.send(ACCOUNT, CHAT, HELLO), Refused)


@pytest.mark.failure("A13")
async def test_a_group_that_became_a_supergroup_is_followed(telegram, channel):
    telegram.conditions().migrated[-100] = -1_000_000_000_100
    assert await channel.send(ACCOUNT, "-100", HELLO) == Moved("-1000000000100")
    assert isinstance(await channel.send(ACCOUNT, "-1000000000100", HELLO), Succeeded)
    assert telegram.sent[0].chat_id == -1_000_000_000_100


@pytest.mark.failure("A13")
async def test_another_chat_that_moved_does_not_move_this_one(telegram, channel):
    telegram.conditions().migrated[-100] = -1_000_000_000_100
    outcome = await channel.send(ACCOUNT, CHAT, Call("sendMessage", {"chat_id": -100, "text": "x"}))
    assert isinstance(outcome, Refused)
    assert not outcome.chat_gone


@pytest.mark.req("OUT-2")
@pytest.mark.failure("G9")
@pytest.mark.parametrize(
    "refusal",
    [
        CallRefused(403, "Forbidden: bot was blocked by the user"),
        CallRefused(403, "Forbidden: user is deactivated"),
        CallRefused(403, "Forbidden: bot was kicked from the supergroup chat"),
        CallRefused(400, "Bad Request: chat not found"),
        CallRefused(400, "Bad Request: PEER_ID_INVALID"),
    ],
    ids=lambda refusal: refusal.description,
)
async def test_a_chat_that_is_gone_is_said_to_be(telegram, channel, refusal):
    telegram.fault(Fault.refusing(refusal))
    outcome = await channel.send(ACCOUNT, CHAT, HELLO)
    assert outcome == Refused(f"{refusal.error_code} {refusal.description}", chat_gone=True)


async def test_another_chat_that_is_gone_leaves_this_one(telegram, channel):
    telegram.conditions().blocked.add(43)
    outcome = await channel.send(ACCOUNT, CHAT, Call("sendMessage", {"chat_id": 43, "text": "x"}))
    assert isinstance(outcome, Refused)
    assert not outcome.chat_gone


async def test_a_call_telegram_will_never_take_is_refused(channel):
    outcome = await channel.send(ACCOUNT, CHAT, Call("sendMessage", {"text": " "}))
    assert isinstance(outcome, Refused)
    assert not outcome.chat_gone


async def test_a_misspelt_method_does_not_stop_the_bot(telegram, channel):
    assert isinstance(await channel.send(ACCOUNT, CHAT, Call("sendMesage", {"text": "x"})), Refused)
    telegram.revoke_token()
    assert isinstance(await channel.send(ACCOUNT, CHAT, Call("sendMesage", {"text": "x"})), AccountDown)


@pytest.mark.failure("G13")
async def test_an_edit_that_is_not_possible_any_more_is_said_below_and_marked(telegram, channel):
    edit = Call("editMessageText", {"message_id": 9, "text": "Done"}, "Done")
    outcome = await channel.send(ACCOUNT, CHAT, edit)
    assert isinstance(outcome, Unreadable)
    assert outcome.plain.method == "sendMessage"
    assert isinstance(await channel.send(ACCOUNT, CHAT, outcome.plain), Succeeded)
    assert telegram.texts(42) == ["↻ Done"]


async def test_what_is_said_instead_of_an_edit_is_as_awaited_and_as_traced_as_that(channel):
    of_a_reminder = {"is_awaited": False, "continues": True, "trace_parent": "00-1-2-01"}
    edit = Call("editMessageText", {"message_id": 9, "text": "Done"}, "Done", **of_a_reminder)
    outcome = await channel.send(ACCOUNT, CHAT, edit)
    assert isinstance(outcome, Unreadable)
    assert {name: getattr(outcome.plain, name) for name in of_a_reminder} == of_a_reminder


@pytest.mark.failure("G10")
async def test_a_revoked_token_stops_the_account_until_there_is_a_new_one(telegram, channel):
    telegram.revoke_token()
    assert isinstance(await channel.send(ACCOUNT, CHAT, HELLO), AccountDown)
    telegram.add_bot("7000000001:new-token")
    assert channel.use_token("7000000001:new-token") == ACCOUNT
    assert isinstance(await channel.send(ACCOUNT, CHAT, HELLO), Succeeded)


async def test_a_token_telegram_never_knew_stops_the_account(telegram, channel):
    channel.use_token("5:never-known")
    assert isinstance(await channel.send("5", CHAT, HELLO), AccountDown)


# --- perhaps sent -----------------------------------------------------------------------------------------


@pytest.mark.failure("G4", "G6", "G15")
@pytest.mark.parametrize(
    "fault",
    [
        Fault.commit_then_close(),
        Fault.close_before_commit(),
        Fault.commit_then_stall(30),
        Fault.stall_before_commit(30),
        Fault.server_error(500),
        Fault.server_error(502, commits=True),
        Fault.html_body(502),
        Fault.html_body(200),
        Fault.truncated_json(commits=True),
        Fault.truncated_json(commits=False),
        Fault.wrong_body(),
        Fault.wrong_body(b'{"ok":true}'),
        Fault.wrong_body(b'{"ok":true,"result":{}}'),
        Fault.wrong_body(b'{"ok":true,"result":true}'),
        Fault.wrong_body(b'{"ok":false}'),
        Fault.wrong_body(b'{"ok":false,"error_code":200}'),
        Fault.wrong_body(b"[" * 100_000),
        Fault.wrong_body(b"\xff\xfe"),
    ],
    ids=lambda fault: f"{fault.name}-{'committed' if fault.commits else 'not-committed'}",
)
async def test_an_answer_that_does_not_say_so_is_not_taken_as_sent_or_not_sent(telegram, fault):
    telegram.fault(fault)
    assert isinstance(await send_to(telegram.url, timeout_seconds=0.5), Uncertain)


# --- sockets ----------------------------------------------------------------------------------------------

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[str]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


async def read_request(reader: asyncio.StreamReader) -> bytes:
    headers = await reader.readuntil(b"\r\n\r\n")
    [length] = [line for line in headers.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return headers + await reader.readexactly(int(length.split(b":")[1]))


def answering(status: str, body: bytes, *, length: int | None = None, headers: str = "") -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        stated = len(body) if length is None else length
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {stated}\r\n{headers}\r\n".encode() + body)
        await writer.drain()

    return serve


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


@pytest.mark.failure("G14")
async def test_a_name_that_does_not_resolve_is_not_sent():
    assert await send_to("http://no-such-host.invalid") in (NotSent(NAMELESS), NotSent(NAMELESS_NOW))


async def test_a_handshake_that_fails_is_not_sent():
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"this is not TLS\r\n")
        await writer.drain()

    async with server(serve) as url:
        assert isinstance(await send_to(url.replace("http:", "https:")), NotSent)


async def test_waiting_for_a_connection_until_the_time_is_over_is_not_sent():
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    # A TLS handshake that nobody answers: connected, and nothing of the call ever written.
    async with server(serve) as url:
        assert isinstance(await send_to(url.replace("http:", "https:"), timeout_seconds=0.3), NotSent)


async def test_a_server_that_hangs_up_unread_did_not_send():
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    # Whether the call was given to the socket before the reset arrived is a race; that nothing is claimed
    # to be sent, and that not sent is only said when it is certain, is not.
    async with server(serve) as url:
        assert isinstance(await send_to(url), NotSent | Uncertain)


@pytest.mark.failure("G3", "G4")
async def test_a_server_that_reads_everything_and_hangs_up_has_perhaps_sent():
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.transport.abort()

    async with server(serve) as url:
        assert await send_to(url) == Uncertain("the connection was closed before an answer came")


@pytest.mark.failure("G4")
async def test_a_server_that_reads_everything_and_is_silent_has_perhaps_sent():
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await asyncio.sleep(30)

    async with server(serve) as url:
        assert await send_to(url, timeout_seconds=0.3) == Uncertain("no answer in time")


@pytest.mark.failure("G6")
async def test_an_answer_that_breaks_off_has_perhaps_sent():
    async with server(answering("200 OK", b'{"ok":true,"result":{"message_id":1}}', length=500)) as url:
        assert isinstance(await send_to(url), Uncertain)


@pytest.mark.failure("G6", "G15")
@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"SMTP ready\r\n\r\n",
        b"\x00\x01\x02\x03",
    ],
    ids=["not gzip", "not chunked", "no length", "endless header", "not HTTP", "noise"],
)
async def test_an_answer_that_is_not_even_http_has_perhaps_sent(said):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(said)
        await writer.drain()

    async with server(serve) as url:
        assert isinstance(await send_to(url, timeout_seconds=1), Uncertain)


@pytest.mark.parametrize("status", ["302 Found", "403 Forbidden", "407 Proxy Authentication Required", "413 Too Large"])
async def test_a_refusal_from_before_the_bot_api_is_not_sent(status):
    location = "Location: http://127.0.0.1:1/\r\n"
    async with server(answering(status, b"<html>no</html>", headers=location)) as url:
        assert isinstance(await send_to(url), NotSent)


async def test_a_connection_that_died_while_idle_is_not_used_again():
    answered, died = 0, asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        await answering("200 OK", b'{"ok":true,"result":{"message_id":1}}')(reader, writer)
        answered += 1
        writer.write_eof()
        assert await reader.read() == b"", "another call came on it"
        died.release()  # the channel has seen the end, and has closed its own

    async with server(serve) as url, open_channel(url) as channel:
        for _ in range(3):
            assert isinstance(await channel.send(ACCOUNT, CHAT, HELLO), Succeeded)
            async with asyncio.timeout(5):
                await died.acquire()
    assert answered == 3


async def test_a_cancelled_send_is_cancelled():
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async with server(serve) as url, open_channel(url) as channel:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(channel.send(ACCOUNT, CHAT, HELLO), 0.2)


# --- the rest of the channel ------------------------------------------------------------------------------


async def test_a_file_is_downloaded_as_it_was_uploaded(telegram, channel):
    content = bytes(range(256)) * 1000
    assert await channel.download(ACCOUNT, telegram.add_file(content)) == content


async def test_the_webhook_asks_for_every_kind_and_drops_nothing(telegram, channel):
    telegram.message("Waiting")
    await channel.set_webhook(ACCOUNT, "http://127.0.0.1:1/hook", "secret")
    [call] = telegram.calls
    assert "drop_pending_updates" not in call.params
    info = await channel.webhook_info(ACCOUNT)
    assert (info.url, info.pending_update_count) == ("http://127.0.0.1:1/hook", 1)
    assert set(info.allowed_updates) <= set(KINDS)
    await channel.delete_webhook(ACCOUNT)
    assert (await channel.webhook_info(ACCOUNT)).url == ""
    assert len(telegram.pending()) == 1


async def test_a_url_telegram_does_not_take_is_said_in_its_words(channel):
    with pytest.raises(Rejected, match="HTTPS"):
        await channel.set_webhook(ACCOUNT, "not a url", "secret")


async def test_the_bot_says_who_it_is(channel):
    assert (await channel.get_me(ACCOUNT))["id"] == int(ACCOUNT)


@pytest.mark.parametrize(
    ("fault", "perhaps"),
    [
        (Fault.unauthorized(), False),
        (Fault.server_error(), True),
        (Fault.too_many_requests(7), False),
        (Fault.wrong_body(), True),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
async def test_a_question_without_a_usable_answer_says_the_channel_is_unavailable(telegram, channel, fault, perhaps):
    telegram.fault(fault)
    with pytest.raises(ChannelUnavailable) as raised:
        await channel.get_me(ACCOUNT)
    assert raised.value.sent_perhaps is perhaps


async def test_typing_is_shown_and_its_failure_is_nobodys_concern(telegram, channel):
    await channel.show_typing(ACCOUNT, CHAT)
    assert telegram.calls[0].method == "sendChatAction"
    telegram.fault(Fault.server_error(), times=None)
    await channel.show_typing(ACCOUNT, CHAT)


async def test_the_token_is_in_no_error_and_no_log(caplog, telegram):
    caplog.set_level(logging.DEBUG)
    said: list[Any] = []
    for api_base in (f"http://127.0.0.1:{free_port()}", "http://no-such-host.invalid", telegram.url):
        telegram.fault(Fault.commit_then_stall(30))
        async with open_channel(api_base, timeout_seconds=0.3) as channel:
            said += [channel, await channel.send(ACCOUNT, CHAT, HELLO)]
            telegram.fault(Fault.commit_then_stall(30))
            with pytest.raises(ChannelUnavailable) as raised:
                await channel.get_me(ACCOUNT)
            error: BaseException | None = raised.value
            while error is not None:
                said.append(error)
                error = error.__cause__ or error.__context__
    assert SECRET not in repr(said)
    # asyncio and the stand-in log on their own; nothing of what the channel logs or causes may hold it.
    assert not [record for record in caplog.records if SECRET in record.getMessage()]
