"""What every channel promises, executable.

    class TestMyChannel(ChannelConformance):
        @pytest.fixture
        def stage(self): ...

A channel whose platform must be called passes `PushChannelConformance`, against a stand-in of that platform.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any, Final, Protocol, get_args

import msgspec
import pytest

from rise.channels.port import (
    AccountDown,
    Channel,
    Incoming,
    NotSent,
    PushChannel,
    SendOutcome,
    Succeeded,
    Uncertain,
    is_pushed,
    understood,
)
from rise.envelope import Call, Effect, Head, Order, clean_text, decode_head, encode_head, encode_json, task_id_of
from rise.errors import ChannelUnavailable, PayloadInvalid
from rise.testing.clock import ManualClock

FAMILY: Final = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
TEXTS: Final = {
    "short": "Hello",
    "several lines": "Hello,\n\n  it is\nme.",
    "markup": "<b>*_[`&\\",
    "NUL": "a\x00b",
    "characters nobody sees": "a\x1b[31m\u202e\ufeffb",
    "half a surrogate pair": "a\ud800b",
    "very long": "word " * 5_000,
    "very long without a space": "x" * 25_000,
    "very long of characters made of several": FAMILY * 2_000,
}
"""What a workflow may want to say, and every channel can."""

texts = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)

CHOICES: Final[dict[str, Sequence[Any]]] = {
    "kind": ("reply", "reply", "edit", "answer_callback", "call", "dance"),
    "text": ("Hello", "", " \n", "word " * 2_000),
    "buttons": (
        None,
        [],
        [[]],
        [[{"text": "a", "data": "b"}]],
        [[{"text": "a", "data": "b" * 999}]],
        [[{"text": "a"}]],
    ),
    "media": (
        None,
        {},
        {"kind": "photo", "file": "https://example.org/a.png"},
        {"kind": "document", "file": "f", "caption": "word " * 1_000},
        {"kind": "hologram", "file": "f"},
        {"kind": "photo", "file": 5},
    ),
    "reply_to": (None, "9", "nine", ""),
    "parse_mode": (None, "HTML", "html", "nonsense", ""),
    "message_id": (None, "9", "nine", ""),
    "method": ("", "sendDice", "getMe", "../x", "a b", "x" * 999),
    "params": ({}, {"text": "Hello"}, {"text": 5}, {"chat_id": 5, "to": [{"a": None}]}, {"chat_id": "\x00"}),
}
"""For each field of an effect, what a workflow may put there by intent or by mistake."""

CHAT_IDS: Final = ("", "42", "-100", "@news", "no such chat", "a\x00\ud800", "9" * 100)
BYTES: Final = (b"", b"\x00", b"\xff\xfe", b"null", b"[]", b"{}", b"[" * 100_000, b'{"a":' * 1_000, b'"\\ud800"')
FILE_IDS: Final = ("no-such-file", "", "../secret", "a\x00\ud800", "x" * 10_000)


class ChannelStage(Protocol):
    """A channel, and a message that somebody has sent on it."""

    channel: Channel
    incoming: Incoming
    unsayable: Sequence[Effect]
    """Of the kinds that workflows have, what this channel has no words for."""


class PushStage(Protocol):
    """The same with a platform that does as it is told."""

    channel: PushChannel
    incoming: Incoming
    unsayable: Sequence[Effect]
    taps: Sequence[Incoming]
    """What a person may do there so that their client waits for a word."""
    calls: Sequence[Call]
    """Others than replies, among them such as may be repeated unseen and such as may not."""

    def seen(self) -> list[str]:
        """What was said in the chat of `incoming`, as the person sees it, in order."""
        ...

    async def hang_up_on_the_next_call(self) -> None:
        """The platform does what it is asked and closes the connection without a word."""
        ...

    async def go_away(self) -> None:
        """From now on nobody listens where the platform was."""
        ...


def head_of(incoming: Incoming) -> Head:
    """What a task of this delivery knows of it."""
    accepted = Head(
        task_id=task_id_of(incoming.delivery_key),
        delivery_key=incoming.delivery_key,
        channel=incoming.channel,
        account=incoming.account,
        source=incoming.source,
        lane=incoming.lane,
        order=incoming.order or Order(1, 1),
        accepted_at_ms=1,
        request_id="r",
        trace_id="r",
        idempotency_key="k",
    )
    return understood(accepted, incoming)


def reply(text: str) -> Effect:
    return Effect(kind="reply", text=text)


def frozen(call: Call) -> Call:
    """As it comes back from the outbox."""
    return msgspec.json.decode(encode_json(call), type=Call)


def letters(text: str) -> str:
    """What must not be lost when a text is cut: everything but white space, and halves of surrogate pairs."""
    return re.sub(r"\s", "", clean_text(text))


def any_effect(clock: ManualClock) -> Effect:
    return Effect(**{name: clock.random.choice(choices) for name, choices in CHOICES.items()})


def broken(raw: bytes, clock: ManualClock) -> bytes:
    """Cut off somewhere, or with another byte in the place of one."""
    at = clock.random.randrange(len(raw))
    return raw[:at] if clock.random.random() < 0.3 else raw[:at] + clock.random.randbytes(1) + raw[at + 1 :]


def says_something(call: Call) -> bool:
    """Whether it would do anything: it has a name, and its parameters are not all empty."""
    said = [value.strip() if isinstance(value, str) else value for value in call.params.values()]
    return bool(call.method) and (not call.params or any(value not in ("", None) for value in said))


def refused(channel: Channel, head: Head, effects: Sequence[Effect]) -> PayloadInvalid:
    with pytest.raises(PayloadInvalid) as refusal:
        channel.compose(head, effects)
    return refusal.value


class ChannelConformance:
    """Every promise of `rise.channels.port.Channel`."""

    @pytest.fixture
    def stage(self) -> ChannelStage:
        raise NotImplementedError("a channel's suite says how to make one")

    @pytest.fixture
    def channel(self, stage: ChannelStage) -> Channel:
        return stage.channel

    @pytest.fixture
    def head(self, stage: ChannelStage) -> Head:
        return head_of(stage.incoming)

    async def test_it_goes_by_the_name_its_messages_carry(self, channel: Channel, head: Head) -> None:
        assert channel.name == head.channel != ""

    async def test_it_can_be_called_with_all_that_belongs_to_it_or_not_at_all(self, channel: Channel) -> None:
        assert is_pushed(channel) == isinstance(channel, PushChannel)

    # --- composing ---

    @pytest.mark.req("OUT-3")
    @texts
    async def test_a_text_is_said_whole(self, channel: Channel, head: Head, text: str) -> None:
        calls = channel.compose(head, [reply(text)])
        assert letters("".join(call.text for call in calls)) == letters(text)
        assert all(says_something(call) for call in calls)

    @pytest.mark.req("OUT-1")
    @texts
    async def test_what_is_composed_comes_back_from_the_outbox_as_it_went_in(
        self, channel: Channel, head: Head, text: str
    ) -> None:
        for call in channel.compose(head, [reply(text)]):
            kept = frozen(call)
            assert kept.text == clean_text(call.text)
            assert frozen(kept) == kept
            assert kept == call or text != clean_text(text), "nothing changes but halves of surrogate pairs"

    async def test_effects_keep_their_order(self, channel: Channel, head: Head) -> None:
        wanted = [str(number) for number in range(30)]
        calls = channel.compose(head, [reply(text) for text in wanted])
        assert [call.text for call in calls] == wanted

    @pytest.mark.req("WRK-4")
    @texts
    async def test_composing_again_says_the_same_and_changes_nothing(
        self, channel: Channel, head: Head, text: str
    ) -> None:
        effects = [reply(text), reply("more")]
        before = copy.deepcopy((head, effects))
        assert channel.compose(head, effects) == channel.compose(head, effects)
        assert (head, effects) == before

    async def test_who_wants_nothing_said_says_nothing(self, channel: Channel, head: Head) -> None:
        assert channel.compose(head, []) == []

    @pytest.mark.parametrize("text", ["", " \n\t", "\u2003"])
    async def test_a_reply_without_a_text_is_refused_by_name(self, channel: Channel, head: Head, text: str) -> None:
        assert refused(channel, head, [reply(text)]).field == "text"

    @pytest.mark.parametrize("kind", ["dance", "", "Reply", "\x00"])
    async def test_an_effect_that_nobody_knows_is_refused_by_name(
        self, channel: Channel, head: Head, kind: str
    ) -> None:
        assert refused(channel, head, [Effect(kind=kind, text="Hello")]).field == "kind"

    @pytest.mark.failure("E8")
    async def test_what_it_has_no_words_for_is_refused_by_name_with_all_that_is_beside_it(
        self, stage: ChannelStage, head: Head
    ) -> None:
        assert stage.unsayable, "there is always something"
        for effect in stage.unsayable:
            assert refused(stage.channel, head, [reply("before"), effect]).field

    @pytest.mark.failure("E8")
    @pytest.mark.parametrize("seed", range(5))
    async def test_whatever_a_workflow_wants_is_said_or_refused_by_name(
        self, channel: Channel, head: Head, seed: int
    ) -> None:
        clock = ManualClock(seed=seed)
        for effect in [any_effect(clock) for _ in range(300)]:
            try:
                calls = channel.compose(head, [effect])
            except PayloadInvalid as refusal:
                assert refusal.field, effect
                continue
            assert calls, effect
            assert all(says_something(call) and frozen(call) == call for call in calls), effect

    # --- notices ---

    @texts
    async def test_a_notice_is_one_call_that_begins_with_its_text_or_none(
        self, channel: Channel, head: Head, text: str
    ) -> None:
        notice = channel.notice(head, text)
        if notice is not None:
            assert says_something(notice)
            assert letters(text).startswith(letters(frozen(notice).text))

    async def test_where_there_is_nobody_or_nothing_to_tell_there_is_no_notice(
        self, channel: Channel, head: Head
    ) -> None:
        nowhere = msgspec.structs.replace(head, chat_id=None)
        assert channel.notice(nowhere, "Running late") is None
        assert channel.notice(head, " \n") is None


class PushChannelConformance(ChannelConformance):
    """Every promise of `rise.channels.port.PushChannel`, and of `Channel`."""

    @pytest.fixture
    async def stage(self) -> PushStage:
        raise NotImplementedError("a channel's suite says how to make one")

    @pytest.fixture
    def channel(self, stage: PushStage) -> PushChannel:
        return stage.channel

    # --- sending ---

    @pytest.mark.req("OUT-1")
    @texts
    async def test_what_is_composed_is_seen_by_the_person_in_its_order(
        self, stage: PushStage, head: Head, text: str
    ) -> None:
        calls = [frozen(call) for call in stage.channel.compose(head, [reply(text), reply("more")])]
        for call in calls:
            assert isinstance(await send(stage, call), Succeeded)
        assert stage.seen() == [call.text for call in calls]

    async def test_a_notice_is_seen_by_the_person(self, stage: PushStage, head: Head) -> None:
        notice = stage.channel.notice(head, "Running late")
        assert notice is not None
        assert isinstance(await send(stage, frozen(notice)), Succeeded)
        assert stage.seen() == ["Running late"]

    @pytest.mark.failure("G10")
    async def test_for_an_account_without_a_token_nothing_is_sent(self, stage: PushStage) -> None:
        assert isinstance(await send(stage, hello(stage), account="no such account"), AccountDown)
        assert stage.seen() == []

    @pytest.mark.failure("G14")
    async def test_where_nobody_listens_nothing_is_sent(self, stage: PushStage) -> None:
        await stage.go_away()
        assert isinstance(await send(stage, hello(stage)), NotSent)

    @pytest.mark.failure("G4")
    async def test_what_was_cut_off_after_it_went_out_was_perhaps_sent_and_is_said_again_with_a_mark(
        self, stage: PushStage
    ) -> None:
        await stage.hang_up_on_the_next_call()
        assert isinstance(await send(stage, hello(stage)), Uncertain)
        again = stage.channel.marked(hello(stage))
        assert isinstance(await send(stage, again), Succeeded)
        assert stage.seen() == [hello(stage).text, again.text]

    @pytest.mark.failure("G4", "G14")
    async def test_whether_it_answers_can_be_asked_and_nobody_sees_it(self, stage: PushStage) -> None:
        assert await stage.channel.trouble(stage.incoming.account) is None
        await stage.hang_up_on_the_next_call()
        assert await stage.channel.trouble(stage.incoming.account)
        assert await stage.channel.trouble(stage.incoming.account) is None
        await stage.go_away()
        assert await stage.channel.trouble(stage.incoming.account)
        assert stage.seen() == []

    @pytest.mark.parametrize("chat_id", CHAT_IDS)
    async def test_a_call_to_wherever_ends_in_an_outcome(self, stage: PushStage, chat_id: str) -> None:
        for call in (hello(stage), *stage.calls, Call("no such method", {"\x00": "a\ud800"})):
            outcome = await stage.channel.send(stage.incoming.account, chat_id, call)
            assert isinstance(outcome, get_args(SendOutcome))

    # --- saying it again ---

    @texts
    async def test_the_mark_is_seen_and_put_once(self, channel: PushChannel, head: Head, text: str) -> None:
        for call in channel.compose(head, [reply(text)]):
            again = channel.marked(call)
            assert again.method == call.method
            assert again.text != call.text
            assert again.text.endswith(call.text)
            assert channel.marked(again) == again

    async def test_a_marked_call_can_be_repeated_if_it_could_be_before(self, stage: PushStage) -> None:
        calls = [hello(stage), *stage.calls]
        assert {stage.channel.is_repeatable(call) for call in calls} == {True, False}
        for call in calls:
            again = stage.channel.marked(call)
            assert stage.channel.marked(again) == again
            assert stage.channel.is_repeatable(again) == stage.channel.is_repeatable(call)

    async def test_words_are_not_repeated_unmarked(self, stage: PushStage) -> None:
        assert not stage.channel.is_repeatable(hello(stage))

    # --- beside the answer ---

    async def test_a_tap_is_acknowledged_without_words_at_once_and_as_often_as_wanted(self, stage: PushStage) -> None:
        for tap in stage.taps:
            call = stage.channel.acknowledgement(head_of(tap))
            assert call is not None
            assert (call.text, call.is_urgent, frozen(call)) == ("", True, call)
            assert stage.channel.is_repeatable(call)

    async def test_a_message_is_not_acknowledged_in_words(self, channel: PushChannel, head: Head) -> None:
        call = channel.acknowledgement(head)
        assert call is None or (call.text, frozen(call)) == ("", call)

    async def test_typing_is_shown_or_not_but_nobody_has_to_know(self, stage: PushStage) -> None:
        account, chat_id = stage.incoming.account, stage.incoming.chat_id or ""
        await stage.channel.show_typing(account, chat_id)
        await stage.channel.show_typing("no such account", chat_id)
        await stage.channel.show_typing(account, "no such chat")
        await stage.hang_up_on_the_next_call()
        await stage.channel.show_typing(account, chat_id)
        await stage.go_away()
        await stage.channel.show_typing(account, chat_id)
        assert stage.seen() == []

    @pytest.mark.req("OUT-2")
    @pytest.mark.parametrize("chat_id", CHAT_IDS)
    async def test_whatever_a_chat_is_called_it_may_be_written_to_at_some_rate(
        self, channel: PushChannel, chat_id: str
    ) -> None:
        rates = channel.rates(chat_id)
        assert rates.chat_per_second > 0
        assert rates.chat_per_minute is None or rates.chat_per_minute > 0
        assert rates.account_per_second > 0

    # --- reading again ---

    async def test_what_was_accepted_unread_is_read_as_at_the_door(self, stage: PushStage, head: Head) -> None:
        read = stage.channel.read_again(head, stage.incoming.raw)
        assert (read.suspend, read.error, read.raw) == (None, None, stage.incoming.raw)
        assert (read.delivery_key, read.lane, read.order) == (head.delivery_key, head.lane, head.order)
        assert understood(head, read) == head

    @pytest.mark.failure("B1", "B16")
    @pytest.mark.parametrize("raw", BYTES, ids=lambda raw: repr(raw[:12]))
    async def test_bytes_that_say_nothing_are_marked_to_be_suspended_with_the_reason(
        self, channel: PushChannel, head: Head, raw: bytes
    ) -> None:
        read = channel.read_again(head, raw)
        assert read.suspend is not None
        assert read.error

    @pytest.mark.failure("B10")
    @pytest.mark.parametrize("seed", range(5))
    async def test_no_bytes_make_reading_raise_or_leave_its_reason_open(
        self, stage: PushStage, head: Head, seed: int
    ) -> None:
        clock = ManualClock(seed=seed)
        for raw in [broken(stage.incoming.raw, clock) for _ in range(200)]:
            read = stage.channel.read_again(head, raw)
            assert (read.raw, read.channel, read.account) == (raw, head.channel, head.account)
            assert (read.suspend is None) == (read.error is None), raw
            known = understood(head, read)
            assert decode_head(encode_head(known)) == known, raw

    # --- files ---

    @pytest.mark.parametrize("file_id", FILE_IDS, ids=lambda file_id: ascii(file_id[:12]))
    async def test_a_file_that_is_not_there_is_refused_by_name(self, stage: PushStage, file_id: str) -> None:
        with pytest.raises(PayloadInvalid) as refusal:
            await stage.channel.download(stage.incoming.account, file_id)
        assert refusal.value.field

    async def test_a_file_that_cannot_be_asked_for_now_may_be_there_later(self, stage: PushStage) -> None:
        with pytest.raises(ChannelUnavailable):
            await stage.channel.download("no such account", "f")
        await stage.go_away()
        with pytest.raises(ChannelUnavailable):
            await stage.channel.download(stage.incoming.account, "f")


def hello(stage: PushStage) -> Call:
    [call] = stage.channel.compose(head_of(stage.incoming), [reply("Hello")])
    return call


async def send(stage: PushStage, call: Call, *, account: str | None = None) -> SendOutcome:
    """To the chat that `incoming` came from."""
    return await stage.channel.send(account or stage.incoming.account, stage.incoming.chat_id or "", call)
