"""The workflow of a conversation without Temporal: the real one, on a stand-in of the few things that it asks for.

Promises: it goes on by what stands in its history and by nothing else, one leg after the other; whoever takes it up
again from there has the same conversation, which has asked for the same.

Refuses: threads, the sandbox and the client's ways to write payloads. Those are shown on real servers
(`tests/conversations`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NoReturn

import msgspec
from temporalio import exceptions

from rise.clock import from_epoch_ms
from rise.conversations import workflow as carried_on
from rise.conversations.port import ConversationMessage, Response
from rise.conversations.workflow import Begin, Conversation


class Told(msgspec.Struct, frozen=True, tag=True):
    """A signal."""

    message: ConversationMessage


class Ended(msgspec.Struct, frozen=True, tag=True):
    """An activity. Without a response it is not tried again: nothing was heard of it, or it was given back."""

    activity: int
    response: Response | None = None
    is_silent: bool = True


class Rang(msgspec.Struct, frozen=True, tag=True):
    """A timer."""

    timer: int


class Leg(msgspec.Struct, frozen=True):
    """What one worker is given at once: what has happened since the leg before."""

    at_ms: int
    events: list[Told | Ended | Rang]
    is_long: bool = False
    """Temporal would have the history begun anew."""


class Timer(msgspec.Struct, frozen=True):
    number: int
    due_at_ms: int


class Carried:
    """One conversation, as whoever carries it on holds it in memory."""

    def __init__(self, begin: bytes) -> None:
        self.legs = 0
        self.asked_for: list[bytes] = []
        """The messages that it wanted to be run, by the numbers of their activities."""
        self.timer: Timer | None = None
        self.anew: bytes | None = None
        """With what it wants to be begun anew."""
        self._at_ms = 0
        self._is_long = False
        self._timers = 0
        self._has_rung = False
        self._activities: list[_Activity] = []
        self._wait: _Wait | None = None
        begun_with = msgspec.json.decode(begin, type=Begin)
        with self._asked():
            self._conversation = Conversation(begun_with)
        self._course = self._conversation.run(begun_with)

    def advance(self, leg: Leg) -> None:
        self.legs += 1
        self._at_ms, self._is_long = leg.at_ms, leg.is_long
        with self._asked():
            for event in leg.events:
                self._take(event)
            while self.anew is None and self._may_go_on():
                self._go_on()

    def response(self, request_id: str) -> Response:
        return self._conversation.response(request_id)

    def close(self) -> None:
        """Nobody carries it on here. Said, because what is only dropped may go while a world is buried."""
        self._course.close()

    # --- what happens to it ---

    def _take(self, event: Told | Ended | Rang) -> None:
        match event:
            case Told(message):
                self._conversation.message(message)
            case Ended(activity):
                self._activities[activity].ended = event
            case Rang(timer):
                self._has_rung = self.timer is not None and self.timer.number == timer

    def _may_go_on(self) -> bool:
        return self._wait is None or self._has_rung or self._wait.holds()

    def _go_on(self) -> None:
        """To what it waits for next."""
        is_late = None if self._wait is None else not self._wait.holds()
        self._has_rung, self.timer = False, None
        try:
            self._wait = self._course.send(is_late)
        except _Anew as anew:
            self.anew = msgspec.json.encode(anew.begin)
            return
        if self._wait.seconds is not None:
            self._timers += 1
            self.timer = Timer(self._timers, self._at_ms + int(self._wait.seconds * 1000))

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """What it asks of Temporal it asks of this one, as long as it runs."""
        names = vars(carried_on)
        temporals = names["workflow"]
        names["workflow"] = self
        try:
            yield
        finally:
            names["workflow"] = temporals

    # --- what it asks for: the names are those of `temporalio.workflow` ---

    def start_activity(self, name: str, message: ConversationMessage, **limits: Any) -> _Activity:
        activity = _Activity()
        self._activities.append(activity)
        self.asked_for.append(msgspec.json.encode(message))
        return activity

    def wait_condition(self, holds: Callable[[], bool], *, timeout: float | None = None) -> _Wait:
        return _Wait(holds, timeout)

    def info(self) -> Carried:
        return self

    def is_continue_as_new_suggested(self) -> bool:
        return self._is_long

    def now(self) -> datetime:
        return from_epoch_ms(self._at_ms)

    def patched(self, patch: str) -> bool:
        """No history here was begun by a former version."""
        return True

    def continue_as_new(self, begin: Begin) -> NoReturn:
        raise _Anew(begin)


class _Wait:
    """Until something holds, or it is too late."""

    def __init__(self, holds: Callable[[], bool], seconds: float | None) -> None:
        self.holds = holds
        self.seconds = seconds

    def __await__(self) -> Generator[_Wait, bool, None]:
        if (yield self):
            raise TimeoutError


class _Activity:
    """What the conversation holds of one."""

    def __init__(self) -> None:
        self.ended: Ended | None = None

    def done(self) -> bool:
        return self.ended is not None

    def result(self) -> Response:
        assert self.ended is not None
        if self.ended.response is not None:
            return self.ended.response
        raise _failure() from _cause(is_silent=self.ended.is_silent)


class _Anew(BaseException):
    """As Temporal's own: not to be caught on the way."""

    def __init__(self, begin: Begin) -> None:
        super().__init__("begun anew")
        self.begin = begin


def _failure() -> exceptions.ActivityError:
    return exceptions.ActivityError(
        "the activity failed",
        scheduled_event_id=0,
        started_event_id=0,
        identity="",
        activity_type="",
        activity_id="",
        retry_state=None,
    )


def _cause(*, is_silent: bool) -> Exception:
    if is_silent:
        heartbeat = exceptions.TimeoutType.HEARTBEAT
        return exceptions.TimeoutError("nothing was heard of it", type=heartbeat, last_heartbeat_details=())
    return exceptions.ApplicationError("its worker was stopped")
