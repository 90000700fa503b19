"""What people, programs, forgers and operators do in a run, decided before it begins."""

from __future__ import annotations

import json
import random  # noqa: TID251 - the dice are the seed's
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import msgspec

from rise.definitions.records import BurstPolicy
from rise.envelope import DeliveryKey, TaskId, task_id_of
from rise.testing.simulator.bot import Behaviour, draw_behaviour
from rise.testing.telegram import updates

GROUP: Final = -100_500
SUPERGROUP: Final = -1_000_000_100_500
"""What the group becomes in some runs."""


class Act(StrEnum):
    WRITE = "writes"
    EDIT = "edits"
    ALBUM = "sends an album"
    TAP = "taps"
    CALL = "calls the API"
    REPLAY = "somebody sends an old update again"
    FORGE = "somebody without the secret sends an update"
    STALE = "somebody sends an update of the day before yesterday"
    MIGRATE = "makes a supergroup of the group"
    NONSENSE = "the platform sends what nobody understands"
    UNBIND = "unbinds the bot"
    BIND = "binds the bot"
    RESUME = "resumes"
    DROP = "drops"
    AGAIN = "runs again"
    REFILL = "has Redis filled again"
    MERGE = "has bursts merged"
    PART = "has bursts merged no more"
    CARRY = "has chats carried on by Temporal"


