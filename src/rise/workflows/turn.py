"""What a workflow sees of one message, and all it can do.

Every effect is only noted here. It becomes real when the run has ended well and its result is frozen in the
ledger: a run that fails or crashes has said nothing, so running it again cannot say anything twice.

Refuses: anything more once the run is over; a follow-up that has no one moment, no chat, or nothing to do.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextvars import copy_context
from datetime import datetime
from functools import partial
from threading import Thread
from typing import Any, Final, Protocol

import msgspec

from rise import tracing
from rise.clock import epoch_ms, is_hosts_own
from rise.envelope import FOLLOW_UP_AHEAD_MAX, Effect, Task, encode_json

FOLLOW_UP_SECONDS_MAX: Final = FOLLOW_UP_AHEAD_MAX.total_seconds()


class _Noted:
    """The result of noting an effect: may be awaited, need not be, so plain functions can use it too."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        return iter(())  # type: ignore[return-value]


_NOTED: Final = _Noted()


class Memory(Protocol):
    """Where a run's finished steps are kept."""

    async def save_step(self, step: str, value: bytes) -> bytes: ...

    async def download(self, file_id: str) -> bytes: ...


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One of the messages that a turn answers."""

    task_id: str
    text: str
    raw: bytes
    """Exactly the bytes the platform sent, always whole."""
    message_id: str | None
    """The platform's own, to reply to; None where it has none."""
    metadata: dict[str, Any]

    @property
    def update(self) -> Any:
        """`raw` as JSON."""
        return msgspec.json.decode(self.raw)


