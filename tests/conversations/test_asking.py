"""The worker's side: what a conversation is told, how long its answer is waited for, and what a failure counts as."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import asdict
from typing import Any

import msgspec
import pytest

from rise.bindings import Bound
from rise.bursts import Burst
from rise.conversations.asking import HOLD_SECONDS, UNHEARD_TRIES, Conversations, is_conversation
from rise.conversations.port import (
    TEXT_CHARS_MAX,
    UNKNOWN,
    ConversationMessage,
    Failure,
    FailureKind,
    Response,
    ResponseStatus,
    conversation_id_of,
    message_of,
)
from rise.definitions.records import BindingRecord, WorkflowRecord
from rise.envelope import Task
from rise.errors import ConversationFailed, ConversationRefused, TemporalUnavailable, WaitsForDependency
from rise.ledger.port import Attempt
from rise.testing.clock import ManualClock
from rise.testing.conformance.ledger import task
from rise.workflows.runner import Ran

WAITING = Response(ResponseStatus.WAITING)
SEVEN = {"effects": [], "value": 7, "stages": []}
BOUND = Bound(
    WorkflowRecord(workflow_id="wf_talks", name="talks", version=3),
    BindingRecord(channel="telegram", account="7", workflow_id="wf_talks", engine="temporal"),
)
pytestmark = pytest.mark.req("TMP-1")


class Server:
    """Answers what a test says, the last of it for ever."""

    def __init__(self, *responses: Response) -> None:
        self.responses = list(responses)
        self.told: list[ConversationMessage] = []
        self.asked = 0

    async def tell(self, conversation_id: str, message: ConversationMessage) -> None:
        self.told.append(message)

    async def ask(self, conversation_id: str, request_id: str) -> Response:
        self.asked += 1
        return self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]


class Noted:
    """What of a ledger is asked here."""

    def __init__(self, tries: int = 0, steps: dict[str, bytes] | None = None) -> None:
        self.tries = tries
        self.kept = steps or {}

    async def attempts(self, run_id: str) -> list[Attempt]:
        """The last of them."""
        return [Attempt(at_ms=self.tries, error="no", counted=True, number=self.tries)] if self.tries else []

    async def steps(self, run_id: str) -> dict[str, bytes]:
        return self.kept


def conversations(server: Server, clock: ManualClock, *, tries: int = 0, **steps: bytes) -> Conversations:
    ledger: Any = Noted(tries, {"conversation:ran:wf_talks:3": steps["ran"]} if steps else {})
    bus: Any = Silent()
    return Conversations(server, ledger, bus, clock)


class Silent:
    """A bus that nobody hears."""

    def publish(self, topic: object, payload: object = None) -> None:
        return None


def begun(of: Task) -> Task:
    return msgspec.structs.replace(of, progress=msgspec.structs.replace(of.progress, is_begun=True))


def headed(of: Task, **fields: Any) -> Task:
    return msgspec.structs.replace(of, head=msgspec.structs.replace(of.head, **fields))


# --- what is told ---


def test_the_payload_is_five_fields_and_plain_data() -> None:
    of = headed(task(1), metadata={"update_id": "1001"}, user_text="x" * 5000)
    said = asdict(message_of(Burst(of), BOUND, tries=2))
    assert set(said) == {"update_id", "chat_id", "sequence", "request_id", "message"}
    assert (said["update_id"], said["sequence"], said["request_id"]) == ("1001", 1001, of.run_id)
    assert said["message"]["tries"] == 2
    assert (said["message"]["workflow_id"], said["message"]["workflow_version"]) == ("wf_talks", 3)
    assert len(said["message"]["text"]) == TEXT_CHARS_MAX
    json.dumps(said)


def test_what_a_person_has_run_again_is_no_duplicate_of_what_was_answered() -> None:
    of = headed(task(1, generation=1), metadata={"update_id": "1001"})
    assert message_of(Burst(of), BOUND, tries=0).update_id == "1001.1"


def test_what_has_no_number_of_its_own_is_known_by_its_task_and_has_no_place_in_the_sequence() -> None:
    of = headed(task(1), metadata={})
    assert (message_of(Burst(of), BOUND, tries=0).update_id, message_of(Burst(of), BOUND, tries=0).sequence) == (
        of.task_id,
        0,
    )


@pytest.mark.parametrize("channel", ["http", "webchat"])
def test_what_a_caller_calls_its_update_is_not_what_its_message_is_known_by(channel: str) -> None:
    of = headed(task(1), channel=channel, metadata={"update_id": "7"})
    said = message_of(Burst(of), BOUND, tries=0)
    assert (said.update_id, said.sequence) == (of.task_id, 0)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"account": "7", "chat_id": "42"}, "chat:7:42"),
        ({"account": "7", "chat_id": "-100", "first_chat_id": "-5"}, "chat:7:-5"),
        ({"channel": "webchat", "account": "default", "chat_id": "42"}, "chat:webchat:default:42"),
        ({"channel": "http", "account": "default", "chat_id": None}, None),
    ],
)
def test_a_chat_has_one_conversation_whichever_of_its_ids_it_is_written_in(fields: Any, named: str | None) -> None:
    of = headed(task(1), **fields)
    assert conversation_id_of(of.head) == named
    assert is_conversation(BOUND, of) == (named is not None)


def test_only_what_its_binding_leaves_to_temporal_is_a_conversations() -> None:
    native = msgspec.structs.replace(BOUND.binding, engine="native")
    assert not is_conversation(Bound(BOUND.workflow, native), task(1))
    assert not is_conversation(Bound(BOUND.workflow, None), task(1)), "nor what names its workflow itself"


# --- how long it is waited for ---


async def waited_for(answer: Coroutine[Any, Any, Ran | None], clock: ManualClock) -> Ran | None:
    """Whoever sleeps for it wakes at once."""
    asking = asyncio.ensure_future(answer)
    while not asking.done():
        if clock.next_wake_seconds is not None:
            clock.advance(clock.next_wake_seconds)
        await asyncio.sleep(0)
    return await asking


async def test_a_place_is_held_no_longer_than_ten_seconds_and_then_looked_at_once() -> None:
    clock, server = ManualClock(), Server(WAITING)
    assert await waited_for(conversations(server, clock).answer(Burst(task(1)), BOUND), clock) is None
    assert (len(server.told), server.asked < 40) == (1, True)
    asked, began = server.asked, clock.monotonic()
    assert await conversations(server, clock).answer(Burst(begun(task(1))), BOUND) is None
    assert (server.asked, clock.monotonic()) == (asked + 1, began), "whoever looks again does not wait"
    assert began - ManualClock().monotonic() == pytest.approx(HOLD_SECONDS, abs=0.01)


async def test_what_was_begun_is_asked_for_before_it_is_told() -> None:
    server = Server(Response(ResponseStatus.ANSWERED, ran=SEVEN))
    ran = await conversations(server, ManualClock()).answer(Burst(begun(task(1))), BOUND)
    assert ran is not None and ran.value == 7
    assert server.told == []


async def test_what_was_begun_and_never_told_is_told() -> None:
    server = Server(UNKNOWN, Response(ResponseStatus.ANSWERED, ran=SEVEN))
    assert await conversations(server, ManualClock()).answer(Burst(begun(task(1))), BOUND) is not None
    assert len(server.told) == 1


# --- what fails ---


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (FailureKind.OWN, ConversationFailed),
        (FailureKind.REFUSED, ConversationRefused),
        (FailureKind.DEPENDENCY, WaitsForDependency),
    ],
)
async def test_a_failure_is_what_the_retry_policy_would_have_seen_of_it_here(
    kind: FailureKind, error: type[Exception]
) -> None:
    server = Server(Response(ResponseStatus.FAILED, failure=Failure(kind, "ValueError: no", 7.0)))
    with pytest.raises(error, match="ValueError: no"):
        await conversations(server, ManualClock()).answer(Burst(task(1)), BOUND)


async def test_what_a_process_has_not_loaded_is_no_try_and_is_told_again() -> None:
    untried = Response(
        ResponseStatus.FAILED, failure=Failure(FailureKind.DEPENDENCY, "has not loaded talks"), is_untried=True
    )
    with pytest.raises(TemporalUnavailable, match="has not loaded talks"):
        await conversations(Server(untried), ManualClock()).answer(Burst(task(1)), BOUND)
    server = Server(untried, Response(ResponseStatus.ANSWERED, ran=SEVEN))
    assert await conversations(server, ManualClock()).answer(Burst(begun(task(1))), BOUND) is not None
    assert [one.tries for one in server.told] == [0]


async def test_a_failure_that_is_written_down_is_none_of_this_try_and_is_told_again() -> None:
    failed = Response(ResponseStatus.FAILED, 0, failure=Failure(FailureKind.OWN, "ValueError: no"))
    server = Server(failed, Response(ResponseStatus.ANSWERED, 1, ran=SEVEN))
    assert await conversations(server, ManualClock(), tries=1).answer(Burst(begun(task(1))), BOUND) is not None
    assert [one.tries for one in server.told] == [1]


async def test_a_failure_that_nobody_has_written_down_is_news() -> None:
    failed = Response(ResponseStatus.FAILED, 1, failure=Failure(FailureKind.OWN, "ValueError: no"))
    server = Server(failed)
    with pytest.raises(ConversationFailed):
        await conversations(server, ManualClock(), tries=1).answer(Burst(begun(task(1))), BOUND)
    assert server.told == []


KEPT = Response(ResponseStatus.ANSWERED, is_kept=True)


@pytest.mark.parametrize("later", [[KEPT], [WAITING, UNKNOWN]])
async def test_what_is_lost_on_the_way_is_looked_for_again_and_is_nobodys_failure(later: list[Response]) -> None:
    clock = ManualClock()
    with pytest.raises(WaitsForDependency):
        await waited_for(conversations(Server(*later), clock).answer(Burst(task(1)), BOUND), clock)


@pytest.mark.parametrize("tries", range(UNHEARD_TRIES))
async def test_what_was_told_and_is_not_known_is_no_fault_of_its_own_at_first(tries: int) -> None:
    with pytest.raises(WaitsForDependency, match="knows nothing of it"):
        await conversations(Server(UNKNOWN), ManualClock(), tries=tries).answer(Burst(begun(task(1))), BOUND)


async def test_what_was_told_and_is_never_known_uses_up_tries_and_cannot_go_on_for_ever() -> None:
    with pytest.raises(ConversationFailed, match="knows nothing of it"):
        await conversations(Server(UNKNOWN), ManualClock(), tries=UNHEARD_TRIES).answer(Burst(begun(task(1))), BOUND)


async def test_what_the_ledger_keeps_for_the_conversation_is_taken_from_there() -> None:
    server = Server(KEPT)
    ran = await conversations(server, ManualClock(), ran=json.dumps(SEVEN).encode()).answer(
        Burst(begun(task(1))), BOUND
    )
    assert ran is not None and ran.value == 7
    assert server.told == []


async def test_what_the_ledger_has_lost_is_told_again_by_the_next_try() -> None:
    server = Server(KEPT, Response(ResponseStatus.ANSWERED, 1, ran=SEVEN))
    assert await conversations(server, ManualClock(), tries=1).answer(Burst(begun(task(1))), BOUND) is not None
    assert [one.tries for one in server.told] == [1]


async def test_what_was_answered_with_another_that_has_ended_by_itself_since_is_told_again_without() -> None:
    of, other = begun(task(1)), task(2)
    of_both = Response(ResponseStatus.ANSWERED, ran=SEVEN, followers=[other.task_id])
    assert await conversations(Server(of_both), ManualClock()).answer(Burst(of, (other,)), BOUND) is not None
    server = Server(of_both, Response(ResponseStatus.ANSWERED, ran=SEVEN))
    assert await conversations(server, ManualClock()).answer(Burst(of), BOUND) is not None
    assert [one.followers for one in server.told] == [[]]


async def test_what_comes_without_another_that_is_still_to_be_answered_with_it_is_not_taken() -> None:
    server = Server(Response(ResponseStatus.ANSWERED, ran=SEVEN))
    with pytest.raises(WaitsForDependency):
        await conversations(server, ManualClock()).answer(Burst(task(1), (task(2),)), BOUND)


@pytest.mark.parametrize("named", [("wf_talks", 2), ("wf_another", 3)])
async def test_what_another_workflow_or_version_has_answered_is_not_taken_and_is_told_again(
    named: tuple[str, int],
) -> None:
    of_another = Response(ResponseStatus.ANSWERED, ran=SEVEN, workflow_id=named[0], workflow_version=named[1])
    own = Response(ResponseStatus.ANSWERED, ran=SEVEN | {"value": 8}, workflow_id="wf_talks", workflow_version=3)
    server = Server(of_another, own)
    ran = await conversations(server, ManualClock()).answer(Burst(begun(task(1))), BOUND)
    assert ran is not None and ran.value == 8
    assert len(server.told) == 1
    with pytest.raises(WaitsForDependency):
        await conversations(Server(of_another), ManualClock()).answer(Burst(task(1)), BOUND)
