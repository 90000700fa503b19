"""What a conversation remembers: each update once, however often it is told; nothing without bound."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.converter import DataConverter

from rise.conversations.memory import BYTES_MAX, REMEMBERED_MS, UPDATES_MAX, ConversationMemory, Rules
from rise.conversations.port import (
    UNKNOWN,
    ConversationMessage,
    Failure,
    FailureKind,
    Response,
    ResponseStatus,
)

FAILED = Response(ResponseStatus.FAILED, failure=Failure(FailureKind.OWN, "ValueError: no"))


def message(number: int, *, tries: int = 0, sequence: int | None = None) -> ConversationMessage:
    return ConversationMessage(
        update_id=str(number),
        chat_id="42",
        sequence=number if sequence is None else sequence,
        request_id=f"t_{number}.0",
        message={"tries": tries},
    )


def answered(said: Any = "yes", tries: int = 0) -> Response:
    return Response(ResponseStatus.ANSWERED, tries, ran=said)


def end(memory: ConversationMemory, number: int, response: Response, *, size: int = 10, now_ms: int = 0) -> None:
    memory.end(str(number), response, size=size, now_ms=now_ms)


@pytest.mark.req("TMP-2")
def test_an_update_that_is_told_again_is_run_once_whether_it_waits_or_is_answered() -> None:
    memory = ConversationMemory()
    assert memory.hear(message(1), now_ms=0)
    assert not memory.hear(message(1), now_ms=1)
    end(memory, 1, answered())
    assert not memory.hear(message(1), now_ms=2)
    assert not memory.hear(message(1, tries=1), now_ms=3)
    assert (memory.told, memory.duplicates, memory.unfinished()) == (1, 3, [])
    assert memory.response("t_1.0") == answered()


@pytest.mark.req("TMP-2")
def test_what_failed_is_run_again_by_the_next_try_and_not_by_a_repetition_of_the_same() -> None:
    memory = ConversationMemory()
    memory.hear(message(1), now_ms=0)
    end(memory, 1, FAILED)
    assert not memory.hear(message(1), now_ms=1)
    assert memory.response("t_1.0") == FAILED
    assert memory.hear(message(1, tries=1), now_ms=2)
    assert memory.response("t_1.0") == Response(ResponseStatus.WAITING, 1)
    assert memory.told == 1, "all tries of a message are one message"


def test_what_was_kept_elsewhere_and_lost_is_run_again_by_the_next_try() -> None:
    memory = ConversationMemory()
    memory.hear(message(1), now_ms=0)
    end(memory, 1, Response(ResponseStatus.ANSWERED, is_kept=True))
    assert not memory.hear(message(1), now_ms=1)
    assert memory.hear(message(1, tries=1), now_ms=2)


def test_what_was_answered_for_others_than_are_to_be_answered_now_is_run_anew() -> None:
    memory = ConversationMemory()
    memory.hear(message(1), now_ms=0)
    end(memory, 1, Response(ResponseStatus.ANSWERED, ran="of both", followers=["t_2"]))
    assert memory.hear(message(1), now_ms=1), "without the other, which has ended by itself"
    end(memory, 1, answered("of one"))
    assert not memory.hear(message(1), now_ms=2)


def test_what_another_workflow_has_answered_is_run_anew_but_not_where_a_history_was_begun_before_that_was_so() -> None:
    for rules, is_run in ((Rules.SECOND, True), (Rules.FIRST, False)):
        memory = ConversationMemory()
        memory.rules = rules
        memory.hear(message(1), now_ms=0)
        of_another = Response(ResponseStatus.ANSWERED, ran="by another", workflow_id="wf_former", workflow_version=1)
        end(memory, 1, of_another)
        assert memory.hear(message(1), now_ms=1) is is_run


@pytest.mark.req("TMP-2")
def test_regressions_are_counted_and_run_all_the_same() -> None:
    memory = ConversationMemory()
    for number in (1, 2, 5, 3, 4, 6):
        assert memory.hear(message(number), now_ms=0)
    assert (memory.regressions, memory.expected_sequence) == (2, 7)
    assert [one.update_id for one in memory.unfinished()] == ["1", "2", "5", "3", "4", "6"]


@pytest.mark.req("TMP-2")
def test_neither_a_duplicate_nor_what_has_no_number_is_a_regression() -> None:
    memory = ConversationMemory()
    memory.hear(message(7), now_ms=0)
    memory.hear(message(6), now_ms=0)
    memory.hear(message(6), now_ms=0)
    memory.hear(message(8, sequence=0), now_ms=0)
    assert (memory.regressions, memory.expected_sequence) == (1, 8)


def test_a_question_about_what_it_was_never_told_is_answered_so() -> None:
    assert ConversationMemory().response("t_1.0") is UNKNOWN


@pytest.mark.req("TMP-1")
def test_the_oldest_that_are_over_are_forgotten_by_number() -> None:
    memory = ConversationMemory()
    for number in range(UPDATES_MAX + 10):
        memory.hear(message(number), now_ms=0)
        end(memory, number, answered(number))
    assert len(memory.updates) <= UPDATES_MAX
    assert memory.response("t_0.0") is UNKNOWN
    assert memory.response(f"t_{UPDATES_MAX + 9}.0") == answered(UPDATES_MAX + 9)


@pytest.mark.req("TMP-1")
def test_the_oldest_that_are_over_are_forgotten_by_size_but_never_the_last() -> None:
    memory = ConversationMemory()
    for number in range(3):
        memory.hear(message(number), now_ms=0)
        end(memory, number, answered(number), size=BYTES_MAX)
    assert list(memory.updates) == ["2"]


def test_after_two_days_the_same_update_id_may_be_another_message() -> None:
    memory = ConversationMemory()
    memory.hear(message(1), now_ms=0)
    end(memory, 1, answered())
    memory.hear(message(2), now_ms=REMEMBERED_MS + 1)
    end(memory, 2, answered(), now_ms=REMEMBERED_MS + 1)
    assert memory.hear(message(1), now_ms=REMEMBERED_MS + 2)


def test_a_key_that_is_used_again_after_long_is_not_answered_with_what_was_said_then() -> None:
    """Also where nothing else was told in between; but not where a history was begun before that was so."""
    for rules, is_run in ((Rules.SECOND, True), (Rules.FIRST, False)):
        memory = ConversationMemory()
        memory.rules = rules
        for number in (1, 2, 3):
            memory.hear(message(number), now_ms=0)
            end(memory, number, answered("long ago"))
        assert [memory.hear(message(number), now_ms=REMEMBERED_MS + 1) for number in (1, 2, 3)] == [is_run] * 3


def test_what_nothing_was_tried_of_is_run_again_whoever_tells_of_it() -> None:
    """But where a history was begun before that was so, only by the next try, as any failure."""
    for rules, is_run in ((Rules.SECOND, True), (Rules.FIRST, False)):
        memory = ConversationMemory()
        memory.rules = rules
        memory.hear(message(1), now_ms=0)
        end(memory, 1, replace(FAILED, is_untried=True))
        assert memory.response("t_1.0").is_untried is is_run
        assert memory.hear(message(1), now_ms=1) is is_run


def test_by_which_rules_it_decides_is_not_handed_on() -> None:
    """A former version, which runs beside this one, could not read those that it does not know."""
    converter = DataConverter.default.payload_converter
    [handed_on] = converter.to_payloads([ConversationMemory().hand_on(now_ms=0)])
    assert b"rules" not in handed_on.data


@pytest.mark.req("TMP-2")
def test_a_try_that_is_told_of_again_after_a_later_one_that_failed_is_run_once_more() -> None:
    """A ledger that has lost tries tells of an earlier one as well, and what it tells of must not wait."""
    memory = ConversationMemory()
    for tries in (0, 1, 0):
        assert memory.hear(message(1, tries=tries), now_ms=0)
        end(memory, 1, replace(FAILED, tries=tries))
    assert memory.hear(message(1, tries=2), now_ms=0)
    end(memory, 1, answered(tries=2))
    assert not any(memory.hear(message(1, tries=tries), now_ms=0) for tries in (0, 1, 2, 3))
    assert memory.told == 1


def test_what_is_handed_on_keeps_its_order_whatever_its_names() -> None:
    memory = ConversationMemory()
    for number in (999, 1000, 998):
        memory.hear(message(number), now_ms=0)
    converter = DataConverter.default.payload_converter
    [again] = converter.from_payloads(converter.to_payloads([memory.hand_on(now_ms=0)]), [ConversationMemory])
    assert list(again.updates) == ["999", "1000", "998"]
    assert [one.update_id for one in again.unfinished()] == ["999", "1000", "998"]


def test_what_waits_is_never_forgotten() -> None:
    memory = ConversationMemory()
    for number in range(UPDATES_MAX * 2):
        memory.hear(message(number), now_ms=0)
    memory.hear(message(-1), now_ms=REMEMBERED_MS * 2)
    assert len(memory.unfinished()) == UPDATES_MAX * 2 + 1


told = st.tuples(st.just("told"), st.integers(1, 8), st.integers(0, 2))
ended = st.tuples(st.just("ended"), st.integers(1, 8), st.sampled_from(["answered", "failed"]))


@pytest.mark.req("TMP-2")
@given(st.lists(told | ended, max_size=60))
def test_whatever_is_told_and_ends_no_update_is_answered_twice(events: list[tuple[str, int, Any]]) -> None:
    memory = ConversationMemory()
    answers: dict[int, int] = {}
    runs, duplicates = 0, 0
    for kind, number, what in events:
        waits = {one.update_id for one in memory.unfinished()}
        if kind == "told":
            is_run = memory.hear(message(number, tries=what), now_ms=0)
            runs, duplicates = runs + is_run, duplicates + (not is_run)
            assert not (is_run and str(number) in waits), "what waits is not run beside itself"
        elif str(number) in waits:
            answers[number] = answers.get(number, 0) + (what == "answered")
            tries = memory.updates[str(number)].tries
            end(memory, number, answered(number, tries) if what == "answered" else FAILED)
    assert all(count <= 1 for count in answers.values())
    assert memory.duplicates == duplicates
    for number, count in answers.items():
        if count:
            assert memory.response(f"t_{number}.0").ran == number, "an answer stays"
