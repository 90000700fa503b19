"""How coroutines end that must not run another line.

Python ends a suspended coroutine by throwing `GeneratorExit` into it, and its `finally` blocks run. A process
that was killed has none: what is left of it must go without a trace.
"""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Iterable
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, GeneratorType
from typing import Any

_SUSPENDABLE = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_GENERATOR


class _Buried(BaseException):
    """Ends a frame in the moment in which it would have gone on."""


def bury(suspended: Iterable[Any]) -> None:
    """End coroutines, and all that they wait in, without running anything of theirs.

    Asynchronous generators are left for whoever drops them: they go in silence if the hook that asyncio calls
    their finalizer does nothing. A `with` of a plain generator ends as Python ends it, `finally` included.
    """
    for outermost in suspended:
        for layer in _layers(outermost):
            _end(layer)


def _layers(outermost: Any) -> list[Any]:
    """What waits in what, innermost first: as far as it can be closed."""
    found = []
    layer = outermost
    while layer is not None:
        if hasattr(layer, "close"):
            found.append(layer)
        layer = _awaited_by(layer)
    return found[::-1]


def _awaited_by(layer: Any) -> Any:
    for name in ("cr_await", "ag_await", "gi_yieldfrom"):
        if hasattr(layer, name):
            return getattr(layer, name)
    # What drives a frame from C, as `anext()` does, does not tell which. It only holds it.
    frames = (CoroutineType, AsyncGeneratorType, GeneratorType)
    return next((held for held in gc.get_referents(layer) if isinstance(held, frames)), None)


if sys.version_info >= (3, 12):

    def _end(layer: Any) -> None:
        # A line that is about to run ends its frame instead, the first line of a `finally` too.
        monitoring, tool = sys.monitoring, 3  # an id that is reserved for no kind of tool
        monitoring.use_tool_id(tool, __name__)
        monitoring.register_callback(tool, monitoring.events.LINE, _refuse_line)
        monitoring.set_events(tool, monitoring.events.LINE)
        try:
            layer.close()
        except _Buried:
            pass
        finally:
            monitoring.set_events(tool, monitoring.events.NO_EVENTS)
            monitoring.free_tool_id(tool)

    def _refuse_line(code: CodeType, line: int) -> None:
        if code.co_flags & _SUSPENDABLE:
            raise _Buried

else:

    def _end(layer: Any) -> None:
        # To a tracer, being resumed is a call; and a frame whose call it refuses is left at once, not unwound.
        tracing = sys.gettrace()
        sys.settrace(_refuse_call)
        try:
            layer.close()
        except _Buried:
            pass
        finally:
            sys.settrace(tracing)

    def _refuse_call(frame: FrameType, event: str, argument: Any) -> None:
        if frame.f_code.co_flags & _SUSPENDABLE:
            raise _Buried
