"""Sending: every row of the reply table, against a platform that does what the row says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pipeline_stage import MARK, OTHER_TOKEN, Stage

import rise
from rise import delivery
from rise.bus.port import Topic
from rise.channels.telegram import TelegramRates
from rise.delivery import DeliveryLimits, Sender
from rise.envelope import Outcome, Reason, Status, TaskId
from rise.errors import StoreUnavailable
from rise.ledger.port import Reply, ReplyKind, ReplyState
from rise.offices import LEASE_SECONDS
from rise.queue.port import Selection
from rise.testing.telegram import Fault
from rise.worker import WorkerLimits

OTHER = OTHER_TOKEN.partition(":")[0]
AMBIGUOUS = [
    pytest.param(Fault.commit_then_close(), True, id="closed after the commit"),
    pytest.param(Fault.close_before_commit(), False, id="closed before the commit"),
    pytest.param(Fault.server_error(commits=True), True, id="500 after the commit"),
    pytest.param(Fault.server_error(503), False, id="503"),
    pytest.param(Fault.html_body(commits=True), True, id="a page after the commit"),
    pytest.param(Fault.html_body(), False, id="a page"),
    pytest.param(Fault.truncated_json(), True, id="half an answer"),
    pytest.param(Fault.truncated_json(commits=False), False, id="half an answer to nothing"),
    pytest.param(Fault.wrong_body(commits=True), True, id="a 200 from somebody else, after the commit"),
    pytest.param(Fault.wrong_body(b'{"ok":true,"result":true}'), False, id="ok without a message"),
    pytest.param(Fault.commit_then_stall(30), True, id="a stall after the commit"),
    pytest.param(Fault.stall_before_commit(30), False, id="a stall before the commit"),
]


def saying(*texts: str, **options: Any) -> Callable[..., Any]:
    """A workflow that answers with these, `{}` being what it was told."""

    @rise.workflow("says", channels=["telegram"])
    async def says(turn: rise.Turn) -> None:
        says.runs += 1  # type: ignore[attr-defined]
        for text in texts:
            await turn.reply(text.format(turn.text), **options)

    says.runs = 0  # type: ignore[attr-defined]
    return says


async def answers(stage: Stage, task_id: TaskId) -> list[Reply]:
    return [reply for reply in await stage.ledger.replies(task_id=task_id) if reply.kind is ReplyKind.ANSWER]


async def tried(stage: Stage, count: int, method: str = "sendMessage") -> None:
    """So many calls have been looked at by the platform."""
    await stage.telegram.wait_until(lambda t: sum(call.method == method for call in t.calls) >= count)


async def nothing_out(stage: Stage) -> None:
    """What was sent is known to be, and who sends has looked for the next: only time is missing now."""

    async def holds() -> bool:
        return ReplyState.SENDING not in (await stage.ledger.outbox_depth()).by_state

    await stage.until(holds)
    await stage.let_go_on()


async def all_sent_at_a_pace(stage: Stage, count: int, *, at_once: int, per_second: float) -> None:
    """In the end all are sent, and at no moment more than what the time since the first allows."""
    began = stage.clock.monotonic()
    for _ in range(round(count / per_second) * 100):
        allowed = at_once + per_second * (stage.clock.monotonic() - began)
        assert len(stage.telegram.sent) <= allowed + 0.001
        if len(stage.telegram.sent) == count:
            return
        await stage.pass_time(0.1)
    raise AssertionError(f"only {len(stage.telegram.sent)} were sent; {await stage.report()}")


async def waits(stage: Stage, task_id: TaskId, state: ReplyState = ReplyState.READY, *, tries: int = 1) -> Reply:
    """Until its first reply waits to be sent again."""

    async def holds() -> Reply | None:
        found = [one for one in await answers(stage, task_id) if one.state is state and one.tries >= tries]
        return found[0] if found else None

    reply: Reply = await stage.until(holds)
    return reply


# --- not sent ---------------------------------------------------------------------------------------------


@pytest.mark.req("OUT-1")
@pytest.mark.failure("G14")
async def test_while_the_platform_cannot_be_reached_replies_wait_and_then_go_out_once_in_order(stage: Stage):
    await stage.telegram.stop()
    await stage.start(saying("echo {}"))
    tasks = await stage.write("one", "two", chat=1) + await stage.write("three", chat=2)
    for task_id in (tasks[0], tasks[2]):
        await waits(stage, task_id)
    for tries in range(2, 9):
        await stage.pass_time(80)
        await waits(stage, tasks[0], tries=tries)
    await stage.pass_time(47)
    assert (await waits(stage, tasks[0])).tries == 8, "from try to try longer, to about a minute"
    await stage.pass_time(26)
    assert (await waits(stage, tasks[0], tries=9)).resends == 0
    await stage.telegram.start()
    while await stage.open_count():
        await stage.pass_time(80)
    await stage.ended(*tasks)
    assert (stage.texts(1), stage.texts(2)) == (["echo one", "echo two"], ["echo three"])


@pytest.mark.req("OUT-2")
@pytest.mark.failure("G5")
async def test_a_429_pauses_its_chat_as_long_as_asked_and_no_other(stage: Stage):
    stage.telegram.fault(Fault.too_many_requests(30), method="sendMessage", chat_id=1)
    await stage.start(saying("echo {}"))
    tasks = await stage.write("one", "two", chat=1)
    reply = await waits(stage, tasks[0])
    assert "429" in (reply.error or "")
    await stage.ended(*await stage.write("other", chat=2))
    await stage.pass_time(29)
    await stage.ended(*await stage.write("another", chat=3))
    assert stage.texts(1) == []
    await stage.pass_time(2)
    await stage.ended(*tasks)
    assert stage.texts(1) == ["echo one", "echo two"]
    assert (await answers(stage, tasks[0]))[0].resends == 0


@pytest.mark.req("OUT-2", "TGM-3")
@pytest.mark.failure("G5", "G17")
async def test_a_bot_that_sends_too_much_pauses_for_seconds_and_taps_are_answered_meanwhile(stage: Stage):
    for chat in (1, 2, 3):
        stage.telegram.fault(Fault.too_many_requests(40), method="sendMessage", chat_id=chat)
    await stage.start(saying("echo {}"))
    refused = [task_id for chat in (1, 2, 3) for task_id in await stage.write("flood", chat=chat)]
    for task_id in refused:
        await waits(stage, task_id)
    [bystander] = await stage.write("Hello", chat=4)
    await stage.tap("yes", chat=99)
    await tried(stage, 1, "answerCallbackQuery")
    await nothing_out(stage)
    assert stage.texts() == []
    await stage.pass_time(delivery.LIMITED_SECONDS + 0.1)
    await stage.ended(bystander)
    assert stage.texts(4) == ["echo Hello"]
    assert [stage.texts(chat) for chat in (1, 2, 3)] == [[], [], []], "each as long as it was told"
    await stage.pass_time(40)
    await stage.ended(*refused)


@pytest.mark.req("OUT-2")
@pytest.mark.failure("G5")
async def test_a_429_that_lasts_for_hours_never_gives_up_and_never_repeats(stage: Stage):
    stage.telegram.fault(Fault.too_many_requests(3600), method="sendMessage", times=12)
    await stage.start(saying("echo {}"))
    [task_id] = await stage.write("one")
    for tries in range(1, 13):
        await waits(stage, task_id, tries=tries)
        await stage.pass_time(3601)
    await stage.ended(task_id)
    assert stage.texts() == ["echo one"]


@pytest.mark.req("OUT-3")
@pytest.mark.failure("E8")
async def test_markup_that_cannot_be_read_is_sent_plain_and_once(stage: Stage):
    await stage.start(saying("<b>not closed, {}", parse_mode="HTML"))
    [task_id] = await stage.write("Anna")
    [run] = await stage.ended(task_id)
    [sent] = stage.telegram.sent
    assert sent.text == "<b>not closed, Anna"
    assert "parse_mode" not in sent.params
    assert (run.outcome, len(stage.calls("sendMessage"))) == (Outcome.ANSWERED, 2)


@pytest.mark.req("OUT-1")
@pytest.mark.failure("A13")
async def test_a_group_that_has_moved_is_answered_where_it_is_now_and_stays_there(stage: Stage):
    stage.telegram.conditions().migrated[-100] = -1_000_000_000_100
    await stage.start(saying("1 {}", "2 {}"))
    await stage.ended(*await stage.write("Hello", "again", chat=-100))
    await stage.ended(*await stage.write("third", chat=-100))
    assert stage.texts(-1_000_000_000_100) == ["1 Hello", "2 Hello", "1 again", "2 again", "1 third", "2 third"]
    assert stage.texts(-100) == []
    assert len(stage.calls("sendMessage")) == 7, "the old chat was tried once"


@pytest.mark.req("OUT-1", "OUT-2")
@pytest.mark.failure("A13")
async def test_a_chat_that_moves_has_never_two_calls_out_at_once(stage: Stage):
    new = -1_000_000_000_100
    stage.telegram.conditions().migrated[-100] = new
    stage.telegram.fault(Fault.delay(0.2), method="sendMessage", chat_id=new, times=None)
    await stage.start(saying("echo {}"))
    in_new = await stage.write("in the new one", chat=new)
    await tried(stage, 1)
    in_old = await stage.write("in the old one", chat=-100)
    later = await stage.write("later", chat=new)
    await stage.ended(*in_new, *in_old, *later)
    assert sorted(stage.texts(new)) == ["echo in the new one", "echo in the old one", "echo later"]
    assert stage.out_max[str(new)] == 1


# --- never sent -------------------------------------------------------------------------------------------


@pytest.mark.req("OUT-2", "OUT-1")
@pytest.mark.failure("G9")
@pytest.mark.parametrize("condition", ["blocked", "deactivated", "missing"])
async def test_a_chat_that_is_gone_ends_undeliverable_and_the_rest_is_not_tried(stage: Stage, condition: str):
    getattr(stage.telegram.conditions(), condition).add(1)
    await stage.start(saying("1", "2", "3"))
    [gone] = await stage.write("Hello", chat=1)
    [other] = await stage.write("Hello", chat=2)
    [run, _] = await stage.ended(gone, other)
    assert (run.status, run.outcome) == (Status.COMPLETED, Outcome.UNDELIVERABLE)
    assert [reply.state for reply in await answers(stage, gone)] == [ReplyState.FAILED] * 3
    assert len([call for call in stage.calls("sendMessage") if call.chat_id == 1]) == 1
    assert stage.texts(2) == ["1", "2", "3"]
    getattr(stage.telegram.conditions(), condition).clear()
    await stage.ended(*await stage.write("back", chat=1))
    assert stage.texts(1) == ["1", "2", "3"]


@pytest.mark.req("OUT-2")
@pytest.mark.failure("G7")
async def test_a_part_that_is_refused_is_said_so_and_the_parts_around_it_are_sent_once(stage: Stage):
    refused = Fault.bad_request("message is too rude")
    stage.telegram.fault(refused, method="sendMessage", when=lambda call: call.params["text"] == "3")
    await stage.start(saying("1", "2", "3", "4", "5"))
    [task_id] = await stage.write("Hello")
    [run] = await stage.ended(task_id)
    assert stage.texts() == ["1", "2", "4", "5"]
    states = {reply.call.text: reply.state for reply in await answers(stage, task_id)}
    assert states["3"] is ReplyState.FAILED
    assert (run.status, run.outcome) == (Status.COMPLETED, Outcome.UNDELIVERABLE), "half an answer is none"


@pytest.mark.req("OUT-2", "OUT-3")
@pytest.mark.failure("G7")
async def test_of_a_long_text_of_which_a_part_is_refused_the_rest_is_not_sent(stage: Stage):
    refused = Fault.bad_request("message is too rude")
    stage.telegram.fault(refused, method="sendMessage", when=lambda call: "second" in call.params["text"])
    long = "\n\n".join(word + " " + "x" * 3990 for word in ("first", "second", "third", "fourth"))
    await stage.start(saying(long, "apart"))
    [task_id] = await stage.write("Hello")
    [run] = await stage.ended(task_id)
    assert [text.split()[0] for text in stage.texts()] == ["first", "apart"]
    assert run.outcome is Outcome.UNDELIVERABLE
    assert [reply.state for reply in await answers(stage, task_id)][1:4] == [ReplyState.FAILED] * 3
    await stage.ended(*await stage.write("next"))


@pytest.mark.req("OUT-2")
@pytest.mark.failure("G10")
async def test_a_revoked_token_holds_that_bot_only_and_says_so_until_it_works_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(delivery, "ACCOUNT_RETRY_SECONDS", 60.0)
    stage.telegram.add_bot(OTHER_TOKEN)
    heard: list[tuple[str, str | None]] = []
    gateway = await stage.start_gateway(sends=False)
    sender = stage.new_sender(gateway, on_account=lambda channel, account, trouble: heard.append((account, trouble)))
    await gateway.start(sender)
    await stage.start_worker(saying("echo {}"))
    stage.telegram.revoke_token()
    held = await stage.write("one", "two", chat=1)
    await waits(stage, held[0])
    held += await stage.write("three", chat=2)
    await waits(stage, held[2], tries=0)
    await stage.ended(await stage.say("from the other bot", chat=3, account=OTHER))
    assert heard[0][0] == stage.account and "401" in (heard[0][1] or "")
    await stage.pass_time(30)
    await stage.ended(await stage.say("once more", chat=3, account=OTHER))
    tried_in = [call.chat_id for call in stage.calls("sendMessage")]
    assert tried_in == [1, 3, 3], "nothing is tried for the bot that is held, not even in a chat that writes only now"
    stage.telegram.bot().is_token_revoked = False
    await stage.pass_time(61)
    await stage.ended(*held)
    assert (stage.texts(1), stage.texts(2)) == (["echo one", "echo two"], ["echo three"])
    assert heard[-1] == (stage.account, None)
    assert heard.count(heard[-1]) == 1


# --- perhaps sent -----------------------------------------------------------------------------------------


@pytest.mark.req("OUT-1")
@pytest.mark.failure("G4", "G6", "G15")
@pytest.mark.parametrize(("fault", "commits"), AMBIGUOUS)
async def test_what_was_perhaps_sent_is_sent_once_more_and_marked(stage: Stage, fault: Fault, commits: bool):
    stage.call_seconds = 0.2
    stage.telegram.fault(fault, method="sendMessage")
    await stage.start(saying("1 {}", "2 {}"))
    [task_id] = await stage.write("Hello")
    [run] = await stage.ended(task_id)
    assert run.outcome is Outcome.ANSWERED
    assert stage.texts() == [*(["1 Hello"] if commits else []), f"{MARK}1 Hello", "2 Hello"]
    assert (await answers(stage, task_id))[0].resends == 1
    assert (await stage.ledger.outbox_depth()).resent == 1


@pytest.mark.req("OUT-1", "SUS-2")
@pytest.mark.failure("G4", "G7")
async def test_a_second_doubt_is_held_for_a_person_and_what_follows_waits_with_it(stage: Stage):
    third = {"method": "sendMessage", "when": lambda call: call.params["text"].removeprefix(MARK) == "3"}
    stage.telegram.fault(Fault.server_error(), times=2, **third)
    says = saying("1", "2", "3", "4", "5")
    await stage.start(says)
    [task_id] = await stage.write("Hello")
    await stage.suspended(task_id, Reason.REPLY_HELD)

    async def is_announced() -> bool:
        return (task_id, Reason.REPLY_HELD) in [(event["task_id"], event["reason"]) for event in stage.settled]

    await stage.until(is_announced)
    assert stage.texts() == ["1", "2"]
    [unknown] = [reply for reply in await answers(stage, task_id) if reply.state is ReplyState.UNKNOWN]
    assert unknown.call.text.removeprefix(MARK) == "3"
    await stage.pass_time(3600)
    assert stage.texts() == ["1", "2"], "it waits for a person, not for time"
    await stage.operations.resume(task_id, who="operator")
    await stage.ended(task_id)
    assert stage.texts() == ["1", "2", f"{MARK}3", "4", "5"]
    assert says.runs == 1, "resuming a held reply does not run the workflow again"  # type: ignore[attr-defined]


@pytest.mark.req("OUT-1")
@pytest.mark.failure("G4")
async def test_a_held_reply_does_not_hold_up_what_its_chat_is_told_next(stage: Stage):
    stage.delivery_limits = DeliveryLimits(unknown_policy="hold", resend_seconds=0.0)
    stage.telegram.fault(Fault.server_error(), method="sendMessage")
    await stage.start(saying("1 {}", "2 {}"))
    [held, following] = await stage.write("one", "two")
    await stage.suspended(held, Reason.REPLY_HELD)
    await stage.ended(following)
    assert stage.texts() == ["1 two", "2 two"]


@pytest.mark.req("OUT-1", "SUS-3")
@pytest.mark.parametrize("several", [False, True])
async def test_under_the_policy_hold_a_person_decides(stage: Stage, several: bool):
    stage.delivery_limits = DeliveryLimits(unknown_policy="hold", resend_seconds=0.0)
    stage.telegram.fault(Fault.commit_then_close(), method="sendMessage", times=2)
    says = saying("echo {}")
    await stage.start(says)
    [send] = await stage.write("send it", chat=1)
    [drop] = await stage.write("drop it", chat=2)
    for task_id in (send, drop):
        await stage.suspended(task_id, Reason.REPLY_HELD)
    await stage.operations.drop(drop, who="operator", why="it was seen")
    if several:
        await stage.operations.resume_selected(Selection(reason=Reason.REPLY_HELD), who="operator")
    else:
        await stage.operations.resume(send, who="operator")
    for _ in range(6):
        await stage.pass_time(5)  # two failures in a row may have been an outage: then one is tried now and then
    [sent, dropped] = await stage.ended(send, drop)
    assert (sent.status, dropped.status) == (Status.COMPLETED, Status.DROPPED)
    assert [text.removeprefix(MARK) for text in stage.texts(1)] == ["echo send it", "echo send it"]
    assert stage.texts(2) == ["echo drop it"]
    assert says.runs == 2  # type: ignore[attr-defined]


@pytest.mark.req("OUT-1")
@pytest.mark.failure("G4")
async def test_a_link_that_fails_for_a_moment_does_not_use_up_the_repetition(stage: Stage):
    stage.delivery_limits = DeliveryLimits()
    stage.telegram.fault(Fault.commit_then_close(), method="sendMessage")
    await stage.start(saying("echo {}"))
    [task_id] = await stage.write("Hello")

    async def is_meant_again() -> bool:
        return any(reply.resends for reply in await answers(stage, task_id))

    await stage.until(is_meant_again)
    await stage.pass_time(2.5)
    assert len(stage.texts()) == 1
    await stage.pass_time(0.6)
    await stage.ended(task_id)
    assert stage.texts() == ["echo Hello", f"{MARK}echo Hello"]


def outage(stage: Stage, fault: Fault, method: str | None = None) -> asyncio.Event:
    """Every call fails like that until the event is set."""
    over = asyncio.Event()
    stage.telegram.fault(fault, method=method, when=lambda call: not over.is_set(), times=None)
    return over


@pytest.mark.req("OUT-1", "CAP-5")
@pytest.mark.failure("G4", "G6", "G14")
@pytest.mark.parametrize("fault", [Fault.html_body(502), Fault.server_error(503), Fault.close_before_commit()])
async def test_an_outage_costs_nobody_an_answer_and_keeps_the_order(stage: Stage, fault: Fault):
    stage.delivery_limits = DeliveryLimits()
    heard: list[str | None] = []
    gateway = await stage.start_gateway(sends=False)
    await gateway.start(stage.new_sender(gateway, on_account=lambda channel, account, trouble: heard.append(trouble)))
    await stage.start_worker(saying("1 {}", "2 {}"))
    over = outage(stage, fault)
    tasks = [task_id for chat in range(1, 6) for task_id in await stage.write("a", chat=chat)]
    await tried(stage, 1)
    tasks += [task_id for chat in range(1, 6) for task_id in await stage.write("b", chat=chat)]
    for _ in range(60):
        await stage.pass_time(1)
    assert len(heard) == 1 and heard[0] is not None
    calls = [call for call in stage.telegram.calls if call.method == "sendMessage"]
    assert len(calls) <= 5, "one of each chat at most: nothing is repeated as long as the platform does not answer"
    over.set()
    while await stage.open_count():
        await stage.pass_time(1)
    await stage.ended(*tasks)
    for chat in range(1, 6):
        said = [text.removeprefix(MARK) for text in stage.texts(chat)]
        assert said == ["1 a", "2 a", "1 b", "2 b"]
    assert heard[1:] == [None]


@pytest.mark.req("OUT-1")
@pytest.mark.failure("G6")
async def test_where_only_messages_fail_few_are_risked_to_see_whether_that_is_over(stage: Stage):
    stage.delivery_limits = DeliveryLimits()
    await stage.start(saying("echo {}"))
    over = outage(stage, Fault.html_body(502), "sendMessage")
    for chat in range(1, 21):
        await stage.write("Hello", chat=chat)
    await tried(stage, 1)

    async def all_wait() -> bool:
        return (await stage.ledger.outbox_depth()).by_state == {"ready": 20}

    await stage.until(all_wait)
    for _ in range(15):
        await stage.pass_time(1)
        await nothing_out(stage)
    assert (await stage.ledger.outbox_depth()).unknown <= 2, "one is tried after 3 s, another 8 s later"
    over.set()
    for _ in range(40):
        await stage.pass_time(1)
        await nothing_out(stage)
    assert len(stage.telegram.sent) >= 18


@pytest.mark.req("OUT-1")
@pytest.mark.failure("G3", "G6")
async def test_who_begins_to_send_in_an_outage_asks_before_it_repeats_anything(stage: Stage):
    gateway, _ = await stage.start(saying("echo {}"))
    over = outage(stage, Fault.server_error(503))
    gateway.die_at("ledger.outbox_record", "before")
    [task_id] = await stage.write("Hello")
    await gateway.dead()
    await stage.start_gateway()
    for _ in range(20):
        await stage.pass_time(1)
    assert (await waits(stage, task_id, tries=0)).resends == 1
    assert [call.method for call in stage.telegram.calls].count("sendMessage") == 1
    over.set()
    while await stage.open_count():
        await stage.pass_time(1)
    assert stage.texts() == [f"{MARK}echo Hello"]


@pytest.mark.req("OUT-1")
@pytest.mark.failure("G4")
async def test_under_the_policy_resend_it_is_said_again_as_it_was(stage: Stage):
    stage.delivery_limits = DeliveryLimits(unknown_policy="resend", resend_seconds=0.0)
    stage.telegram.fault(Fault.commit_then_close(), method="sendMessage")
    await stage.start(saying("echo {}"))
    await stage.ended(*await stage.write("Hello"))
    assert stage.texts() == ["echo Hello", "echo Hello"]


@pytest.mark.req("OUT-1", "TGM-3")
async def test_what_may_be_done_twice_without_harm_is_repeated_and_not_marked(stage: Stage):
    stage.telegram.fault(Fault.server_error(), method="answerCallbackQuery", times=2)
    await stage.start(saying("echo {}"))
    task_id = await stage.tap("yes")
    await tried(stage, 1, "answerCallbackQuery")
    for _ in range(5):
        await stage.pass_time(3)
    await stage.ended(task_id)
    await tried(stage, 3, "answerCallbackQuery")
    assert stage.texts() == ["echo yes"]


@pytest.mark.req("OUT-1", "TGM-3")
async def test_what_may_be_repeated_is_given_up_after_so_many_times(stage: Stage):
    stage.delivery_limits = DeliveryLimits(repeats_max=2)
    stage.telegram.fault(Fault.server_error(), method="answerCallbackQuery", times=100)
    await stage.start(saying("echo {}"))
    task_id = await stage.tap("yes")
    while len(stage.calls("answerCallbackQuery")) < 3:
        await stage.pass_time(1)

    async def given_up() -> bool:
        return [notice.state for notice in await stage.notices(task_id)] == [ReplyState.FAILED]

    await stage.until(given_up)
    await stage.ended(task_id)
    assert len(stage.calls("answerCallbackQuery")) == 3
    assert stage.texts() == ["echo yes"]


@pytest.mark.req("TGM-3")
async def test_a_workflows_own_answer_to_a_tap_does_not_queue_behind_its_chat(stage: Stage):
    @rise.workflow("taps", channels=["telegram"], answers_callbacks=True)
    async def taps(turn: rise.Turn) -> None:
        if turn.kind == "callback_query":
            await turn.answer_callback("Noted")
        await turn.reply("done")

    stage.telegram.fault(Fault.too_many_requests(60), method="sendMessage")
    await stage.start(taps)
    [paused] = await stage.write("one")
    await waits(stage, paused)
    tapped = await stage.tap("yes")
    await tried(stage, 1, "answerCallbackQuery")
    assert stage.texts() == []
    await stage.pass_time(61)
    await stage.ended(paused, tapped)
    assert stage.texts() == ["done", "done"]


@pytest.mark.req("TGM-3", "OUT-2")
@pytest.mark.failure("G17")
async def test_an_answer_that_is_waited_for_goes_before_all_that_the_bot_still_has_to_send(stage: Stage):
    stage.rates = TelegramRates(chat_per_second=1e6, group_per_minute=1e6, bot_per_second=1.0)
    await stage.start(saying("echo {}"))
    tasks = [task_id for chat in range(1, 31) for task_id in await stage.write("Hello", chat=chat)]
    await tried(stage, 1)
    await nothing_out(stage)
    tapped = await stage.tap("yes", chat=99)
    await tried(stage, 1, "answerCallbackQuery")
    await nothing_out(stage)
    assert len(stage.telegram.sent) == 1
    await stage.pass_time(1.1)
    await nothing_out(stage)
    assert len(stage.telegram.sent) == 1, "who has a time goes by so much later"
    while len(stage.telegram.sent) < 31:
        await stage.pass_time(1)
    await stage.ended(*tasks, tapped)


@pytest.mark.req("TGM-3")
async def test_an_answer_that_is_waited_for_has_a_place_when_all_are_taken_by_chats_that_hang(stage: Stage):
    stage.delivery_limits = DeliveryLimits(chats_at_once=2)
    stage.telegram.fault(Fault.delay(2), method="sendMessage", times=3)
    await stage.start(saying("echo {}"))
    hanging = [task_id for chat in (1, 2, 3) for task_id in await stage.write("Hello", chat=chat)]
    await tried(stage, 2)
    await stage.tap("yes", chat=99)
    await tried(stage, 1, "answerCallbackQuery")
    assert stage.telegram.sent == []
    await stage.ended(*hanging)


@pytest.mark.req("TGM-3", "OUT-1")
async def test_an_answer_to_a_tap_that_comes_too_late_is_not_sent_and_holds_nothing_up(stage: Stage):
    @rise.workflow("taps", channels=["telegram"], answers_callbacks=True)
    async def taps(turn: rise.Turn) -> None:
        await turn.answer_callback("Noted")
        await turn.reply("done")

    gateway = await stage.start_gateway(sends=False)
    worker = await stage.start_worker(taps)
    task_id = await stage.tap("yes")
    await stage.until(lambda: _true(worker.steps.count("queue.settle")))
    await stage.pass_time(151)
    await gateway.start(stage.new_sender(gateway))
    [run] = await stage.ended(task_id)
    assert stage.calls("answerCallbackQuery") == []
    assert stage.texts() == ["done"]
    assert (run.status, run.outcome) == (Status.COMPLETED, Outcome.UNDELIVERABLE), "not all of it was in time"


@pytest.mark.req("TGM-3")
async def test_a_tap_whose_answer_comes_too_late_expires(stage: Stage):
    @rise.workflow("taps", channels=["telegram"], answers_callbacks=True)
    async def taps(turn: rise.Turn) -> None:
        await turn.answer_callback("Noted")

    stage.telegram.fault(Fault.too_many_requests(152), method="answerCallbackQuery")
    await stage.start(taps)
    task_id = await stage.tap("yes")
    await waits(stage, task_id)
    await stage.pass_time(153)
    [run] = await stage.ended(task_id)
    assert (run.status, run.outcome) == (Status.EXPIRED, None)
    assert "too late" in ((await answers(stage, task_id))[0].error or "")
    assert len(stage.calls("answerCallbackQuery")) == 1

    async def is_announced() -> bool:
        return [settled["status"] for settled in stage.settled] == [Status.EXPIRED]

    await stage.until(is_announced)


@pytest.mark.req("SUS-3", "OUT-1")
@pytest.mark.failure("E11", "H8")
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault.too_many_requests(5), id="refused for now"),
        pytest.param(Fault.server_error(), id="perhaps sent"),
    ],
)
async def test_what_is_dropped_while_its_call_is_out_is_not_sent_again_whatever_came_of_it(stage: Stage, fault: Fault):
    stage.telegram.fault(fault, method="sendMessage")
    gateway, _ = await stage.start(saying("1 {}", "2 {}"))
    held = gateway.hold_at("channel.send", "after")
    [task_id] = await stage.write("Hello")
    await held.reached()
    await stage.operations.drop(task_id, who="operator")
    held.open()
    await stage.ended(task_id)
    for _ in range(4):
        await stage.pass_time(60)
    [after] = await stage.write("after")
    await stage.ended(after)
    assert stage.texts() == ["1 after", "2 after"]


@pytest.mark.req("SUS-3", "OUT-1")
async def test_what_is_dropped_at_the_last_moment_holds_nothing_up(stage: Stage):
    gateway, _ = await stage.start(saying("echo {}"))
    held = gateway.hold_at("ledger.outbox_sending", "before")
    dropped, kept = await stage.write("one", "two")
    await held.reached()
    await stage.operations.drop(dropped, who="operator")
    held.open()
    await stage.ended(dropped, kept)
    assert stage.texts() == ["echo two"]


@pytest.mark.req("SUS-3", "OUT-1")
@pytest.mark.failure("E11", "G3")
async def test_what_was_being_sent_when_the_sender_died_is_not_sent_again_once_it_is_dropped(stage: Stage):
    gateway, _ = await stage.start(saying("1 {}", "2 {}"))
    gateway.die_at("channel.send", "before")
    [task_id] = await stage.write("Hello")
    await gateway.dead()
    await stage.operations.drop(task_id, who="operator")
    await stage.start_gateway()
    await stage.ended(task_id)
    await stage.ended(*await stage.write("after"))
    assert stage.texts() == ["1 after", "2 after"]


@pytest.mark.req("OUT-2")
async def test_a_reply_whose_channel_is_not_configured_waits_until_it_is(stage: Stage):
    gateway = await stage.start_gateway(sends=False)
    await stage.start_worker(saying("echo {}"))
    [task_id] = await stage.write("Hello")
    without = Sender(ledger=gateway.ledger, queue=gateway.queue, channels={}, bus=gateway.bus, clock=stage.clock)
    await gateway.start(without)
    assert "not configured" in str((await waits(stage, task_id)).error)
    await stage.pass_time(delivery.ACCOUNT_RETRY_SECONDS - 1)
    assert gateway.steps.count("ledger.outbox_record") == 1
    await without.stop()
    await stage.start_gateway()
    await stage.pass_time(LEASE_SECONDS + 1)
    await stage.ended(task_id)
    assert stage.texts() == ["echo Hello"]


# --- what cannot be read ----------------------------------------------------------------------------------


@pytest.mark.req("OUT-1", "SUS-2")
@pytest.mark.failure("D12", "M4")
async def test_a_reply_that_cannot_be_read_waits_for_a_person_and_all_others_go_out(stage: Stage):
    await stage.start_gateway(sends=False)
    await stage.start_worker(saying("echo {}"))
    [spoilt, following] = await stage.write("one", "two", chat=1)
    [other] = await stage.write("three", chat=2)
    for task_id in (spoilt, following, other):
        await waits(stage, task_id, tries=0)
    kept = await stage.rewrite("replies", spoilt, call=b'{"method":["of tomorrow"]}')
    gateway = await stage.start_gateway()

    async def is_held() -> bool:
        await gateway.supervisor.sweep()  # the sender may be there before the worker has let go
        task = await stage.look(spoilt)
        return task is not None and task.reason is Reason.REPLY_HELD

    await stage.until(is_held)
    assert "unreadable" in ((await answers(stage, spoilt))[0].error or "")
    await stage.ended(following, other)
    assert (stage.texts(1), stage.texts(2)) == (["echo two"], ["echo three"])
    await stage.operations.resume(spoilt, who="operator")
    await stage.until(is_held)
    assert len(stage.calls("sendMessage")) == 2, "what nobody can read is not sent, whoever says so"
    await stage.rewrite("replies", spoilt, call=kept)  # as a newer version reads it
    await stage.operations.resume(spoilt, who="operator")
    await stage.ended(spoilt)
    assert stage.texts(1) == ["echo two", "echo one"]


# --- who sends --------------------------------------------------------------------------------------------


@pytest.mark.req("OUT-2")
@pytest.mark.failure("G8")
@pytest.mark.parametrize("step", ["ledger.outbox_sending", "channel.send", "ledger.outbox_record"])
async def test_of_two_senders_the_older_can_do_nothing_any_more(stage: Stage, step: str):
    old, _ = await stage.start(saying("1 {}", "2 {}"))
    held = old.hold_at(step, "before")
    [task_id] = await stage.write("Hello")
    await held.reached()
    new = await stage.start_gateway()
    await old.ledger.leave_offices(old.bus.member)  # as when it could not say for a while that it has the office
    await stage.pass_time(2)
    await stage.ended(task_id)
    held.open()
    await stage.let_go_on()
    await stage.ended(*await stage.write("next"))
    unmarked = [text for text in stage.texts() if not text.startswith(MARK)]
    assert [text for text in unmarked if text.endswith("next")] == ["1 next", "2 next"]
    assert len(unmarked) == len(set(unmarked))
    repeats = {"ledger.outbox_sending": 0, "channel.send": 1, "ledger.outbox_record": 1}[step]
    assert len(stage.telegram.sent) - 4 == repeats, "what the older had begun is the one doubt there is"
    assert new.steps.count("channel.send") >= 4


@pytest.mark.req("OUT-1")
@pytest.mark.parametrize(("step", "is_repeated"), [("ledger.outbox_record", True), ("queue.finish", False)])
async def test_a_bug_of_ours_after_a_call_holds_no_chat_for_ever(stage: Stage, step: str, is_repeated: bool):
    gateway, _ = await stage.start(saying("1 {}", "2 {}"))
    gateway.fail_at(step, "before", ValueError("a bug of ours"))
    [task_id] = await stage.write("one")
    await tried(stage, 1 if is_repeated else 2)
    for _ in range(4):
        await stage.pass_time(delivery.ACCOUNT_RETRY_SECONDS + 1)
    await stage.ended(task_id, *await stage.write("two"))
    assert [text for text in stage.texts() if not text.startswith(MARK)] == ["1 one", "2 one", "1 two", "2 two"]
    assert sum(text.startswith(MARK) for text in stage.texts()) == is_repeated


@pytest.mark.req("CAP-5", "OUT-2")
@pytest.mark.failure("G8")
async def test_who_does_not_send_any_more_says_nothing_of_the_bots(stage: Stage):
    heard: list[str | None] = []
    old = await stage.start_gateway(sends=False)
    await old.start(stage.new_sender(old, on_account=lambda channel, account, trouble: heard.append(trouble)))
    await stage.start_worker(saying("echo {}"))
    stage.telegram.revoke_token()
    [task_id] = await stage.write("one")
    await waits(stage, task_id)
    frozen = old.hold_at("ledger.take_office", "before")
    await stage.pass_time(LEASE_SECONDS / 2)
    await frozen.reached()
    await old.ledger.leave_offices(old.bus.member)  # as when its lease is over
    stage.telegram.bot().is_token_revoked = False
    await stage.start_gateway()
    await stage.pass_time(delivery.ACCOUNT_RETRY_SECONDS + 1)
    await stage.ended(task_id)
    assert stage.texts() == ["echo one"]
    assert heard[-1] is not None
    frozen.open()

    for _ in range(20):
        await stage.pass_time(1)
    assert heard[-1] is None


@pytest.mark.req("OUT-1", "QUE-2")
async def test_each_chat_has_one_call_out_and_all_chats_go_on_beside_each_other(stage: Stage):
    everybody_is_out = asyncio.Event()
    stage.telegram.fault(Fault.delay(0.1), method="sendMessage", times=20)
    gateway, _ = await stage.start(saying("1 {}", "2 {}"))

    async def together() -> None:
        if sum(stage.out.values()) >= 4:
            everybody_is_out.set()

    gateway.at("channel.send", "before", together, times=1000)
    tasks = [task_id for chat in range(1, 7) for task_id in await stage.write("a", "b", chat=chat)]
    await stage.ended(*tasks)
    assert everybody_is_out.is_set()
    assert set(stage.out_max.values()) == {1}
    for chat in range(1, 7):
        assert stage.texts(chat) == ["1 a", "2 a", "1 b", "2 b"]


@pytest.mark.req("OUT-1")
async def test_a_chat_that_the_platform_keeps_waiting_does_not_hold_up_the_others(stage: Stage):
    stage.telegram.fault(Fault.delay(2), method="sendMessage", chat_id=1)
    await stage.start(saying("echo {}"))
    [slow] = await stage.write("slow", chat=1)
    await tried(stage, 1)
    await stage.ended(*await stage.write("one", "two", chat=2))
    assert stage.texts(1) == []
    await stage.ended(slow)


@pytest.mark.req("OUT-2")
@pytest.mark.failure("G17")
async def test_a_chat_is_sent_to_no_faster_than_it_may_be(stage: Stage):
    stage.rates = TelegramRates(chat_per_second=1.0, group_per_minute=20.0, bot_per_second=30.0)
    await stage.start(saying("1", "2", "3"))
    [task_id] = await stage.write("Hello", chat=1)
    [other] = await stage.write("Hello", chat=2)
    for count in (1, 2, 3):
        await tried(stage, count * 2)
        await nothing_out(stage)
        assert (len(stage.texts(1)), len(stage.texts(2))) == (count, count)
        await stage.pass_time(0.9)
        assert len(stage.telegram.sent) == count * 2
        await stage.pass_time(0.11)
    await stage.ended(task_id, other)


@pytest.mark.req("OUT-2")
@pytest.mark.failure("G17")
async def test_a_group_gets_no_more_in_a_minute_than_it_may(stage: Stage):
    stage.rates = TelegramRates(chat_per_second=1e6, group_per_minute=20.0, bot_per_second=1e6)
    await stage.start(saying(*(f"{n}" for n in range(25))))
    [task_id] = await stage.write("Hello", chat=-5)
    await tried(stage, 20)
    await nothing_out(stage)
    assert len(stage.texts(-5)) == 20
    for count in range(21, 26):
        await stage.pass_time(3.01)
        await tried(stage, count)
        await nothing_out(stage)
    await stage.ended(task_id)


@pytest.mark.req("OUT-2")
@pytest.mark.failure("G17")
async def test_chats_that_wait_for_their_pace_leave_their_place_to_others(stage: Stage):
    stage.rates = TelegramRates(chat_per_second=1e6, group_per_minute=1.0, bot_per_second=1e6)
    stage.delivery_limits = DeliveryLimits(chats_at_once=1)
    await stage.start(saying("1 {}", "2 {}"))
    slow = [await stage.write("Hello", chat=-chat) for chat in range(1, 4)]
    await tried(stage, 3)
    await stage.ended(*await stage.write("quick", chat=9))
    assert stage.texts(9) == ["1 quick", "2 quick"]
    assert [stage.texts(-chat) for chat in range(1, 4)] == [["1 Hello"]] * 3
    await stage.pass_time(61)
    await stage.ended(*(task_id for [task_id] in slow))


@pytest.mark.req("OUT-2")
@pytest.mark.failure("G17")
async def test_a_bot_sends_no_faster_than_it_may_in_all(stage: Stage):
    stage.rates = TelegramRates(chat_per_second=1e6, group_per_minute=1e6, bot_per_second=5.0)
    await stage.start(saying("echo {}"))
    tasks = [task_id for chat in range(1, 16) for task_id in await stage.write("Hello", chat=chat)]
    await tried(stage, 5)
    await all_sent_at_a_pace(stage, 15, at_once=5, per_second=5.0)
    await stage.ended(*tasks)


@pytest.mark.req("OUT-2")
@pytest.mark.failure("G8", "G17")
async def test_a_sender_that_has_taken_over_again_sends_no_faster(stage: Stage):
    """By then the times that it had given are past."""
    stage.rates = TelegramRates(chat_per_second=1e6, group_per_minute=1e6, bot_per_second=5.0)
    gateway, _ = await stage.start(saying("echo {}"))
    tasks = [task_id for chat in range(1, 26) for task_id in await stage.write("Hello", chat=chat)]
    await tried(stage, 5)
    await nothing_out(stage)
    held = gateway.hold_at("ledger.outbox_open", "before")
    await stage.ledger.outbox_open()
    for _ in range(8):
        await stage.pass_time(1.0)
    await held.reached()
    since = stage.clock.monotonic()
    held.open()
    while len(stage.telegram.sent) < 25:
        await nothing_out(stage)
        await stage.pass_time(0.1)
        assert len(stage.telegram.sent) <= 5 + 5 + 5 * (stage.clock.monotonic() - since) + 0.001
    await stage.ended(*tasks)


@pytest.mark.req("OUT-2")
async def test_a_bot_may_be_allowed_less_than_one_call_a_second(stage: Stage):
    stage.rates = TelegramRates(chat_per_second=1e6, group_per_minute=1e6, bot_per_second=0.5)
    await stage.start(saying("echo {}"))
    tasks = [task_id for chat in (1, 2) for task_id in await stage.write("Hello", chat=chat)]
    await tried(stage, 1)
    await all_sent_at_a_pace(stage, 2, at_once=1, per_second=0.5)
    await stage.ended(*tasks)


@pytest.mark.req("OUT-3")
async def test_people_see_that_an_answer_is_coming_while_a_workflow_runs_and_not_afterwards(stage: Stage):
    stage.worker_limits = WorkerLimits(run_seconds=60)
    held = asyncio.Event()

    @rise.workflow("slow", channels=["telegram"])
    async def slow(turn: rise.Turn) -> None:
        await held.wait()
        await turn.reply("done")

    await stage.start(slow)
    begun, over = asyncio.Event(), asyncio.Event()
    stage.bus.subscribe(Topic.RUN_STARTED, lambda _: begun.set())
    stage.bus.subscribe(Topic.RUN_ENDED, lambda _: over.set())
    [task_id] = await stage.write("Hello")
    await begun.wait()
    await stage.let_go_on()
    assert stage.calls("sendChatAction") == [], "a quick answer needs none"
    await stage.pass_time(0.4)
    await tried(stage, 1, "sendChatAction")
    await stage.let_go_on()
    await stage.pass_time(4.6)
    await tried(stage, 2, "sendChatAction")
    held.set()
    await over.wait()
    await stage.ended(task_id)
    count = len(stage.calls("sendChatAction"))
    for _ in range(5):
        await stage.pass_time(5)
    assert len(stage.calls("sendChatAction")) == count


@pytest.mark.req("OUT-2", "OUT-3")
@pytest.mark.failure("G17")
async def test_that_an_answer_is_coming_is_shown_only_where_no_reply_has_to_wait_for_it(stage: Stage):
    stage.rates = TelegramRates(chat_per_second=1e6, group_per_minute=1e6, bot_per_second=10.0)
    stage.worker_limits = WorkerLimits(run_seconds=60, concurrency=40)
    held, all_run, began = asyncio.Event(), asyncio.Event(), list[str]()

    @rise.workflow("slow", channels=["telegram"])
    async def slow(turn: rise.Turn) -> None:
        began.append(turn.text)
        if len(began) == 20:
            all_run.set()
        await held.wait()
        await turn.reply("done")

    await stage.start(slow)
    await stage.start_gateway()  # hears of the runs as well, and does not send
    tasks = [task_id for chat in range(1, 21) for task_id in await stage.write("Hello", chat=chat)]
    await all_run.wait()
    await stage.let_go_on()
    await stage.pass_time(0.4)
    await tried(stage, 5, "sendChatAction")
    await stage.let_go_on()
    assert len(stage.calls("sendChatAction")) == 5, "half of what may go at once is left for replies"
    held.set()
    await tried(stage, 5)
    while len(stage.telegram.sent) < 20:
        await stage.pass_time(0.1)
    await stage.ended(*tasks)


LACKING: Any = object()
ODD: list[Any] = [None, "", 0, [], {}, ["x"], {"x": 1}, "x", -1, 1e300]


@pytest.mark.failure("M4")
@pytest.mark.parametrize("topic", [Topic.RUN_STARTED, Topic.RUN_ENDED, Topic.TASK_SETTLED])
async def test_what_another_version_says_breaks_nobody_who_listens(stage: Stage, topic: Topic):
    """Whatever field is missing or of another type; and afterwards everybody listens still."""
    whole = {
        "run_id": "t_x.0", "task_id": "t_x", "channel": "telegram", "account": stage.account, "chat_id": "42",
        "status": "completed", "outcome": "answered", "reason": "workflow_pending", "workflow_id": "w", "seconds": 1.5,
    }  # fmt: skip
    gateway, _ = await stage.start(saying("echo {}"))
    for field in whole:
        for number, odd in enumerate([LACKING, *ODD]):
            event = whole | {"run_id": f"t_{field}{number}.0"} | {field: odd}
            gateway.bus.publish(topic, {name: value for name, value in event.items() if value is not LACKING})
    gateway.bus.publish(topic, {})
    await stage.ended(*await stage.write("Hello"))
    assert [entry for entry in stage.log if entry["event"] == "bus.listener_failed"] == []


# --- the store --------------------------------------------------------------------------------------------


@pytest.mark.req("OUT-1")
@pytest.mark.parametrize("edge", ["before", "after"])
@pytest.mark.parametrize(
    "step", ["ledger.outbox_take", "ledger.outbox_sending", "ledger.outbox_record", "queue.finish"]
)
async def test_a_store_that_fails_while_sending_repeats_nothing(stage: Stage, step: str, edge: Any):
    gateway, _ = await stage.start(saying("1 {}", "2 {}"))
    gateway.fail_at(step, edge, StoreUnavailable("the disk is full"), nth=2 if step == "ledger.outbox_take" else 1)
    tasks = await stage.write("one", "two")
    for _ in range(40):
        if not await stage.open_count():
            break
        await stage.pass_time(31 if step == "queue.finish" else 2)
    await stage.ended(*tasks)
    seen = [text.removeprefix(MARK) for text in stage.texts()]
    assert seen == ["1 one", "2 one", "1 two", "2 two"]
    assert len(stage.telegram.sent) == 4


@pytest.mark.req("WRK-6", "OUT-1")
async def test_a_stop_lets_calls_that_are_out_come_to_their_end(stage: Stage):
    stage.telegram.fault(Fault.delay(0.2), method="sendMessage")
    gateway, _ = await stage.start(saying("1 {}", "2 {}"))
    [task_id] = await stage.write("Hello")
    await tried(stage, 1)
    await gateway.stop()
    assert stage.texts() == ["1 Hello"]
    await stage.start_gateway()
    await stage.ended(task_id)
    assert stage.texts() == ["1 Hello", "2 Hello"], "nothing is in doubt after a stop in order"


@pytest.mark.req("WRK-6", "OUT-1")
@pytest.mark.failure("D18")
async def test_a_stop_begins_no_call(stage: Stage):
    stage.rates = TelegramRates(chat_per_second=5.0, group_per_minute=1e6, bot_per_second=1e6)
    gateway, _ = await stage.start(saying("1", "2", "3", "4", "5", "6"))
    [task_id] = await stage.write("Hello")
    await tried(stage, 5)
    await nothing_out(stage)
    stopping = asyncio.create_task(gateway.stop())
    for _ in range(10):
        await stage.let_go_on()
        stage.clock.advance(0.1)
    await stopping
    assert stage.texts() == ["1", "2", "3", "4", "5"], "the sixth had to wait for a fifth of a second"
    await stage.start_gateway()
    await stage.ended(task_id)
    assert stage.texts() == ["1", "2", "3", "4", "5", "6"]


async def _true(value: Any) -> Any:
    return value
