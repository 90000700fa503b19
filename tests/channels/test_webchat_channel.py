"""Web chat as a channel: who may speak in which chat."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rise.channels.port import PushChannel
from rise.channels.webchat import WebChatChannel
from rise.envelope import Effect
from rise.errors import SignatureMismatch
from rise.testing.conformance.channel import head_of

CHANNEL = WebChatChannel("a secret of the tests")
INCOMING = CHANNEL.read_message(b'{"clientMessageId": "m", "text": "hi"}', "w_1")


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
    [call] = CHANNEL.compose(head_of(INCOMING), [Effect(kind="reply", text="a")])
    assert (call.method, call.params, call.text) == ("reply", {"text": "a"}, "a")
    notice = CHANNEL.notice(head_of(INCOMING), "running late")
    assert notice is not None
    assert (notice.params, notice.text) == ({"text": "running late"}, "running late")


@pytest.mark.req("CHN-4", "SUS-1")
def test_a_person_wrote_it_so_a_notice_may_be_said() -> None:
    assert INCOMING.notifiable
    assert INCOMING.user == {"chat_id": "w_1", "message_id": "m", "user_id": "w_1"}