class Doing(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that somebody does at a time."""

    act: Act
    at: float
    name: str
    chat_id: int = 0
    behaviour: Behaviour = Behaviour.ECHO
    pick: float = 0.0
    """Which of those that there are: from 0 to 1."""

    @property
    def text(self) -> str:
        return f"{self.name} {self.behaviour}"


_USUAL: Final = (Act.WRITE,) * 14 + (
    Act.EDIT,
    Act.ALBUM,
    Act.TAP,
    Act.CALL,
    Act.CALL,
    Act.REPLAY,
)
_ODD: Final = (Act.FORGE, Act.STALE, Act.NONSENSE, Act.RESUME, Act.DROP, Act.AGAIN)


def draw_doings(dice: random.Random, *, seconds: float) -> list[Doing]:
    """20 to 300 of them, in the first `seconds`; most runs are short, so that there can be many."""
    chats = [*range(1, dice.randint(3, 9)), GROUP]
    count = min(300, 20 + int(dice.expovariate(1 / 45)))
    doings = [_draw(dice, f"m{number}", chats, seconds) for number in range(count)]
    if dice.random() < 0.4:
        unbound_at = dice.uniform(0.0, seconds * 0.7)
        doings.append(Doing(act=Act.UNBIND, at=round(unbound_at, 2), name="binding"))
        doings.append(Doing(act=Act.BIND, at=round(dice.uniform(unbound_at, seconds), 2), name="binding"))
    return sorted(doings, key=lambda doing: doing.at)


def draw_refills(dice: random.Random, *, seconds: float) -> list[Doing]:
    """Where there is a queue to be filled from other stores: at times somebody has it done for no reason."""
    count = dice.choice((0, 0, 0, 1, 2))
    return [Doing(act=Act.REFILL, at=round(dice.uniform(0.0, seconds), 2), name="refill") for _ in range(count)]


def with_migration(dice: random.Random, doings: Sequence[Doing], *, seconds: float) -> list[Doing]:
    """At times the group becomes a supergroup; from then on whatever happens in it has the new id."""
    if dice.random() < 0.6:
        return list(doings)
    moves = Doing(act=Act.MIGRATE, at=round(dice.uniform(0.1, 0.7) * seconds, 2), name="moved", chat_id=GROUP)
    there = [
        msgspec.structs.replace(doing, chat_id=SUPERGROUP)
        if doing.chat_id == GROUP and doing.at > moves.at and doing.act is not Act.CALL
        else doing
        for doing in doings
    ]
    return sorted([*there, moves], key=lambda doing: doing.at)


def with_bursts(dice: random.Random, doings: Sequence[Doing], *, seconds: float) -> list[Doing]:
    """In most runs bursts are merged, from the beginning or some moment on; at times for a while only."""
    if dice.random() < 0.25:
        return list(doings)
    at = dice.choice((0.0, 0.0, dice.uniform(0.0, seconds * 0.6)))
    changes = [Doing(act=Act.MERGE, at=round(at, 2), name="bursts", pick=dice.random())]
    if dice.random() < 0.3:
        changes.append(Doing(act=Act.PART, at=round(dice.uniform(at, seconds), 2), name="bursts"))
    return sorted([*doings, *changes], key=lambda doing: doing.at)


def burst_policy_of(doing: Doing) -> BurstPolicy | None:
    """What is said of bursts from then on."""
    if doing.act is Act.PART:
        return None
    quiet = round(0.3 + 2.0 * doing.pick, 1)
    return BurstPolicy(quiet, round(quiet * (1.5 + 2.0 * doing.pick), 1))


def with_conversations(dice: random.Random, doings: Sequence[Doing], *, seconds: float) -> list[Doing]:
    """In more than half of the runs chats are carried on by Temporal, mostly from the beginning on."""
    if dice.random() < 0.4:
        return list(doings)
    at = dice.choice((0.0, 0.0, 0.0, dice.uniform(0.0, seconds * 0.5)))
    carry = Doing(act=Act.CARRY, at=round(at, 2), name="engine", pick=dice.random())
    return sorted([*doings, carry], key=lambda doing: doing.at)


def channels_carried_by(doing: Doing) -> tuple[str, ...]:
    """Of which channels it carries on the chats from then on; those of the others go on as they were."""
    if doing.pick < 0.7:
        return ("telegram",)
    return ("http",) if doing.pick < 0.8 else ("telegram", "http")


def is_same_chat(one: int, other: int) -> bool:
    return one == other or {one, other} == {GROUP, SUPERGROUP}


def _draw(dice: random.Random, name: str, chats: Sequence[int], seconds: float) -> Doing:
    # In bursts: what comes at the same moment is what gets mixed up.
    at = dice.uniform(0.0, seconds) if dice.random() < 0.5 else seconds * dice.choice((0.1, 0.3, 0.6))
    return Doing(
        act=dice.choice(_ODD if dice.random() < 0.12 else _USUAL),
        at=round(at, 2),
        name=name,
        chat_id=dice.choice(chats),
        behaviour=draw_behaviour(dice),
        pick=dice.random(),
    )


@dataclass(slots=True)
class Written:
    """A message as its sender knows it."""

    name: str
    behaviour: Behaviour
    chat_id: int
    key: str
    body: bytes
    is_genuine: bool = True
    has_moved: bool = False
    """It says that its chat has another id."""
    is_acknowledged: bool = False
    """The platform, or the calling program, was told that it is kept."""

    @property
    def task_id(self) -> TaskId:
        return task_id_of(DeliveryKey(self.key))


def update_of(doing: Doing) -> list[updates.Update]:
    """What the platform makes of it."""
    match doing.act:
        case Act.ALBUM:
            return updates.album((doing.text, f"{doing.name}b echo", f"{doing.name}c echo"), chat_id=doing.chat_id)
        case Act.TAP:
            return [updates.callback_query(doing.text, chat_id=doing.chat_id)]
        case Act.NONSENSE:
            return [updates.unknown(text=doing.text)]
        case Act.MIGRATE:
            # Captioned, so that a run of either can be told from all others.
            both = updates.group_migration(chat_id=doing.chat_id, new_chat_id=SUPERGROUP)
            captions = (f"{doing.name}a silent", f"{doing.name}b silent")
            return [
                {"message": one["message"] | {"caption": caption}} for one, caption in zip(both, captions, strict=True)
            ]
        case _:
            return [updates.message(doing.text, chat_id=doing.chat_id)]


def texts_of(update: updates.Update) -> str:
    """What a workflow will be told."""
    [content] = update.values()
    return str(content.get("text") or content.get("caption") or content.get("data") or "")


def place_of(body: bytes) -> tuple[int, int] | None:
    """Where a message belongs in its chat, by what the platform says of it; None for what it gives no date."""
    update = json.loads(body)
    dates = update.get("edited_message") or update.get("message") or {}
    date = dates.get("edit_date") or dates.get("date")
    return None if date is None else (date * 1000, update["update_id"])


def apply_body(doing: Doing) -> bytes:
    """The body of a program's call."""
    fields: dict[str, Any] = {"userText": doing.text, "metadata": {"chat_id": f"program-{abs(doing.chat_id) % 3}"}}
    return json.dumps(fields).encode()


def program_chat_of(written: Written) -> str | None:
    """The chat that a program called for; None if a person wrote."""
    is_called = written.key.startswith("http:")
    return json.loads(written.body)["metadata"]["chat_id"] if is_called else None


def is_at_large(doing: Doing) -> bool:
    """Whether it concerns any message there is, not only those that wait for somebody."""
    return doing.pick > 0.5


def pick(among: Sequence[Any], doing: Doing) -> Any:
    """The one that is meant, or None where there is none."""
    return among[min(len(among) - 1, int(doing.pick * len(among)))] if among else None


Command = Callable[..., Any]
