"""Where there is not room for all: nobody twice, nobody never, and so many places for each."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties_trying import tried

from rise.queue.turns import AWAITED_TURNS, Turns

pytestmark = [pytest.mark.req("QUE-2", "TMP-5"), pytest.mark.failure("FU8")]

ROUND = AWAITED_TURNS + 1


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 1000), st.floats(0, 0.9), st.randoms())
@tried(300)
def test_of_any_round_all_places_but_one_are_for_those_who_wait_and_that_one_for_who_waited_longest(
    awaited: int, others: int, turn: int, not_due: float, dice: Random
):
    people = [f"person {number}" for number in range(awaited)]
    everybody = [*people, *(f"reminder {number}" for number in range(others))]
    dice.shuffle(everybody)
    people.sort(key=everybody.index)  # those who wait stand in the same order, by since when
    due = [one for one in everybody if dice.random() >= not_due]
    turns, offered, taken = Turns(people, everybody, turn=turn), list[str](), list[str]()
    for one in turns:
        offered.append(one)
        if one in due:
            turns.took()
            taken.append(one)
    assert sorted(offered) == sorted(everybody), "each once"
    assert sorted(taken) == sorted(due)
    for kind in (lambda one: one in people, lambda one: one not in people):
        assert list(filter(kind, taken)) == list(filter(kind, due)), "in their own order"
    for place in range(len(taken)):
        if sum(one in people for one in taken[place:]) >= ROUND:
            assert sum(one in people for one in taken[place : place + ROUND]) >= AWAITED_TURNS
        oldest = next(one for one in due if one not in taken[:place])
        assert oldest in taken[place : place + ROUND], "who has waited longest comes within a round"


@given(st.integers(0, 3), st.integers(1, 30))
@tried(100)
def test_one_at_a_time_it_is_the_same(turn: int, claims: int):
    """Each claim offers anew, from the turn that the one before has left."""
    people, reminders, taken = [f"person {n}" for n in range(40)], [f"reminder {n}" for n in range(40)], list[str]()
    for _ in range(claims):
        turns = Turns(people, [*reminders, *people], turn=turn)
        taken.append(next(iter(turns)))
        turns.took()
        turn = turns.turn
        for waiting in (people, reminders):
            if taken[-1] in waiting:
                waiting.remove(taken[-1])
    for place in range(len(taken) - ROUND + 1):
        assert sum(one.startswith("person") for one in taken[place : place + ROUND]) == AWAITED_TURNS
