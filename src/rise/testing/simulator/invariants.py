"""The protocol's invariants, looked at from outside: by the platform, by the workflows, and in the disk itself.

What must hold after every write is a trigger of the database: it is asked by each statement that could break
it, in the same transaction. What must hold when something becomes visible is asked at that moment. What must
hold in the end is asked at rest.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import inf
from typing import Any, Final, NamedTuple

import msgspec

import rise
from rise.capabilities import CapabilityStatus
from rise.channels.port import Incoming
from rise.chats import CHECK_SECONDS
from rise.conversations.port import ConversationMessage
from rise.envelope import FOLLOW_UP, DeliveryKey, TaskType, decode_head, task_id_of
from rise.runtime.assembly.house import House
from rise.runtime.audit import AuditReport, NoticeKind
from rise.runtime.pipeline import CLOCKS_APART
from rise.testing.simulator.bot import LATER_MARK, OWN_ERRORS
from rise.testing.simulator.loop import Process
from rise.testing.simulator.people import GROUP, SUPERGROUP, Written, is_same_chat, place_of, program_chat_of
from rise.testing.simulator.world import World
from rise.testing.telegram.rules.update_queue import QueuedUpdate
from rise.workflows.turn import Message

MARK: Final = "↻ "
KNOWN_SECONDS_MAX: Final = CHECK_SECONDS + 1.0
"""Until every process has read that a chat has moved, also one that nobody could tell."""

_TRIGGERS: Final = (
    # When two ids of a chat become one, what is being sent to the new one goes first.
    """
    CREATE TEMP TABLE came_over (reply_id TEXT NOT NULL, claim INTEGER NOT NULL);
    CREATE TEMP TRIGGER two_become_one AFTER UPDATE OF chat_id ON main.replies WHEN NEW.chat_id <> OLD.chat_id
    BEGIN
        INSERT INTO came_over SELECT NEW.reply_id, claim FROM main.outbox_chats
        WHERE channel = NEW.channel AND account = NEW.account AND chat_id = NEW.chat_id AND claim IS NOT NULL;
    END
    """,
    # A lane's first task runs, and only one at a time.
    """
    CREATE TEMP TRIGGER order_of_runs AFTER UPDATE OF status ON main.tasks
    WHEN NEW.status = 'processing' AND OLD.status <> 'processing' AND EXISTS (
        SELECT 1 FROM main.tasks INDEXED BY tasks_runnable
        WHERE lane = NEW.lane AND status IN ('pending', 'processing')
        AND task_id <> NEW.task_id
        AND (status = 'processing' OR (order_at, order_seq, task_id) < (NEW.order_at, NEW.order_seq, NEW.task_id))
    ) BEGIN SELECT violated('I7', 'started out of order: ' || NEW.task_id); END
    """,
    # And it stands where the platform's dates put it, whenever it came.
    """
    CREATE TEMP TRIGGER place_in_its_lane AFTER INSERT ON main.tasks
    BEGIN SELECT stood_in_line(NEW.task_id, NEW.order_at, NEW.order_seq, NEW.lane); END
    """,
    # A chat that has two ids is one: one lane, as soon as everybody has had the time to hear of it, and one history.
    """
    CREATE TEMP TRIGGER known_by_all AFTER INSERT ON main.chat_moves BEGIN SELECT chat_moved(); END
    """,
    """
    CREATE TEMP TRIGGER one_history AFTER INSERT ON main.history
    WHEN EXISTS (SELECT 1 FROM main.chat_moves WHERE chat_id = NEW.chat_id)
    BEGIN SELECT violated('I7', 'remembered under an id that its chat does not go by: ' || NEW.run_id); END
    """,
    # Nothing leaves the queue before its end is in the ledger; the end of a former generation is not its own.
    """
    CREATE TEMP TRIGGER no_early_end AFTER DELETE ON main.tasks
    WHEN NOT EXISTS (
        SELECT 1 FROM main.runs WHERE task_id = OLD.task_id AND generation >= OLD.generation AND finished_at IS NOT NULL
    )
    BEGIN SELECT violated('I2', 'gone before it was finished: ' || OLD.task_id); END
    """,
    # One result per run; an end is final.
    """
    CREATE TEMP TRIGGER frozen_result AFTER UPDATE ON main.runs
    WHEN NEW.result IS NOT OLD.result OR NEW.saved_at <> OLD.saved_at
    BEGIN SELECT violated('I4', 'the result changed: ' || NEW.run_id); END
    """,
    """
    CREATE TEMP TRIGGER final_end AFTER UPDATE ON main.runs
    WHEN OLD.finished_at IS NOT NULL AND (NEW.status, NEW.finished_at) IS NOT (OLD.status, OLD.finished_at)
    BEGIN SELECT violated('I9', 'a finished run changed: ' || NEW.run_id); END
    """,
    # Who was told half of it was not answered.
    """
    CREATE TEMP TRIGGER whole_answer AFTER UPDATE OF status ON main.runs
    WHEN NEW.status = 'completed' AND NEW.outcome = 'answered' AND EXISTS (
        SELECT 1 FROM main.replies WHERE run_id = NEW.run_id AND kind = 'answer' AND state <> 'sent'
    ) BEGIN SELECT violated('I5', 'it is called answered, and not all of it was sent: ' || NEW.run_id); END
    """,
    # A task does not come back from the dead, nor lose its number of generations.
    """
    CREATE TEMP TRIGGER no_way_back AFTER UPDATE OF status, generation ON main.tasks
    WHEN NEW.generation < OLD.generation
        OR (OLD.status = 'replying' AND NEW.status IN ('pending', 'processing') AND NEW.generation = OLD.generation)
    BEGIN SELECT violated('I9', 'moved down: ' || NEW.task_id); END
    """,
    """
    CREATE TEMP TRIGGER only_the_dead AFTER UPDATE OF deaths ON main.tasks WHEN NEW.deaths > OLD.deaths
    BEGIN SELECT death_counted(NEW.task_id, (SELECT holder FROM main.lanes WHERE lane = NEW.lane)); END
    """,
    """
    CREATE TEMP TRIGGER only_own_errors AFTER UPDATE OF attempts ON main.tasks WHEN NEW.attempts > OLD.attempts
    BEGIN SELECT try_used(NEW.task_id); END
    """,
    # What was sent or given up is not sent again; what it says changes only with its mark or its markup.
    """
    CREATE TEMP TRIGGER final_reply AFTER UPDATE OF state ON main.replies
    WHEN OLD.state IN ('sent', 'failed') AND NEW.state <> OLD.state
    BEGIN SELECT violated('I9', 'a final reply changed: ' || NEW.reply_id); END
    """,
    """
    CREATE TEMP TRIGGER no_answer_after_the_end AFTER UPDATE OF state ON main.replies
    WHEN NEW.kind = 'answer' AND NEW.state IN ('ready', 'sending')
        AND EXISTS (SELECT 1 FROM main.runs WHERE run_id = NEW.run_id AND finished_at IS NOT NULL)
    BEGIN SELECT violated('I9', 'its run has ended, and it is to be sent: ' || NEW.reply_id); END
    """,
    """
    CREATE TEMP TRIGGER one_in_flight AFTER UPDATE OF state ON main.replies
    WHEN NEW.state = 'sending' AND EXISTS (
        SELECT 1 FROM main.replies INDEXED BY replies_open WHERE channel = NEW.channel AND account = NEW.account
        AND chat_id = NEW.chat_id AND state IN ('ready', 'sending') AND held = 0 AND sequence < NEW.sequence
        -- What a person resumed comes up again behind what was being sent at that moment.
        AND NOT EXISTS (SELECT 1 FROM main.replies doubted WHERE doubted.run_id = replies.run_id AND doubted.resends)
        -- So does what waited under the former id of a group.
        AND NOT EXISTS (
            SELECT 1 FROM came_over JOIN main.outbox_chats USING (claim) WHERE came_over.reply_id = replies.reply_id
            AND channel = NEW.channel AND account = NEW.account AND chat_id = NEW.chat_id
        )
    ) BEGIN SELECT violated('I8', 'sent before an earlier one of its chat: ' || NEW.reply_id); END
    """,
)


class Seen(NamedTuple):
    """An open task, as it lies in the queue."""

    task_id: str
    head: bytes
    status: str
    reason: str | None
    error: str | None


_ANSWERED: Final = (
    # By itself. Whoever takes it along may do so while another begins to run it, because a person has just dropped the
    # message that it goes with.
    "SELECT 1 FROM runs WHERE task_id = ? AND generation = ? AND status IN ('replying', 'completed')"
    " AND outcome IS NOT 'merged'"
)


_HAS_ITS_ANSWER: Final = (
    "SELECT 1 FROM runs WHERE run_id = ? AND status IN ('replying', 'completed') AND outcome IS NOT 'merged'"
)


class Checker:
    """Hears of everything, and says which promise it breaks."""

    def __init__(self, world: World) -> None:
        self.written: dict[str, Written] = {}
        """By the name in its text."""
        self.by_key: dict[str, Written] = {}
        self.resumed: set[str] = set()
        """Tasks that an operator has decided about: stale ones may run now."""
        self.said: Counter[str] = Counter()
        self._world = world
        self._moved_at: float | None = None
        """When it was on disk that the group has another id."""
        self._read_before: set[str] = set()
        """Tasks read under the new id when not everybody had to know of the other."""
        self.asked_again: set[str] = set()
        """Tasks that an operator wanted run again: they may have several answers."""
        self._steps_saved: set[tuple[str, str, str]] = set()
        self._carried: set[str] = set()
        """Runs that a conversation was told of."""
        self._ends_processes: set[str] = set()
        """Tasks of which a conversation was told that whatever ran them ended, again and again."""

    def watch_disk(self) -> None:
        """Call once the tables are there."""
        disk = self._world.disk
        disk.create_scalar_function("violated", self._violated, 2)
        disk.create_scalar_function("death_counted", self.death_counted, 2)
        disk.create_scalar_function("try_used", self.try_used, 1)
        disk.create_scalar_function("stood_in_line", self._stood_in_line, 4)
        disk.create_scalar_function("chat_moved", self._chat_moved, 0)
        for trigger in _TRIGGERS:
            disk.execute(trigger)

    def expect(self, written: Written) -> None:
        self.written[written.name] = written
        self.by_key[written.key] = written

    # --- when it happens ---

    def delivered(self, update: QueuedUpdate) -> None:
        """I1: the platform forgets the update now."""
        self.acknowledged(f"tg:7000000001:u:{update.update_id}")

    def acknowledged(self, key: str) -> None:
        """I1: whoever sent it was told that it is kept."""
        written = self.by_key.get(key)
        if written is not None:
            written.is_acknowledged = True
        if not self._is_kept(task_id_of(DeliveryKey(key))):
            self._world.violate("I1", f"{key} was acknowledged and is not on disk")

    def runs_again(self, task_id: str, generation: int) -> None:
        """An operator was told that it does."""

    def refused_forgery(self, key: str, status: int | None) -> None:
        """I11: without the secret nothing gets in."""
        if status is not None and 200 <= status < 300:
            self._world.violate("I11", f"a forged update was answered {status}")
        if self._is_known(key):
            self._world.violate("I11", f"a forged update was kept: {key}")

    def ran(self, process: Process, turn: rise.Turn) -> None:
        """I4, I11, I12, I15: what a workflow sees is what its person wrote, and as long as there is no result."""
        generation = self._generation(turn.task_id)
        if self._one(_ANSWERED, turn.task_id, generation) and not self._may_repeat(process):
            self._world.violate("I4", f"{turn.text!r} has its result, and is run again")
        for message in turn.messages:
            self._is_as_it_was_written(message)
        self._is_one_burst(process, turn)

    def _is_as_it_was_written(self, message: Message) -> None:
        name = message.text.partition(" ")[0]
        written = self.written.get(name)
        if written is None:
            self._world.violate("I12", f"a workflow saw {message.text!r}, which nobody wrote")
            return
        if message.raw != written.body:
            self._world.violate("I12", f"{name}: the bytes are not those received")
        if not written.is_genuine and message.task_id not in self.resumed:
            self._world.violate("I11", f"{name} is not genuine, and was run")

    def _is_one_burst(self, process: Process, turn: rise.Turn) -> None:
        """I4, I7, I15: what is merged is in its order, of one chat, and has no answer of its own."""
        first, *others = [self.written.get(message.text.partition(" ")[0]) for message in turn.messages]
        for before, after in pairwise([first, *others]):
            if before is None or after is None or first is None:
                continue
            if not _are_of_one_chat(first, after):
                self._world.violate("I15", f"{after.name} is answered with {first.name}, of another chat")
            if (place_of(before.body) or (0, 0)) > (place_of(after.body) or (inf, inf)):
                self._world.violate("I7", f"{after.name} was written before {before.name}, and is said after it")
            has_result = self._one(_ANSWERED, after.task_id, self._generation(after.task_id))
            if has_result and not self._world.may_have_lost_claims(process):
                self._world.violate("I4", f"{after.name} has its result, and is run with {first.name}")

    def step_begins(self, process: Process, turn: rise.Turn, step: str) -> None:
        """I4: what has been done and saved is not done again, however often the run is repeated."""
        if self._step(turn, step) in self._steps_saved and not self._may_repeat(process):
            self._world.violate("I4", f"the step {step} of {turn.text!r} is saved, and done again")

    def step_is_saved(self, turn: rise.Turn, step: str) -> None:
        self._steps_saved.add(self._step(turn, step))

    def told(self, process: Process, message: ConversationMessage) -> None:
        """I4: a conversation is told of what has no result yet."""
        self._carried.add(message.request_id)
        if self._one(_HAS_ITS_ANSWER, message.request_id) and not self._may_repeat(process):
            self._world.violate("I4", f"{message.request_id} has its result, and its conversation is told of it")

    def has_ended_its_processes(self, task_id: str) -> None:
        """It counts against a message then, whoever is to blame: else it would end one after the other."""
        self._ends_processes.add(task_id)

    def sent(self, method: str, params: Mapping[str, Any]) -> None:
        """I5, I6, I8, I15: a person sees this now."""
        text, chat_id = str(params.get("text", "")), str(params.get("chat_id"))
        self.said[text.removeprefix(MARK)] += 1
        rows = self._world.disk.execute(
            "SELECT reply_id, call, resends FROM replies WHERE chat_id = ? AND state = 'sending'", (chat_id,)
        ).fetchall()
        # A call whose sender has given up on it may still arrive: its reply is not being sent any more.
        meant = {msgspec.json.decode(call)["text"]: (reply_id, resends) for reply_id, call, resends in rows}
        if len(rows) > 1:
            self._world.violate("I8", f"{len(rows)} replies are being sent to chat {chat_id}")
        if text not in meant and not self._was_given_up(text):
            self._world.violate("I5", f"chat {chat_id} was told {text!r}, which no reply says")
        name = text.removeprefix(MARK).partition(".")[0]
        written = self.written.get(name)
        if written is not None and not (chat_id.lstrip("-").isdigit() and is_same_chat(written.chat_id, int(chat_id))):
            self._world.violate("I15", f"{text!r} belongs to chat {written.chat_id}, not {chat_id}")

    def read(self, incoming: Incoming) -> None:
        # What is decided then holds, however late it is written: its process may be stopped in between.
        # Also a tap, which has a lane of its own.
        is_apart = incoming.chat_id == str(SUPERGROUP) and incoming.first_chat_id is None
        if is_apart and not self._is_known_by_all():
            self._read_before.add(task_id_of(incoming.delivery_key))

    # --- at rest ---

    def shown(self, stats: Mapping[str, Any]) -> None:
        """I16, I23: what people are shown is what there is, and adds up."""
        open_now = {task.task_id for task in self._open()}
        finished = self._one("SELECT count(*) FROM runs WHERE finished_at IS NOT NULL")
        kept = len(open_now.union(task_id for (task_id,) in self._world.disk.execute("SELECT task_id FROM runs")))
        if sum(stats["byStatus"].values()) != len(open_now) or sum(stats["finished"].values()) != finished:
            self._world.violate("I23", f"{stats} is shown; {len(open_now)} are open and {finished} finished")
        if stats["accepted"] > kept:
            self._world.violate("I16", f"{stats['accepted']} were accepted, and {kept} are kept")

    def at_rest(self, audit: AuditReport, houses: Sequence[House]) -> None:
        """Everybody has recovered, and nothing moves any more."""
        self._nothing_is_lost()
        self._nothing_came_from_nowhere()
        self._everything_is_said_to_work(houses)
        self._everything_ended_or_waits_with_a_reason()
        self._nobody_was_told_too_often()
        self._everything_was_answered_once()
        self._what_was_promised_for_later_is_said_once()
        self._nothing_is_left_behind()
        self._a_chat_with_two_ids_is_one()
        # Forged and stale updates have numbers of their own, between which others never came.
        notices = [notice for notice in audit.notices if notice.kind is not NoticeKind.UPDATE_ID_GAP]
        if not audit.is_clean or notices:
            self._world.violate("I16", f"the audit says {audit.shown()}")

    def _nothing_is_lost(self) -> None:
        for written in self.written.values():
            if written.is_acknowledged and not self._is_kept(written.task_id):
                self._world.violate("I2", f"{written.name} was acknowledged and is lost")

    def _nothing_came_from_nowhere(self) -> None:
        """I3: one task for each key, and none for what nobody wrote."""
        written = {one.task_id for one in self.written.values()}
        heads = {task.task_id: task.head for task in self._open()}
        heads |= dict(self._world.disk.execute("SELECT task_id, head FROM runs").fetchall())
        for task_id, head in heads.items():
            if task_id not in written and decode_head(head).source != FOLLOW_UP:
                self._world.violate("I3", f"{task_id} was written by nobody")

    def _everything_is_said_to_work(self, houses: Sequence[House]) -> None:
        """I20: what was down is up again, without a restart, and says so. A wall clock that was set stays set."""
        for house in houses:
            for name, state in house.capabilities.all().items():
                if state.status is not CapabilityStatus.AVAILABLE and not state.detail.startswith(CLOCKS_APART):
                    self._world.violate("I20", f"{name} is {state.status} for ever: {state.detail}")

    def _everything_ended_or_waits_with_a_reason(self) -> None:
        """I17: by itself, or with the message that it was taken along by."""
        parked = {task.task_id for task in self._open() if task.status == "suspended" and task.reason is not None}
        for task in self._open():
            if not parked.isdisjoint({task.task_id, self._goes_with(task.task_id)}):
                continue
            self._world.violate("I17", f"{task.task_id} is {task.status} ({task.reason}) for ever: {task.error}")
        for reply_id, state in self._world.disk.execute(
            "SELECT reply_id, state FROM replies WHERE state IN ('ready', 'sending') AND held = 0"
        ).fetchall():
            self._world.violate("I17", f"the reply {reply_id} is {state} for ever")

    def _goes_with(self, task_id: str) -> str | None:
        """Which message will say whether this one is answered with it."""
        row = self._world.disk.execute(
            "SELECT result ->> 'mergedInto' FROM runs WHERE task_id = ? AND status = 'replying' AND outcome = 'merged'"
            " ORDER BY generation DESC LIMIT 1",
            (task_id,),
        ).fetchone()
        return row[0] if row else None

    def _nobody_was_told_too_often(self) -> None:
        meant: Counter[str] = Counter()
        for call, resends in self._world.disk.execute("SELECT call, resends FROM replies").fetchall():
            meant[msgspec.json.decode(call)["text"].removeprefix(MARK)] += 1 + resends
        for text, count in self.said.items():
            if count > meant[text]:
                self._world.violate("I6", f"{text!r} was said {count} times, and meant {meant[text]} times")
        for run_id, call in self._world.disk.execute(
            "SELECT run_id, call FROM replies WHERE state = 'sent' AND channel = 'telegram'"
        ).fetchall():
            text = msgspec.json.decode(call)["text"].removeprefix(MARK)
            if text and not self.said[text]:
                self._world.violate("I6", f"{text!r} of {run_id} counts as sent, and nobody has seen it")

    def _everything_was_answered_once(self) -> None:
        """I4, I9: with its own result or with that of the message it was merged into; and if that, really with it. A
        result that a person has dropped is one: with it goes whatever it was for."""
        answers: defaultdict[str, list[str]] = defaultdict(list)
        latest: dict[str, tuple[str, Any]] = {}
        for task_id, outcome, stored in self._world.disk.execute(
            "SELECT task_id, outcome, result FROM runs ORDER BY task_id, generation"
        ).fetchall():
            result = msgspec.json.decode(stored)
            latest[task_id] = (outcome, result)
            if result is not None and "mergedInto" not in result:
                for answered in (task_id, *result.get("merged", ())):
                    answers[answered].append(task_id)
        for task_id, (outcome, result) in latest.items():
            by = answers[task_id]
            if not self.asked_again.isdisjoint({task_id, *by}):
                continue
            if len(by) > 1:
                self._world.violate("I4", f"{task_id} was answered {len(by)} times, with {by}")
            is_over = self._goes_with(task_id) is None
            into = None if result is None else result.get("mergedInto")
            if outcome == "merged" and is_over and into not in {*by, *self.asked_again}:
                self._world.violate("I4", f"{task_id} is merged into {into}, which did not answer it")
            if result is None and by:
                self._world.violate("I9", f"{task_id} ended without an answer, and is answered with {by}")

    def _what_was_promised_for_later_is_said_once(self) -> None:
        """I4: whatever keeps the time, and however often it says that it has come. A person may ask for more."""
        named: defaultdict[str, set[str]] = defaultdict(set)
        said: defaultdict[str, set[str]] = defaultdict(set)
        for task_id, stored in self._world.disk.execute("SELECT task_id, head FROM runs ORDER BY task_id").fetchall():
            head = decode_head(stored)
            text = (head.user_text or "").partition(" ")[0]
            named[text.removesuffix(LATER_MARK)].add(task_id)
            if head.source == FOLLOW_UP and head.task_type is not TaskType.FOLLOW_UP:
                said[text.removesuffix(LATER_MARK)].add(task_id)
        for name, tasks in said.items():
            if len(tasks) > 1 and self.asked_again.isdisjoint(named[name]):
                self._world.violate("I4", f"what {name!r} promised for later is said by {sorted(tasks)}")

    def _a_chat_with_two_ids_is_one(self) -> None:
        for written in self.written.values():
            if written.has_moved and self._is_over(written.task_id, 0) and self._moved_at is None:
                self._world.violate("I7", f"{written.name} said that its chat has another id, and nobody knows it")
        if self._one("SELECT 1 FROM history JOIN chat_moves USING (channel, account, chat_id)"):
            self._world.violate("I7", "a chat has a history under each of its ids")

    def _nothing_is_left_behind(self) -> None:
        for what, count in (
            ("claimed lanes", self._lanes_claimed()),
            ("chats in the outbox", self._one("SELECT count(*) FROM outbox_chats")),
        ):
            if count:
                self._world.violate("I21", f"{count} {what} are left behind")

    # --- where open tasks are ---

    def is_anything_moving(self) -> bool:
        """Whether something is still to be done that nobody has to be waited for."""
        replies = "SELECT count(*) FROM replies WHERE state IN ('ready', 'sending') AND held = 0"
        return any(map(_is_moving, self._open())) or bool(self._one(replies))

    def _open(self) -> list[Seen]:
        rows = self._world.disk.execute("SELECT task_id, head, status, reason, error FROM tasks").fetchall()
        return [Seen(*row) for row in rows]

    def _is_known(self, key: str) -> bool:
        return self._one("SELECT 1 FROM receipts WHERE delivery_key = ?", key) is not None

    def _is_kept(self, task_id: str) -> bool:
        return self._one("SELECT 1 FROM tasks WHERE task_id = ?", task_id) is not None or self._is_over(task_id, 0)

    def _generation(self, task_id: str) -> int | None:
        generation: int | None = self._one("SELECT generation FROM tasks WHERE task_id = ?", task_id)
        return generation

    def _lanes_claimed(self) -> int:
        return int(self._one("SELECT count(*) FROM lanes WHERE holder IS NOT NULL"))

    # --- details ---

    def _is_over(self, task_id: str, generation: int) -> bool:
        """In this generation or a later one."""
        ended = "SELECT 1 FROM runs WHERE task_id = ? AND generation >= ? AND finished_at IS NOT NULL"
        return self._one(ended, task_id, generation) is not None

    def _was_given_up(self, text: str) -> bool:
        """Whether some reply says so, or said so before it was marked."""
        plain = text.removeprefix(MARK)
        return any(
            msgspec.json.decode(call)["text"].removeprefix(MARK) == plain
            for (call,) in self._world.disk.execute("SELECT call FROM replies").fetchall()
        )

    def _may_repeat(self, process: Process) -> bool:
        """Whether it may do again what has been done: another may have done it, unseen by it."""
        return self._world.may_have_lost_claims(process)

    def _step(self, turn: rise.Turn, step: str) -> tuple[str, str, str]:
        """Of this very run: a person may have had its message run again since."""
        messages = " ".join(message.task_id for message in turn.messages)
        return messages, turn.run_id, step

    def _written_of(self, task_id: str) -> Written | None:
        return next((written for written in self.written.values() if written.task_id == task_id), None)

    def try_used(self, task_id: str) -> None:
        """I13: only by a message's own errors."""
        written = self._written_of(task_id)
        if written is not None and written.behaviour not in OWN_ERRORS and task_id not in self._ends_processes:
            self._world.violate("I13", f"{written.name} did nothing wrong, and has used a try")

    def death_counted(self, task_id: str, holder: str | None) -> None:
        """I13: only of a process that died, or was taken for dead with reason."""
        bus = self._world.members.get(str(holder))
        if bus is not None and not self._world.may_have_lost_claims(bus.process):
            self._world.violate("I13", f"a death was counted for {task_id}, and {holder} lives and can write")

    def _chat_moved(self) -> None:
        self._moved_at = self._world.now

    def _stood_in_line(self, task_id: str, at_ms: int, seq: int, lane: str) -> None:
        """I7: in the order of the platform's dates, not of arrival, and in the lane of its chat."""
        written = self._written_of(task_id)
        place = None if written is None else place_of(written.body)
        if written is not None and place not in (None, (at_ms, seq)):
            self._world.violate("I7", f"{written.name} stands at {(at_ms, seq)}; by the platform it is {place}")
        if f":{SUPERGROUP}:" in lane and self._is_known_by_all() and not self._may_stand_apart(task_id, written):
            self._world.violate("I7", f"{task_id} stands in {lane}, and the chat goes by {GROUP}")

    def _may_stand_apart(self, task_id: str, written: Written | None) -> bool:
        """Under the later id of its chat: what was read before it was known, and what the runs of those planned."""
        return task_id in self._read_before if written is not None else bool(self._read_before)

    def _is_known_by_all(self) -> bool:
        return self._moved_at is not None and self._world.now - self._moved_at > KNOWN_SECONDS_MAX

    def _violated(self, invariant: str, what: str) -> None:
        self._world.violate(invariant, what)

    def _one(self, sql: str, *values: Any) -> Any:
        row = self._world.disk.execute(sql, values).fetchone()
        return None if row is None else row[0]


def _are_of_one_chat(one: Written, other: Written) -> bool:
    program, other_program = program_chat_of(one), program_chat_of(other)
    return program == other_program and (program is not None or is_same_chat(one.chat_id, other.chat_id))


def _is_moving(task: Seen) -> bool:
    return task.status != "suspended" or task.reason == "workflow_pending"
