"""Web chat as a channel: who may speak in which chat."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rise.channels.port import PushChannel
from rise.channels.webchat import WebChatChannel
from rise.envelope import DeliveryKey, Effect, Head, LaneKey, Order, TaskId
from rise.errors import PayloadInvalid, SignatureMismatch

CHANNEL = WebChatChannel("a secret of the tests")
HEAD = Head(
    task_id=TaskId("t_1"),
    delivery_key=DeliveryKey("web:w_1:m"),
    channel="webchat",
    account="default",
    source="webchat",
    lane=LaneKey("web:default:w_1"),
    order=Order(1, 1),
    accepted_at_ms=1,
    request_id="r",
    trace_id="r",
    idempotency_key="k",
    chat_id="w_1",
)


@pytest.mark.req("SEC-1")
def test_every_session_is_another_and_opens_again() -> None:
    tokens = {CHANNEL.new_session() for _ in range(100)}
    assert len({CHANNEL.session_of(token) for token in tokens}) == 100


@pytest.mark.req("SEC-1")
def test_a_session_of_another_installation_is_refused() -> None:
    with pytest.raises(SignatureMismatch):
        CHANNEL.session_of(WebChatChannel("another secret").new_session())


@pytest.mark.req("SEC-1")
@given(at=st.integers(0, 67), to=st.sampled_from("AZaz09-_.=é\x00 "))
def test_no_changed_token_is_taken(at: int, to: str) -> None:
    token = CHANNEL.new_session()
    changed = token[:at] + to + token[at + 1 :]
    if changed != token:
        with pytest.raises(SignatureMismatch):
            CHANNEL.session_of(changed)


@given(st.text())
def test_no_text_is_a_session_by_chance(token: str) -> None:
    with pytest.raises(SignatureMismatch):
        CHANNEL.session_of(token)


def test_answers_and_notices_are_read_by_the_page() -> None:
    assert not isinstance(CHANNEL, PushChannel)
    [call] = CHANNEL.compose(HEAD, [Effect(kind="reply", text="a")])
    assert (call.method, call.params, call.text) == ("reply", {"text": "a"}, "a")
    notice = CHANNEL.notice(HEAD, "running late")
    assert notice is not None
    assert (notice.params, notice.text) == ({"text": "running late"}, "running late")


@pytest.mark.parametrize("kind", ["edit", "call", "answer_callback"])
def test_what_it_cannot_say_is_refused(kind: str) -> None:
    with pytest.raises(PayloadInvalid):
        CHANNEL.compose(HEAD, [Effect(kind=kind, text="x", method="m")])


@pytest.mark.req("CHN-4", "SUS-1")
def test_a_person_wrote_it_so_a_notice_may_be_said() -> None:
    incoming = CHANNEL.read_message(b'{"clientMessageId": "m", "text": "hi"}', "w_1")
    assert incoming.notifiable
    assert incoming.user == {"chat_id": "w_1", "message_id": "m", "user_id": "w_1"}
