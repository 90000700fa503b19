"""A workflow in code: an async or plain function with a name, found in the module `RISE_APP` names.

The decorator only marks the function; it registers nothing anywhere. Loading collects what the module holds.

Refuses: a name that could not be an id, a module that holds no workflow, a channel that there is not, two workflows for
one channel.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeVar

import msgspec

from rise.errors import SettingsInvalid
from rise.workflows.functions import functions_among

F = TypeVar("F", bound=Callable[..., Any])

_MARK: Final = "__rise_workflow__"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class WorkflowDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """A function and what it asks for."""

    name: str
    function: Callable[..., Any]
    channels: tuple[str, ...] = ()
    run_seconds: float | None = None
    concurrency: int | None = None
    answers_callbacks: bool = False
    """It calls `turn.answer_callback` itself; otherwise a tap is answered empty as soon as it is claimed."""

    @property
    def workflow_id(self) -> str:
        return f"wf_{self.name}"

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.function)


def workflow(
    name: str,
    *,
    channels: Iterable[str] = (),
    run_seconds: float | None = None,
    concurrency: int | None = None,
    answers_callbacks: bool = False,
) -> Callable[[F], F]:
    """Make a function a workflow: `async def f(turn: rise.Turn)`, or a plain `def`, which runs in a thread.

    `channels` binds it at start to each of these where no binding exists.
    `run_seconds` limits one run, `concurrency` how many chats it serves at once in one worker process. What waits for
    that keeps one of its channel's places there.
    Raises `ValueError` or `TypeError` where a name or the channels cannot be used.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no workflow name: use letters, digits, '_', '-' and '.', at most 64")
    if isinstance(channels, str):
        raise TypeError(f"channels takes a list of names: channels=[{channels!r}]")

    def mark(function: F) -> F:
        definition = WorkflowDefinition(
            name=name,
            function=function,
            channels=tuple(channels),
            run_seconds=run_seconds,
            concurrency=concurrency,
            answers_callbacks=answers_callbacks,
        )
        setattr(function, _MARK, definition)
        return function

    return mark


class App(msgspec.Struct, frozen=True):
    """What a person's module brings."""

    workflows: dict[str, WorkflowDefinition]
    """By id."""
    functions: dict[str, Callable[..., Any]]
    """For `python` stages, by name."""


def load_app(app: str | None) -> App:
    """What a file or module holds; importing it once. Raises `SettingsInvalid` if it cannot be used."""
    if app is None:
        return App({}, {})
    values = list(vars(_import(app)).values())
    workflows = {
        definition.workflow_id: definition
        for value in values
        if isinstance(definition := getattr(value, _MARK, None), WorkflowDefinition)
    }
    functions = functions_among(values)
    if not workflows and not functions:
        raise SettingsInvalid([f'RISE_APP={app} holds no workflow: mark a function with @rise.workflow("name").'])
    _refuse_unknown_channels(workflows.values())
    _refuse_two_for_one_channel(workflows.values())
    return App(workflows, functions)


def load_workflows(app: str | None) -> dict[str, WorkflowDefinition]:
    """The workflows alone. Raises `SettingsInvalid` as `load_app` does."""
    return load_app(app).workflows


def _import(app: str) -> ModuleType:
    try:
        return _import_file(Path(app)) if app.endswith(".py") else _import_module(app)
    except FileNotFoundError as error:
        raise SettingsInvalid([f"RISE_APP={app}: there is no such file (looked in {Path.cwd()})."]) from error
    except ModuleNotFoundError as error:
        raise SettingsInvalid([f"RISE_APP={app}: {error}. Install it, or correct the name."]) from error
    except Exception as error:  # border: whatever the user's module raises, they are told which module and what
        raise SettingsInvalid([f"RISE_APP={app} fails when imported: {type(error).__name__}: {error}"]) from error


def _import_module(name: str) -> ModuleType:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    # Its neighbours must be importable, as when Python runs the file itself.
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _refuse_unknown_channels(definitions: Iterable[WorkflowDefinition]) -> None:
    """A slip in a name would else be a bot that nothing reaches."""
    from rise.settings import CHANNELS  # not above: `import rise`, as a bot's own tests do, need not wait for settings

    problems = [
        f"The workflow {definition.name} asks for the channel {channel!r}, which there is not. "
        f"Correct the name: channels are {', '.join(CHANNELS)}."
        for definition in definitions
        for channel in definition.channels
        if channel not in CHANNELS
    ]
    if problems:
        raise SettingsInvalid(problems)


def _refuse_two_for_one_channel(definitions: Iterable[WorkflowDefinition]) -> None:
    taken: dict[str, str] = {}
    for definition in definitions:
        for channel in definition.channels:
            if channel in taken:
                raise SettingsInvalid(
                    [
                        f"The workflows {taken[channel]} and {definition.name} both ask for the channel {channel}. "
                        "Name it in one of them; a message has one workflow."
                    ]
                )
            taken[channel] = definition.name
