"""What one conversation remembers: which updates it was told of, and what has come of each.

Pure and deterministic: Temporal replays it from its history, on another host and years later, and must come to the
same. So nothing here may be changed for conversations that have begun, except behind `workflow.patched`
(docs/conversations.md), and a recorded history is replayed in the tests.

Promises: an update is run once, however often it is told of; one that failed, once more for each new try. A message
that comes after a later one of its chat is counted and run all the same.

Refuses: to grow without bound. The oldest that are over are forgotten; what still has to be run never is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final

from rise.conversations.port import UNKNOWN, ConversationMessage, Response, ResponseStatus

UPDATES_MAX: Final = 500
BYTES_MAX: Final = 256 * 1024
"""Of all responses together: they are handed on whenever a history is begun anew, and Temporal takes two megabytes."""
REMEMBERED_MS: Final = 48 * 3600 * 1000
"""Less than Rise remembers a key: afterwards the same update id may be another message's."""


class Rules(IntEnum):
    """By which a conversation decides: by those with which its history was begun, so that it comes to the same again.
    Each has what those before it have."""

    FIRST = 1
    SECOND = 2
    """What another workflow has answered counts for nothing. The whole of a response is counted, not only what an
    answered one holds. A chat that has been silent for long is begun anew, with nothing of what was said. What is old
    is forgotten before anything is known again. What nothing was tried of is run again by whoever tells of it."""


@dataclass
class Remembered:
    """One update."""

    request_id: str
    tries: int
    told_at_ms: int
    response: Response
    message: ConversationMessage | None = None
    """What is to be run; None: it is over."""
    bytes: int = 0
    """How large its response is."""


@dataclass
class ConversationMemory:
    expected_sequence: int = 0
    regressions: int = 0
    """Messages that came after a later one of their chat."""
    duplicates: int = 0
    told: int = 0
    """Messages that were no duplicates, all tries of one being one."""
    updates: dict[str, Remembered] = field(default_factory=dict)
    """By update id, in the order in which they were told."""
    order: list[str] = field(default_factory=list)
    """That order, where this is handed on: as JSON, which has the names of `updates` sorted."""

    def __post_init__(self) -> None:
        # No field, so they are not handed on: they are asked for where a history begins, and a former version that runs
        # beside this one could not read those that it does not know.
        self.rules = Rules.SECOND
        self.updates = {name: self.updates[name] for name in self.order} | self.updates

    def hand_on(self, *, now_ms: int) -> ConversationMemory:
        """To the next history: without what is old, and with the order."""
        self.forget_old(now_ms)
        self.order = list(self.updates)
        return self

    def hear(self, message: ConversationMessage, *, now_ms: int) -> bool:
        """Whether it is to be run. All that is known of its update by now decides."""
        if self.rules >= Rules.SECOND:
            self.forget_old(now_ms)
        known = self.updates.get(message.update_id)
        if known is None:
            self._note_sequence(message.sequence)
            self.told += 1
        elif not self._is_another_try(known, message):
            self.duplicates += 1
            return False
        waiting = Response(ResponseStatus.WAITING, message.tries)
        self.updates[message.update_id] = Remembered(message.request_id, message.tries, now_ms, waiting, message)
        self._make_room(now_ms)
        return True

    def end(self, update_id: str, response: Response, *, size: int, now_ms: int) -> None:
        """Its run has come to this, of so many bytes."""
        known = self.updates[update_id]
        if self.rules < Rules.SECOND:
            response = replace(response, is_untried=False)
        known.response, known.message, known.bytes = response, None, size
        self._make_room(now_ms)

    def forget_old(self, now_ms: int) -> None:
        """All that is over and old, the last as well."""
        for update_id, one in list(self.updates.items()):
            if one.message is None and _is_old(one, now_ms):
                del self.updates[update_id]

    def response(self, request_id: str) -> Response:
        return next((one.response for one in self.updates.values() if one.request_id == request_id), UNKNOWN)

    def unfinished(self) -> list[ConversationMessage]:
        """In the order in which they were told."""
        return [one.message for one in self.updates.values() if one.message is not None]

    def _note_sequence(self, sequence: int) -> None:
        if not sequence:
            return
        if sequence < self.expected_sequence:
            self.regressions += 1
        else:
            self.expected_sequence = sequence + 1

    def _is_another_try(self, known: Remembered, message: ConversationMessage) -> bool:
        """What has failed is run again by the next try, which knows of that failure, and so is what was kept elsewhere
        and was not found there; a repetition of the same try is not one. What was answered for others than are to be
        answered now, or by another workflow, counts for nothing."""
        response = known.response
        if response.status is ResponseStatus.ANSWERED:
            if response.has_other_followers(message):
                return True
            if self.rules >= Rules.SECOND and response.is_of_another_workflow(message):
                return True
        if response.is_untried:
            return True
        has_nothing = response.status is ResponseStatus.FAILED or response.is_kept
        # An earlier one as well: so tells who asks a ledger that has lost tries. Told by a signal that came late, it
        # costs a run, by which nothing is done again that was kept.
        return has_nothing and message.tries != known.tries

    def _make_room(self, now_ms: int) -> None:
        """The oldest first, and never the last: somebody is about to ask for it."""
        over = [update_id for update_id, one in self.updates.items() if one.message is None]
        left, size = len(self.updates), sum(one.bytes for one in self.updates.values())
        for update_id in over[:-1]:
            one = self.updates[update_id]
            if not (_is_old(one, now_ms) or left > UPDATES_MAX or size > BYTES_MAX):
                return
            del self.updates[update_id]
            left, size = left - 1, size - one.bytes


def _is_old(one: Remembered, now_ms: int) -> bool:
    return now_ms - one.told_at_ms > REMEMBERED_MS
