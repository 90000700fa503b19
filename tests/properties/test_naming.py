"""Every delivery has one name, on every host; no two share one; and it never says which workflow it is for."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties_trying import tried

from rise.channels.http import HttpChannel, read_message
from rise.channels.port import Incoming
from rise.channels.telegram import read_update
from rise.channels.webchat import WebChatChannel
from rise.envelope import (
    DeliveryKey,
    Progress,
    Status,
    Task,
    TaskId,
    notice_id_of,
    reply_id_of,
    run_id_of,
    task_id_of,
)
from rise.follow_ups.planning import follow_up
from rise.testing.conformance.queue import delivery

pytestmark = [pytest.mark.req("ENV-3")]

NOW = datetime(2025, 11, 8, 7, 30, tzinfo=UTC)
BOTS = st.integers(1, 10**12).map(str)
WEBCHAT = WebChatChannel("a secret of the tests")

# What callers may choose freely: whatever else a name is made of, these must not be able to imitate it.
PRINCIPALS = st.text(st.characters(codec="utf-8", exclude_characters=": ", exclude_categories=("C", "Z")), min_size=1)
KEYS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)
WORKFLOWS = st.none() | KEYS

Source = tuple[Any, ...]
"""What makes a delivery this one and no other: the way it came, who brought it, and their number for it."""


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[Source, Incoming]:
    return draw(st.one_of(updates(), applications(), messages(), chats(), follow_ups()))


@st.composite
def updates(draw: st.DrawFn) -> tuple[Source, Incoming]:
    bot, number = draw(BOTS), draw(st.integers(-(1 << 63), (1 << 63) - 1))
    body = json.dumps({"update_id": number, "message": {"chat": {"id": 5}, "text": draw(st.text())}}).encode()
    return ("update", bot, number), read_update(body, account=bot, now=NOW, webhook=True)


@st.composite
def applications(draw: st.DrawFn) -> tuple[Source, Incoming]:
    principal, key = draw(PRINCIPALS), draw(KEYS)
    body = {"userText": draw(st.text(max_size=5)), "workflowId": draw(WORKFLOWS)}
    return ("application", principal, key), applied(body, principal, key)


@st.composite
def messages(draw: st.DrawFn) -> tuple[Source, Incoming]:
    principal, key = draw(PRINCIPALS), draw(KEYS)
    body = json.dumps({"channel": "telegram", "chatId": "5", "text": "x"}).encode()
    asked = read_message(
        body, accounts={"telegram": ["7"]}, principal=principal, key=key, request_id="r", trace_id=None
    )
    return ("message", principal, key), asked.incoming


@st.composite
def chats(draw: st.DrawFn) -> tuple[Source, Incoming]:
    session, number = f"w_{draw(st.integers(0, 99)):022d}", draw(KEYS)
    body = json.dumps({"clientMessageId": number, "text": "x"}).encode()
    return ("chat", session, number), WEBCHAT.read_message(body, session)


@st.composite
def follow_ups(draw: st.DrawFn) -> tuple[Source, Incoming]:
    run, generation, number = draw(st.integers(0, 99)), draw(st.integers(0, 99)), draw(st.integers(0, 99))
    task = Task(delivery(run).head, b"{}", Progress(status=Status.PROCESSING, generation=generation))
    plan = {"workflow": draw(WORKFLOWS), "inSeconds": 1.0, "text": "x"}
    return ("follow-up", run, generation, number), follow_up(task, number, plan, 0, by="wf_bot")


def applied(body: dict[str, Any], principal: str, key: str) -> Incoming:
    given_fields = {name: value for name, value in body.items() if value is not None}
    return (
        HttpChannel()
        .read_apply(json.dumps(given_fields).encode(), principal=principal, key=key, request_id="r", trace_id=None)
        .incoming
    )


@pytest.mark.failure("A14")
@given(deliveries(), deliveries())
@tried(600)
def test_two_deliveries_share_a_key_and_a_task_only_if_they_are_one(
    one: tuple[Source, Incoming], other: tuple[Source, Incoming]
):
    (source, incoming), (other_source, other_incoming) = one, other
    assert (incoming.delivery_key == other_incoming.delivery_key) == (source == other_source)
    assert (task_id_of(incoming.delivery_key) == task_id_of(other_incoming.delivery_key)) == (source == other_source)


@pytest.mark.failure("A14")
@given(st.binary(max_size=60), BOTS, BOTS)
@tried(400)
def test_the_bot_is_in_every_key_also_of_what_cannot_be_read(body: bytes, bot: str, other: str):
    keys = {read_update(body, account=account, now=NOW, webhook=True).delivery_key for account in (bot, other)}
    assert len(keys) == len({bot, other})


@pytest.mark.failure("C29")
@given(st.binary(max_size=60) | updates().map(lambda made: made[1].raw), st.timedeltas(timedelta(0), timedelta(days=9)))
@tried(400)
def test_every_host_at_every_time_arrives_at_the_same_names(body: bytes, later: timedelta):
    here = read_update(body, account="7", now=NOW, webhook=True, source="telegram-bot", trace_id="t1")
    there = read_update(bytes(body), account="7", now=NOW + later, webhook=False, source="replay", trace_id="t2")
    assert (here.delivery_key, here.lane, here.order) == (there.delivery_key, there.lane, there.order)


@pytest.mark.failure("H10")
@given(PRINCIPALS, KEYS, WORKFLOWS, WORKFLOWS)
@tried(300)
def test_the_workflow_is_in_no_key_and_in_no_lane(principal: str, key: str, one: str | None, other: str | None):
    first, second = (applied({"workflowId": workflow}, principal, key) for workflow in (one, other))
    assert (first.delivery_key, first.lane) == (second.delivery_key, second.lane)


@given(st.lists(st.tuples(st.text(), st.integers(0, 10**6), st.integers(0, 10**4)), unique=True, max_size=5))
@tried(300)
def test_runs_and_replies_are_named_after_their_task_and_told_apart(named: list[tuple[str, int, int]]):
    replies = {}
    for key, generation, chunk in named:
        task_id = task_id_of(DeliveryKey(key))
        reply_id = reply_id_of(run_id_of(task_id, generation), chunk)
        assert reply_id.split(".") == [task_id, str(generation), str(chunk)]
        replies[reply_id] = (task_id, generation, chunk)
    assert len(set(replies.values())) == len(replies)


CAUSES = st.lists(st.sampled_from(["t_1", "t_2", "telegram", "7", "42", "queued", "late", "0", "1"]), min_size=1)


@pytest.mark.failure("G16")
@given(CAUSES, CAUSES)
@tried(300)
def test_a_notice_is_one_per_cause_and_never_takes_the_name_of_a_reply(one: list[str], other: list[str]):
    assert (notice_id_of(*one) == notice_id_of(*other)) == (one == other)
    assert not notice_id_of(*one).startswith(TaskId("t_"))
