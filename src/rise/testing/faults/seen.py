"""What people saw of the answers, against what they had asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from rise.envelope import TaskId
from rise.testing.faults.bot import answers_to
from rise.testing.telegram import SentMessage

MARK: Final = "↻ "
"""Before what may have been said already."""
COPIES_MAX: Final = 2
"""Of an answer: the first, and the one that the policy allows where nobody can know."""

Answer = tuple[int, str]
"""The chat, and what is to be said there."""


@dataclass(frozen=True, slots=True)
class Question:
    """A message of a person."""

    task_id: TaskId
    chat_id: int
    text: str

    @property
    def answers(self) -> list[Answer]:
        return [(self.chat_id, said) for said in answers_to(self.text)]


@dataclass(slots=True)
class Seen:
    """What was wrong with it."""

    lost: list[str] = field(default_factory=list)
    """Of which an answer was never seen, and nobody is said to wait for it."""
    repeated_marked: int = 0
    repeated_unmarked: int = 0
    repeated_too_often: int = 0
    order_breaks: list[str] = field(default_factory=list)
    """First answers that came after one to a later message of the same chat, and after which."""
    strange: list[str] = field(default_factory=list)
    """Nobody in that chat had asked for it."""


def answer_of(message: SentMessage) -> Answer:
    """The answer that it is, be it a first time or again."""
    return int(message.chat_id), message.text.removeprefix(MARK)


def compare(questions: Sequence[Question], sent: Sequence[SentMessage], parked: Container[TaskId]) -> Seen:
    """`parked`: what waits for a person; it may have been answered or not."""
    copies: dict[Answer, list[str]] = defaultdict(list)
    for message in sent:
        copies[answer_of(message)].append(message.text)
    places = {answer: at for at, answer in enumerate(answer for asked in questions for answer in asked.answers)}
    seen = Seen(order_breaks=_order_breaks(places, copies))
    for asked in questions:
        if asked.task_id not in parked and not all(answer in copies for answer in asked.answers):
            seen.lost.append(asked.text)
    for answer, texts in copies.items():
        unmarked = sum(not text.startswith(MARK) for text in texts)
        seen.repeated_unmarked += max(0, unmarked - 1)
        seen.repeated_marked += len(texts) - max(1, unmarked)
        seen.repeated_too_often += len(texts) > COPIES_MAX
        if answer not in places:
            seen.strange.append(f"{answer[1]!r} in chat {answer[0]}")
    return seen


def _order_breaks(places: Mapping[Answer, int], copies: Mapping[Answer, list[str]]) -> list[str]:
    latest: dict[int, Answer] = {}
    breaks = []
    for answer in copies:  # in the order of their first copies
        if answer in places:
            before = latest.setdefault(answer[0], answer)
            if places[answer] < places[before]:
                breaks.append(f"{answer[1]!r} in chat {answer[0]}, after {before[1]!r}")
            else:
                latest[answer[0]] = answer
    return breaks
