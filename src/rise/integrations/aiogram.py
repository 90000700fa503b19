"""What is bound, for handlers of an aiogram dispatcher: `dispatcher.workflow_data["channel_bindings"]`.

    bind_registry(dispatcher, house.bindings)

    async def handler(message: Message, channel_bindings: BindingsSnapshot) -> None: ...

Promises: a handler reads one snapshot (`version`, `active`, `options`, `last_refresh`), which never changes under it;
the next update finds the newest. A registry that cannot be refreshed leaves the last one standing.

Refuses: to import aiogram. Whatever has `workflow_data` is a dispatcher.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from rise.bindings import BindingRegistry, BindingsSnapshot

KEY: Final = "channel_bindings"


class DispatcherLike(Protocol):
    """An `aiogram.Dispatcher`."""

    workflow_data: dict[str, Any]


def bind_registry(dispatcher: DispatcherLike, registry: BindingRegistry) -> Callable[[], None]:
    """From now on the dispatcher knows what is bound. Returns what ends that; the last snapshot stays."""

    def show(snapshot: BindingsSnapshot) -> None:
        dispatcher.workflow_data[KEY] = snapshot

    return registry.on_refresh(show)
