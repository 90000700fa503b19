"""Telegram's way in: whatever bytes come, they are kept, named and put in their place, at a bounded cost."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from properties_trying import ANY_TEXT, JSON, bytes_held, changed, damaged, lines_run, tried

from rise.api.security import Credentials, Gate
from rise.api.webhooks import PATH, TelegramWebhook
from rise.channels.port import Incoming
from rise.channels.telegram import KINDS, TelegramChannel, read_update
from rise.channels.telegram.reading import read_json, without_halves
from rise.envelope import (
    RAW_BYTES_MAX,
    Head,
    Order,
    Progress,
    Reason,
    Status,
    Task,
    decode_head,
    encode_head,
    encode_json,
    envelope,
    task_id_of,
)
from rise.errors import CopiesInsufficient, StoreUnavailable, Unavailable
from rise.testing.clock import ManualClock
from rise.testing.telegram import updates as written

pytestmark = [pytest.mark.req("TGM-2", "ENV-4")]

DATE = 1_762_587_012
NOW = datetime.fromtimestamp(DATE + 3, UTC)

CONTENTS: list[dict[str, Any]] = [
    written.message("Hello \U0001f468\u200d\U0001f469", chat_id=-100, message_id=9, date=DATE, message_thread_id=3),
    written.message(None, message_id=9, date=DATE, business_connection_id="b1", caption="Look", media_group_id="1"),
    written.edited_message("Hello", message_id=9, date=DATE, edit_date=DATE + 1),
    written.channel_post("News", message_id=9, date=DATE),
    written.callback_query("yes", message_id=9, id="c1"),
    written.inline_query("cats", id="q1"),
    written.shipping_query(id="s1"),
    written.pre_checkout_query(id="p1"),
    written.my_chat_member(date=DATE),
    written.message_reaction(message_id=9, date=DATE),
    *({kind: {"user": written.user(5), "from": written.user(5), "chat": written.chat(-100)}} for kind in KINDS),
    written.unknown(),
]
UPDATES = st.builds(
    lambda number, content: {"update_id": number, **content}, st.integers(1, 1 << 40), st.sampled_from(CONTENTS)
)
BODIES = st.one_of(
    changed(UPDATES).map(json.dumps).map(str.encode),
    changed(UPDATES, by=ANY_TEXT).map(json.dumps).map(str.encode),
    damaged(UPDATES.map(json.dumps).map(str.encode)),
    st.builds(lambda name, value: json.dumps({"update_id": 1, name: value}).encode(), ANY_TEXT, JSON),
    st.binary(max_size=100),
)


def read(body: bytes, *, webhook: bool = True) -> Incoming:
    return read_update(body, account="7", now=NOW, webhook=webhook)


def head_of(incoming: Incoming) -> Head:
    return Head(
        task_id=task_id_of(incoming.delivery_key),
        delivery_key=incoming.delivery_key,
        channel=incoming.channel,
        account=incoming.account,
        source=incoming.source,
        lane=incoming.lane,
        order=incoming.order or Order(1, 0),
        accepted_at_ms=1,
        request_id="r",
        trace_id="r",
        idempotency_key=incoming.message_label,
        kind=incoming.kind,
        chat_id=incoming.chat_id,
        user_text=incoming.user_text,
        user=incoming.user,
        metadata=incoming.metadata,
        raw_is_json=incoming.raw_is_json,
    )


@pytest.mark.failure("B1", "B2", "B3", "B4", "B5", "B7", "B9", "B10", "B11", "B16")
@given(BODIES)
@tried(3000)
def test_any_update_is_kept_named_and_put_in_its_place(body: bytes):
    incoming = read(body)
    assert incoming.raw is body
    assert incoming == read(body), "the same bytes are read the same"
    assert (incoming.suspend is None) == (incoming.error is None)
    assert incoming.suspend in (None, Reason.RAW_PAYLOAD_INVALID, Reason.STALE_REPLAY)
    assert incoming.delivery_key.startswith(("tg:7:u:", "tg:7:h:"))
    assert incoming.lane.startswith("tg:7")
    assert incoming.suspend is not None or incoming.kind in KINDS
    assert incoming.error is None or len(incoming.error) < 300, "it names the place, it does not repeat what is there"


@pytest.mark.failure("B2", "B8", "B15")
@given(BODIES)
@tried(1500)
def test_what_was_made_of_an_update_survives_every_store_and_is_shown(body: bytes):
    incoming = read(body)
    head = head_of(incoming)
    stored = encode_head(head)
    assert encode_head(decode_head(stored)) == stored
    shown = encode_json(envelope(Task(head, body, Progress(status=Status.PENDING))))
    raw = json.loads(shown)["payload"]["channelPayload"]["raw"]
    if incoming.raw_is_json:
        assert raw == json.loads(body)
    else:
        assert isinstance(raw, str)


@pytest.mark.failure("B2")
@given(st.lists(st.sampled_from([rb"\ud83d", rb"\udc00", rb"\uD83D\uDE00", rb"\\", rb"\"", rb"\n", b"ud800", b"x"])))
@tried(1000)
def test_only_halves_of_pairs_are_read_otherwise_than_python_reads_them(pieces: list[bytes]):
    body = b'"%b"' % b"".join(pieces)
    assert len(without_halves(body)) == len(body)
    read_by_python = json.loads(body)
    expected = "".join("?" if "\ud800" <= character <= "\udfff" else character for character in read_by_python)
    assert read_json(body, str) == expected


COSTLY = {
    "brackets": lambda n: b"[" * n,
    "objects": lambda n: b'{"a":' * (n // 5),
    "a string without end": lambda n: b'{"a":"' + b"\\" * n + b"[" * 70,
    "strings without end": lambda n: b'{"a":' + b'"\\' * (n // 2) + b"[" * 70,
    "colons": lambda n: b'{"a":"' + b":" * n + b'"}' + b"[" * 70,
    "keys": lambda n: b"{" + b",".join(b'"%d":0' % at for at in range(n // 12)) + b"}",
    "a long name": lambda n: b'{"update_id":1,"%b":{"a":{"b":[1,2]}}}' % (b"x" * n),
    "a long text": lambda n: b'{"update_id":1,"message":{"chat":{"id":5},"text":"%b"}}' % (b"\\u0041" * (n // 6)),
    "halves": lambda n: b'{"update_id":1,"message":{"chat":{"id":5},"text":"%b"}}' % (b"\\ud83d" * (n // 6)),
    "digits": lambda n: b'{"update_id":%b}' % (b"9" * n),
    "spaces": lambda n: b" " * n + b"{}",
}


@pytest.mark.failure("B3", "B16")
@pytest.mark.parametrize("shape", COSTLY)
def test_no_body_costs_more_than_in_proportion_to_its_size(shape: str):
    large, small = COSTLY[shape](RAW_BYTES_MAX), COSTLY[shape](RAW_BYTES_MAX // 4)
    read(small)
    assert lines_run(lambda: read(large)) <= 5 * lines_run(lambda: read(small)) + 500
    assert bytes_held(lambda: read(large)) <= 100 * len(large)


# --- the webhook, on the wire -----------------------------------------------------------------------------------

SECRET = "webhook-secret-of-the-tests"


class Intake:
    """Keeps everything, or nothing."""

    error: Exception | None = None

    def earliest_now(self) -> datetime:
        return NOW

    async def accept(self, incoming: Incoming) -> None:
        if self.error is not None:
            raise self.error


def webhook(intake: Intake) -> TelegramWebhook:
    clock = ManualClock()
    return TelegramWebhook(
        TelegramChannel(["7:token"], clock=clock),
        account="7",
        secret=SECRET,
        intake=intake,  # type: ignore[arg-type]
        gate=Gate(Credentials("admin-token-of-the-tests", {}), clock, rate_per_source=1_000_000),
        require_verified=lambda account: None,
        secret_of=lambda account: f"the secret of {account}",
    )


HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            [b"x-telegram-bot-api-secret-token", b"content-length", b"traceparent", b"content-type", b"expect"]
        )
        | st.binary(max_size=10),
        st.sampled_from([SECRET.encode(), b"5", b"9" * 30, b"00-%b-%b-01" % (b"a" * 32, b"b" * 16), "Ⅷ".encode()])
        | st.binary(max_size=60),
    ),
    max_size=5,
)
PARTS = st.lists(st.binary(max_size=30) | BODIES, min_size=1, max_size=3)


async def asked(
    app: TelegramWebhook, method: str, path: str, headers: list[tuple[bytes, bytes]], parts: list[bytes], *, ends: bool
) -> tuple[int, dict[bytes, bytes], bytes]:
    """One request, as a server hands it over. `ends`: all of the body comes; else the client hangs up."""
    waiting = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    waiting.append({"type": "http.request", "body": b""} if ends else {"type": "http.disconnect"})
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return waiting.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app({"type": "http", "method": method, "path": path, "headers": headers}, receive, send)  # type: ignore[arg-type]
    if not sent:
        return 0, {}, b""
    start, *rest = sent
    return start["status"], dict(start["headers"]), b"".join(message.get("body", b"") for message in rest)


@pytest.mark.req("TGM-1", "SEC-1")
@pytest.mark.failure("A16", "A17")
@given(st.sampled_from(["POST", "GET", "PUT"]), st.sampled_from([PATH, f"{PATH}/7", f"{PATH}/8"]), HEADERS, PARTS,
       st.booleans(), st.booleans())  # fmt: skip
@tried(1500)
async def test_whatever_request_comes_only_a_whole_one_with_the_secret_is_told_200(
    method: str, path: str, headers: list[tuple[bytes, bytes]], parts: list[bytes], ends: bool, knows: bool
):
    if knows:
        headers = [*headers, (b"x-telegram-bot-api-secret-token", SECRET.encode())]
    status, said, body = await asked(webhook(Intake()), method, path, headers, parts, ends=ends)
    assert body == b"", "Telegram would run a JSON body as a command"
    last = dict(headers).get(b"x-telegram-bot-api-secret-token")
    if method != "POST":
        assert status == 405
    elif last != SECRET.encode() or path == f"{PATH}/8":
        assert status == 401
    elif status != 413:
        assert status == (200 if ends else 0)
    assert status not in (404, 410)
    assert said.get(b"content-length", b"0") == b"0"


@pytest.mark.failure("C27", "C28")
@given(BODIES, st.sampled_from([StoreUnavailable("gone"), CopiesInsufficient("slow"), ValueError("a bug of ours")]))
@tried(300)
async def test_what_could_not_be_kept_is_left_to_telegram_to_repeat(body: bytes, error: Exception):
    intake = Intake()
    intake.error = error
    headers = [(b"x-telegram-bot-api-secret-token", SECRET.encode())]
    with structlog.testing.capture_logs():
        status, said, _ = await asked(webhook(intake), "POST", PATH, headers, [body], ends=True)
    assert status == (503 if isinstance(error, Unavailable) else 500)
    assert 1 <= int(said[b"retry-after"]) <= 60
