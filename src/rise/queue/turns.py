"""Whose turn it is where there is not room for all: those whom somebody waits for, and all others beside them.

Promises: of `AWAITED_TURNS + 1` lanes taken one has simply waited longest. So thousands of reminders that are due at
one moment, or a message to everybody, leave three quarters of the room to people who write meanwhile, however long
that takes; and who writes never keeps the others from going on. Redis goes by the same rule in a script, `claim.lua`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Generic, TypeVar

T = TypeVar("T")

AWAITED_TURNS: Final = 3


class Turns(Generic[T]):
    """Offers each once; whoever takes one says so. What is offered and cannot be taken uses up nobody's turn."""

    def __init__(self, awaited: Sequence[T], longest_waiting: Sequence[T], *, turn: int) -> None:
        """`turn`: what it was when others were offered last."""
        self.turn = turn
        self._awaited = iter(awaited)
        self._longest_waiting = iter(longest_waiting)
        self._offered: set[T] = set()
        self._is_in_turn = False

    def __iter__(self) -> Iterator[T]:
        while True:
            in_turn, other = self._awaited, self._longest_waiting
            if self.turn % (AWAITED_TURNS + 1) == AWAITED_TURNS:
                in_turn, other = other, in_turn
            offered = self._next_of(in_turn)
            self._is_in_turn = offered is not None
            if offered is None and (offered := self._next_of(other)) is None:
                return
            yield offered

    def took(self) -> None:
        """The last one. Who goes because nobody is there whose turn it is leaves that one its turn."""
        self.turn += self._is_in_turn

    def _next_of(self, waiting: Iterator[T]) -> T | None:
        for one in waiting:
            if one not in self._offered:
                self._offered.add(one)
                return one
        return None
