"""A conversation as Temporal carries it on: one chat, for months.

It is told of messages by a signal, has each run by an activity, and says by a query what has come of it. What it
decides is in `memory.py`; what a run does is Rise's (`running.py`), so that almost nothing here ever has to change.

Promises: begun before any worker is there, it waits and then goes on. Its history is begun anew before it is long, and
what was told meanwhile goes with it.

Refuses: to order messages. Rise's lanes do, and only they know which of a chat may go beside another, such as a tap.

Changing it: conversations that have begun go on with the new code from their old history. Every change of what is
decided stands behind `workflow.patched("a name")`, and `tests/conversations/histories` gets one of what there was
before (docs/conversations.md).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Final

from temporalio import exceptions, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    # Once for the process: what they hold is either constant or the conversation's own.
    from rise.conversations.memory import REMEMBERED_MS, ConversationMemory, Rules
    from rise.conversations.port import (
        ERROR_CHARS_MAX,
        ConversationLimits,
        ConversationMessage,
        Failure,
        FailureKind,
        Response,
        ResponseStatus,
    )

WORKFLOW: Final = "rise.conversation"
SIGNAL: Final = "message"
RESPONSE: Final = "response"
COUNTS: Final = "counts"
RUN: Final = "rise.run_message"
SILENT_SECONDS: Final = REMEMBERED_MS / 1000 + 1
"""After so long nothing of what was said is remembered any more."""
SECOND_RULES: Final = "second rules"
"""A patch. Asked for where a history begins, and nowhere later: in the middle of one it would be answered otherwise
when that is replayed."""


@dataclass(frozen=True)
class Begin:
    """With what a history begins."""

    limits: ConversationLimits = field(default_factory=ConversationLimits)
    memory: ConversationMemory = field(default_factory=ConversationMemory)


@dataclass(frozen=True)
class Counts:
    """How a conversation goes, for whoever looks."""

    told: int
    duplicates: int
    regressions: int
    expected_sequence: int
    unfinished: int


@workflow.defn(name=WORKFLOW)
class Conversation:
    @workflow.init
    def __init__(self, begin: Begin) -> None:
        self._limits = begin.limits
        self._memory = begin.memory
        self._memory.rules = Rules.SECOND if workflow.patched(SECOND_RULES) else Rules.FIRST
        self._told_before = begin.memory.told
        self._is_quiet = False
        self._running: dict[str, workflow.ActivityHandle[Response]] = {}

    @workflow.run
    async def run(self, begin: Begin) -> None:
        while not self._is_to_begin_anew():
            self._run_what_waits()
            await self._until_there_is_something()
            self._take_what_ended()
        workflow.continue_as_new(Begin(self._limits, self._memory.hand_on(now_ms=_now_ms())))

    @workflow.signal(name=SIGNAL)
    def message(self, message: ConversationMessage) -> None:
        self._memory.hear(message, now_ms=_now_ms())

    @workflow.query(name=RESPONSE)
    def response(self, request_id: str) -> Response:
        return self._memory.response(request_id)

    @workflow.query(name=COUNTS)
    def counts(self) -> Counts:
        memory = self._memory
        unfinished = len(memory.unfinished())
        return Counts(memory.told, memory.duplicates, memory.regressions, memory.expected_sequence, unfinished)

    # --- when a history is long enough ---

    def _is_to_begin_anew(self) -> bool:
        """Only while nothing runs: what runs could not be handed on."""
        return not self._running and (self._is_quiet or self._is_too_long())

    async def _until_there_is_something(self) -> None:
        """Or until nobody has written for so long that its history is begun anew."""
        try:
            await workflow.wait_condition(
                lambda: self._has_ended() or self._waits() or self._is_to_begin_anew(),
                timeout=self._quiet_seconds(),
            )
        except TimeoutError:
            self._is_quiet = True

    def _quiet_seconds(self) -> float | None:
        if self._running:
            return None
        if self._told_in_this() >= self._limits.messages_per_history:
            # Not at once. A question that comes while it is begun anew is answered a second late, and whoever was
            # answered just now may be about to write.
            return self._limits.quiet_seconds
        has_said = bool(self._told_in_this() or self._memory.updates)
        # Temporal keeps what was said for as long as this history goes on, and for its retention afterwards.
        return SILENT_SECONDS if has_said and self._memory.rules >= Rules.SECOND else None

    def _is_too_long(self) -> bool:
        """Nothing more is begun then, so that what runs comes to an end, also where people never stop writing."""
        is_suggested = workflow.info().is_continue_as_new_suggested()
        return is_suggested or self._told_in_this() >= self._limits.messages_per_history_max

    def _told_in_this(self) -> int:
        return self._memory.told - self._told_before

    # --- running ---

    def _waits(self) -> bool:
        return not self._is_too_long() and any(one.update_id not in self._running for one in self._memory.unfinished())

    def _run_what_waits(self) -> None:
        if self._is_too_long():
            return
        for message in self._memory.unfinished():
            if message.update_id not in self._running:
                self._running[message.update_id] = self._run(message)

    def _run(self, message: ConversationMessage) -> workflow.ActivityHandle[Response]:
        limits = self._limits
        return workflow.start_activity(
            RUN,
            message,
            result_type=Response,
            start_to_close_timeout=timedelta(hours=limits.run_hours_max),
            heartbeat_timeout=timedelta(seconds=limits.beat_seconds),
            # Of what a run itself fails by, Rise decides: that comes back as a response. This is for lost processes.
            retry_policy=RetryPolicy(maximum_attempts=limits.deaths_max),
        )

    def _has_ended(self) -> bool:
        return any(handle.done() for handle in self._running.values())

    def _take_what_ended(self) -> None:
        for update_id, handle in list(self._running.items()):
            if handle.done():
                del self._running[update_id]
                response = _response_of(handle, self._memory.updates[update_id].tries)
                self._memory.end(update_id, response, size=self._size(response), now_ms=_now_ms())

    def _size(self, response: Response) -> int:
        """In the JSON in which it is handed on: with ASCII alone, where other letters take six bytes and more."""
        if self._memory.rules >= Rules.SECOND:
            return len(json.dumps(asdict(response)))
        return 0 if response.ran is None else len(json.dumps(response.ran))


def _response_of(handle: workflow.ActivityHandle[Response], tries: int) -> Response:
    try:
        return handle.result()
    except ActivityError as error:
        kind, why = FailureKind.DEPENDENCY, "what was to run it in its conversation failed"
        if isinstance(error.cause, exceptions.TimeoutError):
            # Whatever it was that ended the processes, it counts: else it would end one after the other for ever.
            kind, why = FailureKind.OWN, "the processes that ran it ended, or were not heard of any more"
        failure = Failure(kind, f"{why}: {error.cause or error}"[:ERROR_CHARS_MAX])
        return Response(ResponseStatus.FAILED, tries, failure=failure)


def _now_ms() -> int:
    return int(workflow.now().timestamp() * 1000)
