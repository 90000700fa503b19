"""A draft, tried: run for one message, and what it would say is told to whoever tries it.

Promises: nothing is sent, planned or kept, and no chat hears of it. Models and sites are really asked, for what the
rest comes to depends on them; so that somebody tried it is in the audit trail, before it is run. What a run here may
do, one that is published may do as well: the same stages, the same templates, the same addresses.

Refuses: to call functions of `RISE_APP`. They are in the worker's process, where they may block, and not in the one
that accepts messages; who tries a draft says what they would return. More tries at a time than there is room for beside
the messages, and one that takes longer than `SECONDS_MAX`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec

from rise.clock import Clock, epoch_ms
from rise.envelope import DeliveryKey, Effect, Head, LaneKey, Order, Progress, Status, Task, TaskId
from rise.errors import RateExceeded, RiseError, StageRefused
from rise.rates import Buckets
from rise.service import spawn
from rise.telemetry import clean
from rise.workflows.staged import StageRecord, Tools, run_stages
from rise.workflows.stages import Prompt, PythonStage, Stage, read_stages
from rise.workflows.turn import Turn

CHAT: Final = "try"
"""What templates see as `chat_id`."""
CHANNEL: Final = "webchat"
SECONDS_MAX: Final = 60.0
AT_ONCE_MAX: Final = 4
PER_SECOND: Final = 0.5
"""For each who tries, on average."""
BURST: Final = 10
TEXT_CHARS_MAX: Final = 4096
SAID_MAX: Final = 20
"""Turns of the conversation so far, as many as a chat's history has by itself."""


class Said(msgspec.Struct, frozen=True):
    """One turn of the conversation."""

    role: str
    """`user` or `assistant`."""
    text: str


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be tried."""

    name: str
    """Whose draft it is, as the audit trail has it."""
    stages: Sequence[Any]
    text: str
    """The message."""
    said: Sequence[Said] = ()
    returned: Mapping[str, Any] = {}
    """What functions would return, by their names."""
    prompts: Mapping[str, Prompt] = {}
    """Those that are tried themselves, in the place of what is stored."""


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    replies: list[Effect]
    planned: list[Effect]
    """Follow-ups."""
    stages: list[StageRecord]
    error: str = ""
    """Why it did not come to its end: then it would have said nothing."""


class Tries:
    """Runs them, a few at a time."""

    def __init__(
        self,
        make_tools: Callable[[], Tools],
        record: Callable[..., Awaitable[None]],
        clock: Clock,
    ) -> None:
        """`record`: writes `who` tries `what` into the audit trail."""
        self._make_tools = make_tools
        self._record = record
        self._clock = clock
        self._pace = Buckets(PER_SECOND, BURST)
        self._running: set[asyncio.Task[Any]] = set()

    def close(self) -> None:
        """End those that run."""
        for running in self._running:
            running.cancel()

    async def run(self, trial: Trial, *, who: str) -> Tried:
        """Raises `PayloadInvalid` for stages that could not be published, `RateExceeded`, or `Unavailable` where it
        cannot be recorded."""
        stages = read_stages(list(trial.stages))
        self._slow_down(who)
        running = spawn(self._tried(trial, stages, who), name="try", into=self._running)
        try:
            await asyncio.wait({running})
        finally:
            running.cancel()
        if running.cancelled():
            return Tried(replies=[], planned=[], stages=[], error="this process is stopping: try again in a moment")
        tried: Tried = running.result()
        return tried

    def _slow_down(self, who: str) -> None:
        now = self._clock.monotonic()
        if len(self._running) >= AT_ONCE_MAX:
            raise RateExceeded(f"{AT_ONCE_MAX} drafts are being tried at this moment", retry_after_seconds=5)
        if (wait := self._pace.wait_seconds(who, now)) > 0:
            raise RateExceeded("you try too often", retry_after_seconds=math.ceil(wait))
        self._pace.take(who, now)

    async def _tried(self, trial: Trial, stages: Sequence[Stage], who: str) -> Tried:
        await self._record(who=who, what=trial.name)
        records: list[StageRecord] = []
        made = self._make_tools()
        tools = replace(
            made,
            functions=_stand_ins(stages, trial.returned),
            prompts=lambda name: trial.prompts.get(name) or made.prompts(name),
            record=records.append,
        )
        turn, error = self._turn(trial, who), ""
        limit = asyncio.timeout(SECONDS_MAX)
        try:
            async with limit:
                await run_stages(turn, stages, tools)
        except Exception as failure:  # noqa: BLE001 - border: whatever a stage raises is what came of it
            error = failure.public_message if isinstance(failure, RiseError) else clean(failure)
            if limit.expired():
                error = f"it was ended after {SECONDS_MAX:g} s; published, it may take longer"
        finally:
            effects = turn.close()
            await tools.close()
        if error:
            effects = []  # a run that fails has said nothing
        planned = [effect for effect in effects if effect.kind == "follow_up"]
        replies = [effect for effect in effects if effect.kind != "follow_up"]
        return Tried(replies=replies, planned=planned, stages=records, error=error)

    def _turn(self, trial: Trial, who: str) -> Turn:
        now_ms = epoch_ms(self._clock.now())
        head = Head(
            task_id=TaskId("t_try"),
            delivery_key=DeliveryKey(""),
            channel=CHANNEL,
            account="default",
            source="console",
            lane=LaneKey(CHAT),
            order=Order(0, 0),
            accepted_at_ms=now_ms,
            request_id="",
            trace_id="",
            idempotency_key="",
            chat_id=CHAT,
            user_text=trial.text,
            user={"chat_id": CHAT, "user_id": who},
            metadata={"chat_id": CHAT},
        )
        task = Task(head, b"", Progress(status=Status.PROCESSING))
        history = [{"role": one.role, "text": one.text} for one in trial.said[-SAID_MAX:]]
        return Turn(task, _Forgetful(), steps={}, history=history, now_ms=now_ms)


class _Forgetful:
    """Keeps no step longer than the run."""

    async def save_step(self, step: str, value: bytes) -> bytes:
        return value

    async def download(self, file_id: str) -> bytes:
        raise StageRefused("there are no files where a draft is tried")


def functions_named(stages: Sequence[Any]) -> list[str]:
    """The functions that stages call, as far as they can be read."""
    named = [one.get("function") for one in stages if isinstance(one, dict) and one.get("kind") == "python"]
    return list(dict.fromkeys(name for name in named if isinstance(name, str)))


def _stand_ins(stages: Sequence[Stage], returned: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    names = {stage.function for stage in stages if isinstance(stage, PythonStage)}
    return {name: _stand_in(name, returned) for name in names}


def _stand_in(name: str, returned: Mapping[str, Any]) -> Callable[..., Any]:
    async def called(values: Any) -> Any:
        if name not in returned:
            raise StageRefused(f"the function {name} is not called here; say what it would return")
        return returned[name]

    return called