class Turn:
    """One message, or several that came in a burst as one, and the means to answer it.

    Of a burst, `text` is all that was written; whatever else is said here of the message is said of the first.
    """

    def __init__(
        self,
        task: Task,
        memory: Memory,
        *,
        steps: Mapping[str, bytes],
        history: list[dict[str, Any]],
        now_ms: int,
        followers: Sequence[Task] = (),
    ) -> None:
        """`now_ms`: when the run begins, by the wall clock. `followers`: what was written after it and is answered with
        it."""
        self._task = task
        self._followers = followers
        self._memory = memory
        self._steps = dict(steps)
        self._steps_used: dict[str, int] = {}
        self._began_at_ms = now_ms
        self._effects: list[Effect] = []
        self._open = True
        self.history = history
        """The chat's last turns, oldest first: `{"role": "user" | "assistant", "text": …}`; long texts are cut."""

    # --- what came in ---

    @property
    def text(self) -> str:
        """What the person wrote; of a burst all of it, in its order, a line for each message."""
        return "\n".join(message.head.user_text for message in (self._task, *self._followers))

    @property
    def messages(self) -> list[Message]:
        """Each message by itself, in the order of the chat; one, unless they came in a burst and its binding merges
        these."""
        return [_message(message) for message in (self._task, *self._followers)]

    @property
    def raw(self) -> bytes:
        """Exactly the bytes the platform sent, always whole."""
        return self._task.raw

    @property
    def update(self) -> Any:
        """`raw` as JSON."""
        return msgspec.json.decode(self._task.raw)

    @property
    def kind(self) -> str:
        """The platform's kind of update: `message`, `edited_message`, `callback_query` …"""
        return self._task.head.kind

    @property
    def channel(self) -> str:
        return self._task.head.channel

    @property
    def account(self) -> str:
        return self._task.head.account

    @property
    def chat_id(self) -> str | None:
        return self._task.head.chat_id

    @property
    def user_id(self) -> str | None:
        user_id = self._task.head.user.get("user_id")
        return None if user_id is None else str(user_id)

    @property
    def user(self) -> dict[str, Any]:
        """As the channel knows the person; never from what a client claims."""
        return self._task.head.user

    @property
    def metadata(self) -> dict[str, Any]:
        return self._task.head.metadata

    @property
    def policy(self) -> dict[str, Any]:
        return self._task.head.policy

    @property
    def task_id(self) -> str:
        return self._task.task_id

    @property
    def run_id(self) -> str:
        """Of this run, the same in all its tries."""
        return self._task.run_id

    @property
    def attempt(self) -> int:
        """1 on the first try."""
        return self._task.progress.attempts + 1

    # --- what goes out ---

    def reply(
        self,
        text: str = "",
        *,
        buttons: list[list[dict[str, str]]] | None = None,
        media: dict[str, Any] | None = None,
        reply_to: str | None = None,
        parse_mode: str | None = None,
    ) -> Awaitable[None]:
        """Answer in the chat. `buttons`: rows of `{"text": …, "data": … | "url": …}`. `reply_to`: the id of a message,
        such as the last of a burst: `turn.messages[-1].message_id`; without it the answer is a reply to none."""
        return self._note(
            Effect(
                kind="reply",
                text=text,
                buttons=buttons,
                media=media,
                reply_to=reply_to,
                parse_mode=parse_mode,
            )
        )

    def edit(
        self,
        text: str,
        *,
        message_id: str | None = None,
        buttons: list[list[dict[str, str]]] | None = None,
        parse_mode: str | None = None,
    ) -> Awaitable[None]:
        """Change a message of the bot; without `message_id` the one whose button was tapped."""
        return self._note(Effect(kind="edit", text=text, message_id=message_id, buttons=buttons, parse_mode=parse_mode))

    def answer_callback(self, text: str = "", *, alert: bool = False) -> Awaitable[None]:
        """Answer the tap on a button. The workflow says so beforehand: `answers_callbacks=True`."""
        return self._note(Effect(kind="answer_callback", text=text, params={"show_alert": True} if alert else {}))

    def call(self, method: str, **params: Any) -> Awaitable[None]:
        """Any other call of the platform, by name. Like everything it goes through the outbox."""
        return self._note(Effect(kind="call", method=method, params=params))

    def follow_up(
        self,
        text: str = "",
        *,
        in_seconds: float | None = None,
        at: datetime | None = None,
        workflow: str | None = None,
    ) -> Awaitable[None]:
        """Say `text` in this chat later, or run `workflow` (a name) with it: once, through any restart.

        Either `in_seconds` from the end of this run, or `at` a moment with its time zone; at most five years ahead.
        Raises `ValueError` for anything else, where there is no chat, or for neither text nor workflow.
        """
        if (in_seconds is None) == (at is None):
            raise ValueError("a follow-up takes either in_seconds or at")
        if at is not None and at.tzinfo is None:
            raise ValueError("`at` needs a time zone: datetime(..., tzinfo=...)")
        if at is not None and is_hosts_own(zone := getattr(at.tzinfo, "key", None) or ""):
            raise ValueError(f"the time zone of `at` is another on each host: {zone}; take one as Europe/Berlin")
        if at is not None and not 0 <= epoch_ms(at) <= self._began_at_ms + FOLLOW_UP_SECONDS_MAX * 1000:
            raise ValueError("`at` is a moment from the year 1970 to five years ahead")
        if in_seconds is not None and not (_is_number(in_seconds) and 0 <= in_seconds <= FOLLOW_UP_SECONDS_MAX):
            raise ValueError("in_seconds is a number of seconds, from 0 to five years")
        if not isinstance(text, str):
            raise ValueError("the text of a follow-up is a str")
        if self.chat_id is None:
            raise ValueError("there is no chat to come back to")
        if not text.strip() and workflow is None:
            raise ValueError("a follow-up needs a text to say, or a workflow to run")
        plan: dict[str, Any] = {"workflow": workflow, "inSeconds": in_seconds}
        if at is not None:
            plan["atMs"] = epoch_ms(at)
        return self._note(Effect(kind="follow_up", text=text, params=plan))

    async def download(self, file_id: str) -> bytes:
        """A file that came with the message."""
        return await self._memory.download(file_id)

    # --- what survives a crash ---

    async def step(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `function` and keep its result: when the run is repeated, it is taken from there.

        The result must be expressible in JSON, and is returned as it comes back from it. Using a name again
        in one run makes another step. Between the call's end and its saving a crash can still repeat it.
        """
        self._refuse_when_over()
        key = self._step_key(name)
        if key not in self._steps:
            # Not the step's name: a workflow may make that of what a person wrote, another for every message.
            with tracing.span("step", attributes={"code.function.name": _name_of(function)}):
                if inspect.iscoroutinefunction(function):
                    value = await function(*args, **kwargs)
                else:
                    value = await in_a_thread(function, *args, **kwargs)
                    if inspect.isawaitable(value):
                        value = await value
                self._steps[key] = await self._memory.save_step(key, encode_json(value))
        return msgspec.json.decode(self._steps[key])

    def _step_key(self, name: str) -> str:
        count = self._steps_used[name] = self._steps_used.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"

    def _note(self, effect: Effect) -> _Noted:
        self._refuse_when_over()
        self._effects.append(effect)
        return _NOTED

    def _refuse_when_over(self) -> None:
        if not self._open:
            raise RuntimeError("this run is over (it took too long, or was taken away); nothing more is done for it")

    # --- for the worker ---

    def close(self) -> list[Effect]:
        """The run is over: what it noted so far; whatever still runs of it can do nothing more."""
        self._open = False
        return self._effects


async def in_a_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call it in a thread of its own: one that never returns takes none away from others, and the process ends without
    it. The loop's own threads are few, and waited for."""
    outcome = _OWN_THREADS.submit(partial(copy_context().run, in_bounds, function, *args, **kwargs))
    try:
        return await asyncio.wrap_future(outcome)
    except asyncio.CancelledError:
        _left_behind.add(outcome)
        outcome.add_done_callback(_left_behind.discard)  # at once, if it has returned
        raise


def threads_left_behind() -> int:
    """Of this process: how many still run a function for which nobody waits any more."""
    return len(_left_behind)


_left_behind: Final[set[Future[Any]]] = set()


class _OwnThreads(Executor):
    """A thread for each call."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        outcome: Future[Any] = Future()
        outcome.set_running_or_notify_cancel()  # it cannot be cancelled any more

        def run() -> None:
            try:
                outcome.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - border: whoever waits for it gets it
                outcome.set_exception(error)

        Thread(target=run, name="rise-function", daemon=True).start()
        return outcome


_OWN_THREADS: Final = _OwnThreads()


def in_bounds(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call it in its thread. What no future can carry, or what would end the process, is an error like any other."""
    try:
        return function(*args, **kwargs)
    except BaseException as error:  # border: raised as what a future can carry
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            raise
        raise RuntimeError(f"{type(error).__name__} came out of {getattr(function, '__name__', 'it')}") from error


def _message(task: Task) -> Message:
    metadata = task.head.metadata
    message_id = metadata.get("message_id")
    return Message(
        task_id=task.task_id,
        text=task.head.user_text,
        raw=task.raw,
        message_id=None if message_id is None else str(message_id),
        metadata=metadata,
    )


def _name_of(function: Callable[..., Any]) -> str | None:
    """As it stands in code; None for what has no name there."""
    module, name = (getattr(function, one, None) for one in ("__module__", "__qualname__"))
    return f"{module}.{name}" if module and name else name


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class BlockingTurn(Turn):
    """The same for a plain function in its thread: `step` and `download` return results, not coroutines."""

    def __init__(self, *args: Any, loop: asyncio.AbstractEventLoop, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loop = loop

    def step(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(super().step(name, function, *args, **kwargs), self._loop).result()

    def download(self, file_id: str) -> Any:
        return asyncio.run_coroutine_threadsafe(super().download(file_id), self._loop).result()
